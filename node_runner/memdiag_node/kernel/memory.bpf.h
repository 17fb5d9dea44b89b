// memory.bpf.h - read words of kernel memory for user space, and keep facts about this kernel.
//
//   peek     run by user space (BPF_PROG_RUN): WORDS words at a time
//
//   words    addresses, written by user space, 0 at the end; each is replaced by the word there, 0 if unreadable.
//   facts    values by their FACT_ number, set by the programs or by user space. 0: not known.
//
// Defines from memory.py: WORDS (a power of two), FACTS in entries, the FACT_ numbers.

#include "common.bpf.h"

// One entry, so that the program looks it up once for a whole batch.
struct batch {
    u64 word[WORDS];
};

BPF_F_TABLE("array", u32, struct batch, words, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, facts, FACTS, BPF_F_MMAPABLE);

static inline void learn(u32 fact, u64 value)
{
    u64 *known = facts.lookup(&fact);
    if (known)
        *known = value;
}

static inline u64 fact(u32 which)
{
    u64 *known = facts.lookup(&which);
    return known ? *known : 0;
}

int peek(void *ctx)
{
    u32 only = 0;
    struct batch *batch = words.lookup(&only);
    if (!batch)
        return 0;
    learn(FACT_CURRENT_TASK, bpf_get_current_task());
    NO_UNROLL
    for (u32 i = 0; i < WORDS; i++) {
        AS_WRITTEN(i);
        u64 value = 0, address = batch->word[i & (WORDS - 1)];
        if (!address)
            break;
        READ(value, address, 0);
        batch->word[i & (WORDS - 1)] = value;
    }
    return 0;
}
