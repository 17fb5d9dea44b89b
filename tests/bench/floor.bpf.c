// floor.bpf.c - the least that a trace of every slab object costs: it filters each by its address, and records nothing.
//
// kmalloc(call_site, object, ...), kmem_cache_alloc(call_site, object, ...), kfree(call_site, object),
// kmem_cache_free(call_site, object, ...): include/trace/events/kmem.h.

#include "common.bpf.h"

static inline int filter(struct bpf_raw_tracepoint_args *ctx)
{
    u64 hash = (ctx->args[1] >> 3) * 0x9E3779B97F4A7C15ULL;
    u64 is_chosen = hash >> 60 == 0; // one in 16
    AS_WRITTEN(is_chosen);
    return 0;
}

int on_kmalloc(struct bpf_raw_tracepoint_args *ctx)
{
    return filter(ctx);
}

int on_cache_alloc(struct bpf_raw_tracepoint_args *ctx)
{
    return filter(ctx);
}

int on_kfree(struct bpf_raw_tracepoint_args *ctx)
{
    return filter(ctx);
}

int on_cache_free(struct bpf_raw_tracepoint_args *ctx)
{
    return filter(ctx);
}
