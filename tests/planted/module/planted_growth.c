// planted_growth.c - a kernel module that allocates at known rates, and frees everything when it is unloaded.
//
// One thread with the name of the module does all of it. Parameters, each a rate per second, 0 for none of that kind:
// `kmalloc`, objects of kmalloc-64; `cache`, objects of CACHE_BYTES of a cache of its own, planted_growth; `areas`,
// areas of vmalloc with AREA_PAGES pages; `percpu`, per-CPU allocations of PERCPU_BYTES for each CPU. After MOST_SECONDS
// it allocates nothing more. Read /sys/module/planted_growth/parameters/failed for how many allocations failed.
//
// Each kind is allocated by a function of its own, whose name begins with planted_. The barriers are there so that none
// ends with a jump to the allocator, which would not be in the stack.
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#define CACHE_BYTES 192
#define AREA_PAGES 32
#define PERCPU_BYTES 256
#define TICK_MS 10
#define MOST_SECONDS 200

static unsigned int kmalloc_rate, cache_rate, areas_rate, percpu_rate;
module_param_named(kmalloc, kmalloc_rate, uint, 0444);
MODULE_PARM_DESC(kmalloc, "objects of kmalloc-64 per second");
module_param_named(cache, cache_rate, uint, 0444);
MODULE_PARM_DESC(cache, "objects of a cache of its own per second");
module_param_named(areas, areas_rate, uint, 0444);
MODULE_PARM_DESC(areas, "areas of vmalloc per second");
module_param_named(percpu, percpu_rate, uint, 0444);
MODULE_PARM_DESC(percpu, "per-CPU allocations per second");

static unsigned int failed;
module_param(failed, uint, 0444);
MODULE_PARM_DESC(failed, "number of allocations that failed");

// Everything that is allocated begins with this. Per-CPU memory has it on the first CPU.
struct planted {
    struct planted *next;
    void __percpu *percpu;
};

static struct kmem_cache *planted_cache;
static struct task_struct *thread;
static struct planted *kmalloced, *cached, *areas, *percpus;

static noinline struct planted *planted_kmalloc(void)
{
    struct planted *one = kzalloc(64, GFP_KERNEL);

    barrier();
    return one;
}

static noinline struct planted *planted_cache_alloc(void)
{
    struct planted *one = kmem_cache_alloc(planted_cache, GFP_KERNEL);

    barrier();
    return one;
}

static noinline struct planted *planted_vmalloc(void)
{
    struct planted *one = vzalloc(AREA_PAGES * PAGE_SIZE);

    barrier();
    return one;
}

static noinline struct planted *planted_percpu(void)
{
    void __percpu *percpu = __alloc_percpu(PERCPU_BYTES, sizeof(void *));
    struct planted *first;

    if (!percpu)
        return NULL;
    first = per_cpu_ptr(percpu, cpumask_first(cpu_possible_mask));
    first->percpu = percpu;
    return first;
}

static void grow(struct planted **list, struct planted *(*allocate)(void), u64 due, u64 *done)
{
    for (; *done < due; ++*done) {
        struct planted *one = allocate();

        if (!one) {
            ++failed;
            continue;
        }
        one->next = *list;
        *list = one;
    }
}

static int planted_growth_thread(void *unused)
{
    u64 done[4] = {}, started = ktime_get_ns(), ms;

    while (!kthread_should_stop()) {
        ms = div_u64(ktime_get_ns() - started, NSEC_PER_MSEC);
        if (ms <= MOST_SECONDS * MSEC_PER_SEC) {
            grow(&kmalloced, planted_kmalloc, div_u64(ms * kmalloc_rate, MSEC_PER_SEC), &done[0]);
            grow(&cached, planted_cache_alloc, div_u64(ms * cache_rate, MSEC_PER_SEC), &done[1]);
            grow(&areas, planted_vmalloc, div_u64(ms * areas_rate, MSEC_PER_SEC), &done[2]);
            grow(&percpus, planted_percpu, div_u64(ms * percpu_rate, MSEC_PER_SEC), &done[3]);
        }
        msleep_interruptible(TICK_MS);
    }
    return 0;
}

// A cache with a constructor is never merged with another.
static void construct(void *object)
{
    memset(object, 0, CACHE_BYTES);
}

static int __init planted_growth_init(void)
{
    planted_cache = kmem_cache_create("planted_growth", CACHE_BYTES, 0, 0, construct);
    if (!planted_cache)
        return -ENOMEM;
    thread = kthread_run(planted_growth_thread, NULL, "planted_growth");
    if (IS_ERR(thread)) {
        kmem_cache_destroy(planted_cache);
        return PTR_ERR(thread);
    }
    return 0;
}

static void __exit planted_growth_exit(void)
{
    struct planted *one, *next;

    kthread_stop(thread);
    for (one = kmalloced; one; one = next) {
        next = one->next;
        kfree(one);
    }
    for (one = cached; one; one = next) {
        next = one->next;
        kmem_cache_free(planted_cache, one);
    }
    for (one = areas; one; one = next) {
        next = one->next;
        vfree(one);
    }
    for (one = percpus; one; one = next) {
        next = one->next;
        free_percpu(one->percpu);
    }
    kmem_cache_destroy(planted_cache);
}

module_init(planted_growth_init);
module_exit(planted_growth_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Leaks kernel memory of every kind at known rates, for tests");
