// page_trace.bpf.c - outstanding kernel page allocations, by frame.
//
// Every frame of the machine has two bytes in `frames`: 0, or the class of the block that it was allocated with. A
// class is the set of properties that blocks can share: stack, process, time slice, order, thinning. All frames of a
// block have its class, so a block that is freed in parts counts with what is still outstanding, and a frame whose free
// was missed is corrected by its next allocation.
//
//   config       the address of frame 0's struct page, the time slice, the budget. Written by user space.
//   sections     section of frames -> 1 + its index in `frames`; 0 for a hole. Written by user space.
//   frames       chunks of 1024 frames, those of memory only. Written here, read by user space through a mapping.
//   classes      class key -> class number. Filled here; user space removes those with nothing outstanding.
//   spare_classes  numbers that are free. Filled by user space.
//   reserve_classes  the last of these, for classes without a process: a burst of new processes does not use them up.
//   class_info   by number: identity, pages allocated so far, and who allocated first. Written here.
//   stacks, cgroups, lives: see identity.bpf.h. Stacks and cgroups are needed by classes, lives are those of `births`.
//   births       index in `frames` -> time of allocation, for one block in 16. Filled on alloc, emptied on free.
//   cpu          per CPU: counters that only increase, and the governor's state.
//   scratch      per CPU and nesting level: room to build a stack in. A program that interrupts another one on the same
//                CPU uses the next level.
//   own_pages    struct page addresses of pages that `own_pid` allocated: user space finds frame 0 with them.
//
// A CPU does not run a program again while it already runs it (Linux 6.1): the kernel refuses and counts that run. An
// interrupt during on_alloc would thus hide its own allocations. on_nested_alloc, a second program on the same
// tracepoint, records those, once user space has seen such runs.
//
// mm_page_alloc(page, order, gfp, migratetype): include/trace/events/kmem.h. `page` is NULL if the allocation failed.
//
// Defines from tables.py and page_trace.py: the layout of the tables (SECTION_FRAMES, CHUNK_FRAMES, MAX_ORDER, CLASS_,
// TIMED, ...), their sizes in entries (SECTIONS, CHUNKS, CLASSES, RESERVE, BIRTHS), MIGRATE_MOVABLE, and from BTF, in
// bytes, STRUCT_PAGE_BYTES and the offset POOL_ORDER; and those of identity.bpf.h.

#include "../identity.bpf.h"

#define NO_PLACE (~0ULL)
#define NESTING 4       // on_alloc, on_nested_alloc, on_pool_hold; before Linux 6.1 also each of them in itself
#define TIME_ONE_IN 256 // events for which the program times itself

struct config {
    u64 first_page; // address of frame 0's struct page
    u64 end_frame;  // the first one after all memory
    u32 slice;
    u32 budget_permille; // of one CPU's time; 0: no thinning
    u64 own_pid;
};

struct chunk {
    u16 class[CHUNK_FRAMES];
};

struct class_key {
    u64 stack;
    u32 tgid;
    u8 slice;
    u8 order;
    u8 level;
    u8 reserved;
};

struct class_info {
    struct class_key key;
    u64 allocated_pages;
    u64 allocated_blocks;
    struct process process;
};

struct counters {
    u64 events, pages, movable_events, movable_pages, thinned_events, thinned_pages;
    u64 lost_stacks, lost_blocks, lost_pages, interrupted, nested, nested_allocs, frees, pool_events, pool_pages;
    u64 taken_classes, unnamed_blocks, thinned_large_events, known_cgroups, lost_cgroups;
    u64 timed_events, timed_ns, timed_frees, timed_free_ns;
};

struct cpu_state {
    struct counters counters;
    struct governor governor;
    u64 last_page; // the last page that on_alloc ran for on this CPU: address of its struct page
};

struct scratch {
    u64 busy;
    struct class_info info;
    struct cgroup_path path;
    struct stack stack;
};

BPF_F_TABLE("array", u32, struct config, config, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, sections, SECTIONS, BPF_F_MMAPABLE); // the kernel rounds entries up to 8 bytes
BPF_F_TABLE("array", u32, struct chunk, frames, CHUNKS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct class_info, class_info, CLASSES, BPF_F_MMAPABLE);
BPF_F_TABLE("hash", struct class_key, u32, classes, CLASSES, 0);
BPF_QUEUE(spare_classes, u32, CLASSES);
BPF_QUEUE(reserve_classes, u32, RESERVE);
BPF_F_TABLE("hash", u32, u64, births, BIRTHS, 0);
BPF_PERCPU_ARRAY(cpu, struct cpu_state, 1);
BPF_PERCPU_ARRAY(scratch, struct scratch, NESTING);
BPF_F_TABLE("array", u32, u64, own_pages, OWN_PAGES + 1, BPF_F_MMAPABLE);

// The index of a frame in `frames`; NO_PLACE if there was no memory when the trace started.
static inline u64 place_of(struct config *settings, u64 page)
{
    u64 frame = (page - settings->first_page) / STRUCT_PAGE_BYTES;
    if (frame >= settings->end_frame)
        return NO_PLACE;
    u32 section = frame / SECTION_FRAMES;
    u64 *number = sections.lookup(&section);
    if (!number || !*number)
        return NO_PLACE;
    return (*number - 1) * SECTION_FRAMES + frame % SECTION_FRAMES;
}

// Set the class of every frame of a block. The block is aligned, so from order 2 on it covers whole 64-bit words.
static inline void set_class(struct chunk *chunk, u32 first, u32 order, u64 class)
{
    if (order == 0) {
        chunk->class[first & (CHUNK_FRAMES - 1)] = class;
    } else if (order == 1) {
        *(u32 *)&chunk->class[first & (CHUNK_FRAMES - 2)] = class | class << 16;
    } else {
        u64 word = class | class << 16 | class << 32 | class << 48;
        u64 *words = (u64 *)chunk;
        u32 start = (first & (CHUNK_FRAMES - 1)) >> 2, count = 1 << (order - 2);
        NO_UNROLL
        for (u32 i = 0; i < CHUNK_FRAMES / 4; i++) {
            if (i >= count)
                break;
            words[(start + i) & (CHUNK_FRAMES / 4 - 1)] = word;
        }
    }
}

static inline void count_cgroup(struct cpu_state *state, s32 stored)
{
    if (stored > 0)
        state->counters.known_cgroups++;
    else if (stored < 0)
        state->counters.lost_cgroups++;
}

// A free number for a class, 0 if none is left.
static inline u32 take_number(struct cpu_state *state, struct class_key *key)
{
    u32 number = 0;
    if (spare_classes.pop(&number) && (key->tgid || reserve_classes.pop(&number)))
        return 0;
    state->counters.taken_classes++;
    return number;
}

// Create a class that was not seen before, with a free number. Returns its number, or the one that another CPU stored
// first.
static inline u32 new_class(struct cpu_state *state, struct scratch *room, struct class_key *key, u32 number)
{
    struct class_info *info = &room->info;
    __builtin_memset(info, 0, sizeof(*info));
    info->key = *key;
    if (key->tgid)
        count_cgroup(state, current_process(&info->process, &room->path));
    class_info.update(&number, info);
    if (classes.insert(key, &number)) {
        info->allocated_pages = 0;
        if (number >= CLASSES - RESERVE)
            reserve_classes.push(&number, 0);
        else
            spare_classes.push(&number, 0);
        state->counters.taken_classes--;
        u32 *other = classes.lookup(key);
        return other ? *other : CLASS_LOST;
    }
    return number;
}

// The class of a block that is recorded.
static inline u32 classify(void *ctx, struct config *settings, struct cpu_state *state, struct scratch *room, u64 order,
                           u32 level, u64 place)
{
    u32 context;
    u64 hash = intern_stack(ctx, &room->stack, &context);
    if (!hash)
        state->counters.lost_stacks++;
    struct class_key key = {.stack = hash, .slice = settings->slice, .order = order, .level = level};
    if (context <= CONTEXT_PROCESS)
        key.tgid = bpf_get_current_pid_tgid() >> 32;
    u32 *known = classes.lookup(&key);
    u32 spare = known ? 0 : take_number(state, &key);
    if (!known && !spare && key.tgid) { // drop the process rather than the stack
        key.tgid = 0;
        state->counters.unnamed_blocks++;
        known = classes.lookup(&key);
        spare = known ? 0 : take_number(state, &key);
    }
    u32 number = known ? *known : spare ? new_class(state, room, &key, spare) : CLASS_LOST;
    struct class_info *info = class_info.lookup(&number);
    if (!info || number == CLASS_LOST) {
        state->counters.lost_blocks++;
        state->counters.lost_pages += 1 << order;
        return CLASS_LOST;
    }
    ATOMIC_ADD(&info->allocated_pages, 1 << order);
    ATOMIC_ADD(&info->allocated_blocks, 1);
    if (!(random_bits(&state->governor) & 15)) {
        u32 key32 = place;
        u64 now = bpf_ktime_get_ns();
        if (!births.update(&key32, &now))
            number |= TIMED;
    }
    return number;
}

// Classify in the first level of `scratch` that no interrupted run on this CPU uses. An interrupt between the check and
// the claim is harmless: it frees its levels before it returns.
static inline u32 recorded_class(void *ctx, struct config *settings, struct cpu_state *state, u64 order, u32 thinned,
                                 u64 place)
{
    struct scratch *room = 0;
    u32 level = 0;
    UNROLL
    for (u32 i = 0; i < NESTING; i++) {
        if (level == i) {
            room = scratch.lookup(&level);
            if (!room)
                return CLASS_LOST;
            if (room->busy)
                level++;
        }
    }
    if (level == NESTING || !room) {
        state->counters.interrupted++;
        state->counters.lost_blocks++;
        state->counters.lost_pages += 1 << order;
        return CLASS_LOST;
    }
    room->busy = 1;
    if (level)
        state->counters.nested++;
    u64 start = is_measured(&state->governor) ? bpf_ktime_get_ns() : 0, nested = state->counters.nested;
    u32 class = classify(ctx, settings, state, room, order, thinned, place);
    if (start && nested == state->counters.nested) // exclude the time of an interrupt
        measured(&state->governor, start);
    room->busy = 0;
    return class;
}

// The class of a block that passes the movable filter. By `flags` the governor distinguishes kinds of allocation.
static inline u32 class_of(void *ctx, struct config *settings, struct cpu_state *state, u64 order, u64 flags, u64 place)
{
    s32 level = thinning(&state->governor, settings->budget_permille, (u32)flags ^ (u32)order << 27);
    if (level >= 0)
        return recorded_class(ctx, settings, state, order, level, place);
    state->counters.thinned_events++;
    state->counters.thinned_pages += 1 << order;
    if (order)
        state->counters.thinned_large_events++;
    return CLASS_THINNED + order;
}

static inline void record_alloc(struct bpf_raw_tracepoint_args *ctx, struct config *settings, struct cpu_state *state)
{
    u64 page = ctx->args[0], order = ctx->args[1];
    state->counters.events++;
    state->counters.pages += 1ULL << (order & 31);
    u64 place = place_of(settings, page);
    u32 chunk_number = place / CHUNK_FRAMES;
    struct chunk *chunk = frames.lookup(&chunk_number);
    if (!chunk || order > MAX_ORDER) {
        state->counters.lost_blocks++;
        state->counters.lost_pages += 1ULL << (order & 31);
        return;
    }
    u32 class = CLASS_MOVABLE;
    if (ctx->args[3] == MIGRATE_MOVABLE) {
        state->counters.movable_events++;
        state->counters.movable_pages += 1 << order;
    } else {
        class = class_of(ctx, settings, state, order, ctx->args[2], place);
    }
    set_class(chunk, place, order, class);
}

int on_alloc(struct bpf_raw_tracepoint_args *ctx)
{
    u32 zero = 0;
    u64 start = 0;
    struct config *settings = config.lookup(&zero);
    struct cpu_state *state = cpu.lookup(&zero);
    if (!ctx->args[0] || !settings || !state)
        return 0;
    state->last_page = ctx->args[0];
    if (!(state->counters.events & (TIME_ONE_IN - 1)))
        start = bpf_ktime_get_ns();
    record_alloc(ctx, settings, state);
    if (start) {
        state->counters.timed_events++;
        state->counters.timed_ns += bpf_ktime_get_ns() - start;
    }
    return 0;
}

// Runs after on_alloc for every event. If the kernel refused to run on_alloc, it last ran for another page, and this one
// has no class yet. (An interrupt between the two programs may have changed `last_page` too: then this page already has
// its class.)
int on_nested_alloc(struct bpf_raw_tracepoint_args *ctx)
{
    u32 zero = 0;
    struct cpu_state *state = cpu.lookup(&zero);
    if (!state || state->last_page == ctx->args[0] || !ctx->args[0])
        return 0;
    struct config *settings = config.lookup(&zero);
    if (!settings)
        return 0;
    u64 place = place_of(settings, ctx->args[0]);
    u32 chunk_number = place / CHUNK_FRAMES;
    struct chunk *chunk = frames.lookup(&chunk_number);
    if (!chunk || chunk->class[place & (CHUNK_FRAMES - 1)])
        return 0;
    state->counters.nested_allocs++;
    record_alloc(ctx, settings, state);
    return 0;
}

// A block of `births` was freed: how long did it live?
static inline void record_life(u32 place, u32 number)
{
    u64 *born = births.lookup(&place);
    if (!born)
        return;
    u64 born_ns = *born;
    births.delete(&place);
    struct class_info *info = class_info.lookup(&number);
    if (info)
        count_life(info->key.stack, born_ns);
}

int on_free(struct bpf_raw_tracepoint_args *ctx)
{
    u32 zero = 0;
    u64 start = 0, order = ctx->args[1];
    struct config *settings = config.lookup(&zero);
    struct cpu_state *state = cpu.lookup(&zero);
    if (!settings || !state)
        return 0;
    if (!(state->counters.frees++ & (TIME_ONE_IN - 1)))
        start = bpf_ktime_get_ns();
    u64 place = place_of(settings, ctx->args[0]);
    u32 chunk_number = place / CHUNK_FRAMES;
    struct chunk *chunk = frames.lookup(&chunk_number);
    if (!chunk || order > MAX_ORDER)
        return 0;
    u32 class = chunk->class[place & (CHUNK_FRAMES - 1)];
    if (class || order)
        set_class(chunk, place, order, 0);
    if (class & TIMED)
        record_life(place, class & ~TIMED);
    if (start) {
        state->counters.timed_frees++;
        state->counters.timed_free_ns += bpf_ktime_get_ns() - start;
    }
    return 0;
}

// A page pool took a page. Pages of alloc_pages_bulk do not hit mm_page_alloc: they are first seen here.
int on_pool_hold(struct bpf_raw_tracepoint_args *ctx)
{
    u32 zero = 0, order = 0;
    u64 page = ctx->args[1];
    struct config *settings = config.lookup(&zero);
    struct cpu_state *state = cpu.lookup(&zero);
    if (!page || page & 1 || !settings || !state) // a low bit marks memory of a device
        return 0;
    u64 place = place_of(settings, page);
    u32 chunk_number = place / CHUNK_FRAMES;
    struct chunk *chunk = frames.lookup(&chunk_number);
    if (!chunk || chunk->class[place & (CHUNK_FRAMES - 1)])
        return 0;
    READ(order, ctx->args[0], POOL_ORDER);
    if (order > MAX_ORDER)
        return 0;
    state->counters.pool_events++;
    state->counters.pool_pages += 1 << order;
    set_class(chunk, place, order, class_of(ctx, settings, state, order, 0, place));
    return 0;
}

// Before the trace: struct pages that `own_pid` allocated. The first entry counts the others.
int on_own_alloc(struct bpf_raw_tracepoint_args *ctx)
{
    u32 zero = 0;
    struct config *settings = config.lookup(&zero);
    u64 *count = own_pages.lookup(&zero);
    if (!settings || !count || !ctx->args[0] || bpf_get_current_pid_tgid() >> 32 != settings->own_pid)
        return 0;
    if (ctx->args[1] || ctx->args[3] != MIGRATE_MOVABLE || *count >= OWN_PAGES)
        return 0;
    u32 slot = ++*count;
    u64 *page = own_pages.lookup(&slot);
    if (page)
        *page = ctx->args[0];
    return 0;
}
