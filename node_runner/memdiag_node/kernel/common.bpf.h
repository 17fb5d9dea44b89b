// common.bpf.h - definitions shared by the programs of the node runner.

// Read kernel memory at `base` + `offset` into a variable. If that fails, the variable is zeroed and the value is not 0.
#define READ(destination, base, offset) \
    bpf_probe_read_kernel(&(destination), sizeof(destination), (void *)((u64)(base) + (offset)))

#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("nounroll")

// Keep the compiler from replacing a loop's counter with another: the verifier tracks the bound of this one. (Before
// Linux 6.8 it loses the bound if the compiler counts down instead.)
#define AS_WRITTEN(counter) asm volatile("" : "+r"(counter))

// The context that every BPF iterator gets (include/linux/bpf.h, struct bpf_iter_meta).
struct seq_file;
struct iterator_meta {
    struct seq_file *seq;
    u64 session_id;
    u64 seq_number;
};

// Add to a u64 that several CPUs share. bcc's lock_xadd() asks for an order of memory accesses too, which recent compilers
// grant with an instruction that Linux before 5.12 refuses.
#define ATOMIC_ADD(counter, amount) \
    asm volatile("lock *(u64 *)(%0 + 0) += %1" : : "r"(counter), "r"((u64)(amount)) : "memory")
