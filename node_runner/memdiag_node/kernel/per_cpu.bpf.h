// per_cpu.bpf.h - where each CPU has its copy of a per-CPU object.
//
//   locate   run by user space once on every CPU (BPF_PROG_RUN)
//
//   anchor   any per-CPU object
//   places   by CPU: the address of its copy of the anchor, 0 if not known
//
// Defines from per_cpu.py: CPUS, entries of places.

#include "common.bpf.h"

BPF_TABLE("percpu_array", u32, u64, anchor, 1);
BPF_F_TABLE("array", u32, u64, places, CPUS, BPF_F_MMAPABLE);

int locate(void *ctx)
{
    u32 only = 0, cpu = bpf_get_smp_processor_id();
    u64 *copy = anchor.lookup(&only), *place = places.lookup(&cpu);
    if (copy && place)
        *place = (u64)copy;
    return 0;
}
