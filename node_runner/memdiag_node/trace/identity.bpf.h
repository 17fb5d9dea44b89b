// identity.bpf.h - who allocates: call stack, process, memory cgroup; and how long what it allocated lives.
//
//   stacks    hash of the addresses -> the addresses and the context. Filled here; user space adds the context, and
//             removes those that nothing needs.
//   cgroups   kernfs id of a memory cgroup -> names on its path. Filled here; user space removes those that nothing
//             needs.
//   lives     (stack, bucket of the life's logarithm) -> what was freed after such a time. Filled here.
//
// Defines: STACKS, STACK_FRAMES, CGROUPS, CGROUP_LEVELS, CGROUP_NAME_BYTES, CONTEXT_, and the offsets of TASK_GROUP_LEADER,
// TASK_COMM, TASK_CGROUPS, CSS_SET_MEMORY, CSS_CGROUP, CGROUP_NODE, NODE_ID, NODE_NAME, NODE_PARENT.

#include "common.bpf.h"
#include "governor.bpf.h"

struct stack {
    u32 context;
    u32 frames;
    u64 address[STACK_FRAMES];
};

// Innermost first.
struct cgroup_path {
    char name[CGROUP_LEVELS][CGROUP_NAME_BYTES];
};

struct process {
    u64 cgroup;
    char comm[16];
};

struct life_key {
    u64 stack;
    u64 bucket;
};

BPF_F_TABLE("hash", u64, struct stack, stacks, STACKS, 0);
BPF_F_TABLE("hash", u64, struct cgroup_path, cgroups, CGROUPS, 0);
BPF_F_TABLE("hash", struct life_key, u64, lives, 4096, 0);

// Build the stack in `stack` and store it. Returns its hash, 0 if it could not be stored.
static inline u64 intern_stack(void *ctx, struct stack *stack, u32 *context)
{
    *context = CONTEXT_UNKNOWN;
    s64 bytes = bpf_get_stack(ctx, stack->address, sizeof(stack->address), 0);
    if (bytes <= 0)
        return 0;
    u32 count = (u64)bytes >> 3;
    u64 hash = count;
    NO_UNROLL
    for (u32 i = 0; i < STACK_FRAMES; i++) {
        AS_WRITTEN(i);
        if (i >= count || i >= STACK_FRAMES)
            break;
        hash = (hash ^ stack->address[i]) * 0x9E3779B97F4A7C15ULL;
        hash ^= hash >> 32;
    }
    struct stack *known = stacks.lookup(&hash);
    if (known) {
        *context = known->context;
        return hash;
    }
    stack->frames = count;
    stack->context = CONTEXT_UNKNOWN;
    return stacks.update(&hash, stack) ? 0 : hash;
}

// Store the names on the path of a memory cgroup, so that its owner is still known after it was removed. Returns 1 if
// it is new, -1 if it could not be stored.
static inline s32 intern_cgroup(struct cgroup_path *path, u64 node, u64 id)
{
    if (cgroups.lookup(&id))
        return 0;
    NO_UNROLL
    for (u32 level = 0; level < CGROUP_LEVELS; level++) {
        u64 name = 0;
        path->name[level][0] = 0;
        if (!node)
            continue;
        READ(name, node, NODE_NAME);
        bpf_probe_read_kernel_str(path->name[level], CGROUP_NAME_BYTES, (void *)name);
        READ(node, node, NODE_PARENT);
    }
    return cgroups.update(&id, path) ? -1 : 1;
}

// The current process: its name, and its memory cgroup, which is stored. Returns what `intern_cgroup` does.
static inline s32 current_process(struct process *process, struct cgroup_path *path)
{
    u64 task = bpf_get_current_task(), leader = 0, css_set = 0, css = 0, cgroup = 0, node = 0;
    READ(leader, task, TASK_GROUP_LEADER);
    bpf_probe_read_kernel(process->comm, sizeof(process->comm), (void *)(leader + TASK_COMM));
    READ(css_set, task, TASK_CGROUPS);
    READ(css, css_set, CSS_SET_MEMORY);
    READ(cgroup, css, CSS_CGROUP);
    READ(node, cgroup, CGROUP_NODE);
    READ(process->cgroup, node, NODE_ID);
    return process->cgroup ? intern_cgroup(path, node, process->cgroup) : 0;
}

// Count a life by its length. Buckets are quarters of an octave of microseconds.
static inline void count_life(u64 stack, u64 born_ns)
{
    u64 microseconds = (bpf_ktime_get_ns() - born_ns) / 1000 + 1;
    u32 octave = log2_floor(microseconds);
    u32 quarter = octave >= 2 ? (microseconds >> (octave - 2)) & 3 : (microseconds << (2 - octave)) & 3;
    struct life_key key = {.stack = stack, .bucket = octave * 4 + quarter};
    u64 *count = lives.lookup(&key), one = 1;
    if (count)
        ATOMIC_ADD(count, 1);
    else
        lives.update(&key, &one);
}
