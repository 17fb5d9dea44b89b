// common.bpf.h - what the programs of the node runner have in common.

// Read kernel memory at `base` + `offset` into a variable. Not 0 when that fails: then the variable is zeroed.
#define READ(destination, base, offset) \
    bpf_probe_read_kernel(&(destination), sizeof(destination), (void *)((u64)(base) + (offset)))

#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("nounroll")

// Keeps the compiler from replacing a loop's counter by another: the verifier follows the bound of this one. (Before
// Linux 6.8 it loses count where the compiler counts down instead.)
#define AS_WRITTEN(counter) asm volatile("" : "+r"(counter))

// What every BPF iterator gets (include/linux/bpf.h, struct bpf_iter_meta).
struct seq_file;
struct iterator_meta {
    struct seq_file *seq;
    u64 session_id;
    u64 seq_number;
};
