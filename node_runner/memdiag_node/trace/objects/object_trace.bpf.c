// object_trace.bpf.c - outstanding allocations inside of pages: slab objects, per-CPU memory, areas of vmalloc.
//
// Slab objects are far too many to record all. Which are recorded follows from the address alone, so that allocation
// and free agree without a lookup: one in 16, chosen by a hash, and more of those at an aligned address, where large
// objects are, and of caches with large objects. The programs return at once for all others. If a call site makes the
// load, its objects are thinned out further, at random. Per-CPU memory and areas of vmalloc are few: all are recorded,
// unless thinned out.
//
//   config     the budget, and a filter for `large_caches`. Written by user space before the programs are attached.
//   large_caches  address of a struct kmem_cache -> the size of its objects, as a power of two. Likewise.
//   objects    address and kind -> stack, process, time, size. Filled on alloc, emptied on free.
//   entry_counts  hash of an address and kind -> at least the number of entries of `objects` with this hash. Most objects
//              are not recorded: for those, an access to this array replaces a lookup in `objects`. Changed here; user
//              space may remove entries of `objects` without it.
//   totals     stack -> what was allocated. Filled here.
//   processes  process ID -> its name and cgroup. Filled here.
//   stacks, cgroups, lives: see identity.bpf.h.
//   cpu        per CPU: counters that only increase, and the governor's state.
//   scratch    per CPU and nesting level: room to build a stack in.
//
// Objects that are freed in bulk (kmem_cache_free_bulk) pass no tracepoint. User space finds out that they are free; and
// the next allocation at the same address, recorded or thinned out, replaces them here.
//
// include/trace/events/kmem.h: kmalloc and kmem_cache_alloc(call_site, ptr, ...), kfree and kmem_cache_free(call_site,
// ptr, ...), in all versions. From Linux 6.1 on, the cache follows in kmem_cache_alloc and kmem_cache_free; before, a size
// and a name, neither of which equals the address of a cache. percpu.h and vmalloc.h: see each program.
//
// Defines from tables.py: OBJECTS, ENTRIES_BITS, PROCESSES, KIND_, GOVERNOR_BITS, MAX_LEVEL, SPARSEST_BYTES,
// DENSEST_BYTES, LARGE_CACHES, FILTER_BITS, PAGE_BYTES; and those of identity.bpf.h.

#include "../identity.bpf.h"

#define NESTING 4

struct config {
    u32 budget_permille; // of one CPU's time; 0: no thinning
    u32 reserved;
    u64 filter[1 << FILTER_BITS >> 6];
};

struct object {
    u64 stack;
    u64 born_ns;
    u64 size_bytes; // 0 for slab objects: their cache has it
    u32 tgid;
    u16 level;  // thinned out: one in 2^level was recorded
    u16 one_in; // of which one in so many is picked
};

struct totals {
    u64 recorded;
    u64 allocated;       // estimated from what was recorded
    u64 allocated_bytes; // likewise; 0 for slab objects
};

struct counters {
    u64 picked, recorded, thinned, lost_stacks, lost_objects, interrupted, nested;
    u64 added, removed, unnamed_objects, known_processes, known_cgroups, lost_cgroups, recording_ns, timed;
};

struct cpu_state {
    struct counters counters;
    struct governor governor;
};

struct scratch {
    u64 busy;
    struct object object;
    struct process process;
    struct cgroup_path path;
    struct stack stack;
};

BPF_F_TABLE("array", u32, struct config, config, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("hash", u64, u64, large_caches, LARGE_CACHES, 0);
BPF_F_TABLE("hash", u64, struct object, objects, OBJECTS, 0);
BPF_F_TABLE("array", u32, u64, entry_counts, 1 << ENTRIES_BITS, 0);
BPF_F_TABLE("hash", u64, struct totals, totals, STACKS, 0);
BPF_F_TABLE("hash", u32, struct process, processes, PROCESSES, 0);
BPF_PERCPU_ARRAY(cpu, struct cpu_state, 1);
BPF_PERCPU_ARRAY(scratch, struct scratch, NESTING);

// What an address is aligned to, between SPARSEST_BYTES and DENSEST_BYTES.
static inline u64 alignment(u64 address)
{
    u64 aligned = address & -address;
    return aligned >= DENSEST_BYTES ? DENSEST_BYTES : aligned <= SPARSEST_BYTES ? SPARSEST_BYTES : aligned;
}

// The size of a cache's objects if they are large, as a power of two; 0 of all other values.
static inline u64 large_size(u64 cache)
{
    u32 zero = 0, bit = cache * 0x9E3779B97F4A7C15ULL >> (64 - FILTER_BITS);
    struct config *settings = config.lookup(&zero);
    if (!settings || !(settings->filter[bit >> 6] >> (bit & 63) & 1))
        return 0;
    u64 *size = large_caches.lookup(&cache);
    return size ? *size : 0;
}

// The probability with which an object is picked, times DENSEST_BYTES.
static inline u64 share_of(u64 address, u64 size)
{
    u64 aligned = alignment(address);
    return size > aligned ? size : aligned;
}

// Whether the object at an address is one of those to record.
static inline int is_picked(u64 address, u64 share)
{
    return (address * 0x9E3779B97F4A7C15ULL >> 32) * DENSEST_BYTES < share << 32;
}

// The number of entries of `objects` with the hash of a key. An object counts from before it is stored until after it is
// removed.
static inline u64 *entry_count(u64 key)
{
    u32 hash = key * 0x9E3779B97F4A7C15ULL >> (64 - ENTRIES_BITS);
    return entry_counts.lookup(&hash);
}

static inline void count_freed(u64 key)
{
    u32 zero = 0;
    u64 *count = entry_count(key);
    if (!count || !*count)
        return;
    struct object *known = objects.lookup(&key);
    if (!known)
        return;
    u64 stack = known->stack, born_ns = known->born_ns;
    if (objects.delete(&key))
        return; // by another CPU
    ATOMIC_ADD(count, -1);
    count_life(stack, born_ns);
    struct cpu_state *state = cpu.lookup(&zero);
    if (state)
        state->counters.removed++;
}

// Remove what was recorded at the address of an allocation that is not recorded: its free was not seen, so that its
// life is not known.
static inline void remove_stale(struct cpu_state *state, u64 key)
{
    u64 *count = entry_count(key);
    if (count && *count && objects.lookup(&key) && !objects.delete(&key)) { // a deletion takes a lock in any case
        ATOMIC_ADD(count, -1);
        state->counters.removed++;
    }
}

static inline void add_totals(u64 stack, u64 objects_represented, u64 size_bytes)
{
    struct totals *known = totals.lookup(&stack);
    if (!known) {
        struct totals none = {};
        totals.insert(&stack, &none);
        known = totals.lookup(&stack);
        if (!known)
            return;
    }
    ATOMIC_ADD(&known->recorded, 1);
    ATOMIC_ADD(&known->allocated, objects_represented);
    ATOMIC_ADD(&known->allocated_bytes, objects_represented * size_bytes);
}

static inline void name_process(struct cpu_state *state, struct scratch *room, u32 tgid)
{
    if (processes.lookup(&tgid))
        return;
    __builtin_memset(&room->process, 0, sizeof(room->process));
    s32 stored = current_process(&room->process, &room->path);
    if (stored > 0)
        state->counters.known_cgroups++;
    else if (stored < 0)
        state->counters.lost_cgroups++;
    if (processes.update(&tgid, &room->process))
        state->counters.unnamed_objects++;
    else
        state->counters.known_processes++;
}

static inline void store(void *ctx, struct cpu_state *state, struct scratch *room, u64 key, u64 size_bytes, u32 level,
                         u32 one_in)
{
    struct object *object = &room->object;
    u32 context;
    object->stack = intern_stack(ctx, &room->stack, &context);
    if (!object->stack)
        state->counters.lost_stacks++;
    object->born_ns = bpf_ktime_get_ns();
    object->size_bytes = size_bytes;
    object->level = level;
    object->one_in = one_in;
    object->tgid = 0;
    if (context <= CONTEXT_PROCESS) {
        object->tgid = bpf_get_current_pid_tgid() >> 32;
        if (object->tgid)
            name_process(state, room, object->tgid);
    }
    state->counters.recorded++;
    add_totals(object->stack, (u64)one_in << level, size_bytes);
    u64 *count = entry_count(key);
    if (!count)
        return;
    ATOMIC_ADD(count, 1);
    if (!objects.insert(&key, object)) {
        state->counters.added++;
        return;
    }
    ATOMIC_ADD(count, -1);
    if (objects.update(&key, object)) // its free was not seen
        state->counters.lost_objects++;
}

// Record an allocation, one in `one_in`. By `kind` the governor distinguishes kinds of allocation.
static inline int record(void *ctx, u64 key, u64 size_bytes, u64 kind, u32 one_in)
{
    u32 zero = 0, depth = 0;
    struct config *settings = config.lookup(&zero);
    struct cpu_state *state = cpu.lookup(&zero);
    struct scratch *room = 0;
    if (!settings || !state)
        return 0;
    state->counters.picked++;
    s32 level = thinning(&state->governor, settings->budget_permille, kind ^ kind >> 32);
    if (level < 0) {
        state->counters.thinned++;
        remove_stale(state, key);
        return 0;
    }
    UNROLL
    for (u32 i = 0; i < NESTING; i++) {
        if (depth == i) {
            room = scratch.lookup(&depth);
            if (!room)
                return 0;
            if (room->busy)
                depth++;
        }
    }
    if (depth == NESTING || !room) {
        state->counters.interrupted++;
        state->counters.lost_objects++;
        remove_stale(state, key);
        return 0;
    }
    room->busy = 1;
    if (depth)
        state->counters.nested++;
    u64 start_ns = is_measured(&state->governor) ? bpf_ktime_get_ns() : 0, nested = state->counters.nested;
    store(ctx, state, room, key, size_bytes, level, one_in);
    if (start_ns && nested == state->counters.nested) { // exclude the time of an interrupt
        measured(&state->governor, start_ns);
        state->counters.timed++;
        state->counters.recording_ns += bpf_ktime_get_ns() - start_ns;
    }
    room->busy = 0;
    return 0;
}

static inline int on_object(struct bpf_raw_tracepoint_args *ctx, u64 size)
{
    u64 address = ctx->args[1], share = share_of(address, size);
    if (!address || !is_picked(address, share))
        return 0;
    return record(ctx, address | KIND_SLAB, 0, ctx->args[0], DENSEST_BYTES / share);
}

static inline int on_object_freed(struct bpf_raw_tracepoint_args *ctx, u64 size)
{
    u64 address = ctx->args[1];
    if (is_picked(address, share_of(address, size)))
        count_freed(address | KIND_SLAB);
    return 0;
}

int on_kmalloc(struct bpf_raw_tracepoint_args *ctx)
{
    return on_object(ctx, 0);
}

int on_cache_alloc(struct bpf_raw_tracepoint_args *ctx)
{
    return on_object(ctx, large_size(ctx->args[2]));
}

int on_kfree(struct bpf_raw_tracepoint_args *ctx)
{
    return on_object_freed(ctx, 0);
}

int on_cache_free(struct bpf_raw_tracepoint_args *ctx)
{
    return on_object_freed(ctx, large_size(ctx->args[2]));
}

// percpu_alloc_percpu(call_site, reserved, is_atomic, size, align, base_addr, off, ptr, bytes_alloc, gfp_flags)
int on_percpu_alloc(struct bpf_raw_tracepoint_args *ctx)
{
    return record(ctx, ctx->args[7] | KIND_PERCPU, ctx->args[3], ctx->args[0], 1);
}

// Before Linux 5.19: percpu_alloc_percpu(reserved, is_atomic, size, align, base_addr, off, ptr)
int on_percpu_alloc_without_call_site(struct bpf_raw_tracepoint_args *ctx)
{
    return record(ctx, ctx->args[6] | KIND_PERCPU, ctx->args[2], ctx->args[2], 1);
}

// percpu_free_percpu(base_addr, off, ptr)
int on_percpu_free(struct bpf_raw_tracepoint_args *ctx)
{
    count_freed(ctx->args[2] | KIND_PERCPU);
    return 0;
}

// Linux 6.2: alloc_vmap_area(addr, size, align, vstart, vend, failed). The size includes a guard page.
int on_vmap_area(struct bpf_raw_tracepoint_args *ctx)
{
    u64 size_bytes = ctx->args[1];
    if (ctx->args[5] & 0xFFFFFFFF)
        return 0;
    return record(ctx, ctx->args[0] | KIND_VMALLOC, size_bytes > PAGE_BYTES ? size_bytes - PAGE_BYTES : size_bytes,
                  size_bytes, 1);
}

// free_vmap_area_noflush(va_start, nr_lazy, nr_lazy_max)
int on_vmap_area_freed(struct bpf_raw_tracepoint_args *ctx)
{
    count_freed(ctx->args[0] | KIND_VMALLOC);
    return 0;
}
