// symbols.bpf.h - the names of kernel return addresses, from the kernel's own symbol tables.
//
//   bpf_map     an iterator over all BPF maps. It uses only the first call, which has a seq_file to print to, and prints
//               a line for each address: "SYMBOL+OFFSET/SIZE [MODULE]", without a module for the kernel itself.
//   addresses   written by user space, 0 at the end.
//
// The format %pB is for return addresses: it looks up the call that precedes them (kernel:
// Documentation/core-api/printk-formats.rst; in bpf_seq_printf since Linux 5.9). Unlike /proc/kallsyms it does not
// depend on CAP_SYSLOG and kernel.kptr_restrict. An address without a symbol is printed as a number; user space drops
// it.
//
// Defines from symbols.py: ADDRESSES in entries, small enough that their lines always fit into the seq_file's buffer.

#include "common.bpf.h"

BPF_F_TABLE("array", u32, u64, addresses, ADDRESSES, BPF_F_MMAPABLE);

struct bpf_iter__bpf_map {
    struct iterator_meta *meta;
    void *map;
};
int bpf_iter__bpf_map(struct bpf_iter__bpf_map *ctx)
{
    char format[] = "%pB\n";
    if (!ctx->map || ctx->meta->seq_number)
        return 0;
    NO_UNROLL
    for (u32 i = 0; i < ADDRESSES; i++) {
        u32 at = i;
        u64 *address = addresses.lookup(&at), argument;
        if (!address || !*address)
            break;
        argument = *address;
        bpf_seq_printf(ctx->meta->seq, format, sizeof(format), &argument, sizeof(argument));
    }
    return 0;
}
