// slabs.bpf.c - the slabs of the node, straight from the array of struct pages, the places of per-CPU objects, and names.
//
//   scan     run by user space (BPF_PROG_RUN): the struct pages of CHUNKS * CHUNK_PAGES frames
//   locate   see per_cpu.bpf.h
//   bpf_map  see symbols.bpf.h: a part of this file because the compiler takes as long for a file as for two
//
//   run      `first_page`, written by user space: the address of the first struct page. `count`, left by the program: the
//            number of slabs that start in these frames.
//   heads    these slabs, one entry for each. What follows them means nothing.
//   chunk    struct pages that are being looked at: those of one page of the array, which may be a hole.
//
// Defines from page_scan.py: CHUNKS, CHUNK_PAGES, both powers of two; ORDER_SHIFT; STRUCT_PAGE_BYTES, 64; the offsets in a struct
// page PAGE_FLAGS, PAGE_COMPOUND, PAGE_TYPE, SLAB_CACHE, SLAB_FREELIST, SLAB_COUNTERS, and PAGE_ORDER, in bytes; PG_HEAD,
// a bit of the flags; how slabs are marked: SLAB_TYPE, the highest byte of the page type, or else SLAB_BIT of the flags.

#include "per_cpu.bpf.h"
#include "symbols.bpf.h"

#define FRAMES (CHUNKS * CHUNK_PAGES)

struct slab_head {
    u64 place; // number of the frame, from the first one; its order from bit ORDER_SHIFT on
    u64 cache;
    u64 freelist;
    u64 counters;
};

struct run {
    u64 first_page;
    u64 count;
};

struct chunk {
    char page[CHUNK_PAGES][STRUCT_PAGE_BYTES];
    char more[STRUCT_PAGE_BYTES]; // the order of a block is in its second struct page
};

BPF_F_TABLE("array", u32, struct run, run, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct slab_head, heads, FRAMES, BPF_F_MMAPABLE);
BPF_TABLE("array", u32, struct chunk, chunk, 1);

#define FIELD(type, page, offset) (*(type *)((page) + (offset)))

// Whether a struct page heads a slab: 1 or 0. It is computed without branches, as is all that follows from it: the
// verifier would follow each branch through the rest of the loops.
static inline u64 heads_slab(char *page)
{
#ifdef SLAB_TYPE
    u64 difference = FIELD(u32, page, PAGE_TYPE) >> 24 ^ SLAB_TYPE;
#else
    u64 difference = ~FIELD(u64, page, PAGE_FLAGS) >> SLAB_BIT & 1;
#endif
    difference |= FIELD(u64, page, PAGE_COMPOUND) & 1; // set in all pages of a block but the first one
    AS_WRITTEN(difference);
    return (difference - 1) >> 63;
}

// Write the description of a frame behind those of the slabs found so far. It stays there if the frame heads a slab.
static inline void note(struct run *this, char *page, u64 place)
{
    u64 count = this->count; // in memory: the verifier would follow the loops for each of its values
    u32 number = count;
    struct slab_head *head = heads.lookup(&number);
    if (!head)
        return;
    u64 is_block = FIELD(u64, page, PAGE_FLAGS) >> PG_HEAD & 1;
    head->place = place | FIELD(unsigned char, page, PAGE_ORDER) * is_block << ORDER_SHIFT;
    head->cache = FIELD(u64, page, SLAB_CACHE);
    head->freelist = FIELD(u64, page, SLAB_FREELIST);
    head->counters = FIELD(u64, page, SLAB_COUNTERS);
    this->count = count + heads_slab(page);
}

int scan(void *ctx)
{
    u32 only = 0;
    struct run *this = run.lookup(&only);
    struct chunk *pages = chunk.lookup(&only);
    if (!this || !pages)
        return 0;
    this->count = 0;
    NO_UNROLL
    for (u32 at = 0; at < CHUNKS; at++) {
        AS_WRITTEN(at);
        u64 address = this->first_page + at * sizeof(pages->page);
        if (bpf_probe_read_kernel(&pages->page, sizeof(pages->page), (void *)address))
            continue;
        NO_UNROLL
        for (u32 number = 0; number < CHUNK_PAGES; number++) {
            AS_WRITTEN(number);
            note(this, pages->page[number & (CHUNK_PAGES - 1)], at * CHUNK_PAGES + number);
        }
    }
    return 0;
}
