// planted_leak.c - a kernel module that allocates objects and never frees them while it is loaded.
//
// Each object is one of kmalloc-64 and has a pointer to a function of this module, as an object with a callback has. Only
// the objects themselves form a list, so nothing but the list's head, in the module's data, leads to them.
//
// Parameter `objects`: how many. Read /sys/module/planted_leak/parameters/allocated for how many there are.
//
// Written against <linux/slab.h> of every kernel since 5.10.
#include <linux/init.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/slab.h>

struct planted_object {
    struct list_head link;
    void (*callback)(struct planted_object *object);
    unsigned long number;
    unsigned char payload[32];
};

static unsigned int objects;
module_param(objects, uint, 0444);
MODULE_PARM_DESC(objects, "number of objects to allocate");

static unsigned int allocated;
module_param(allocated, uint, 0444);
MODULE_PARM_DESC(allocated, "number of objects that were allocated");

static LIST_HEAD(planted_objects);

// Not inlined: each object points to it.
static noinline void planted_leak_callback(struct planted_object *object)
{
    pr_info("object %lu\n", object->number);
}

static void free_objects(void)
{
    struct planted_object *object, *next;

    list_for_each_entry_safe(object, next, &planted_objects, link) kfree(object);
}

static int __init planted_leak_init(void)
{
    BUILD_BUG_ON(sizeof(struct planted_object) != 64);
    while (allocated < objects) {
        struct planted_object *object = kzalloc(sizeof(*object), GFP_KERNEL);

        if (!object) {
            free_objects();
            return -ENOMEM;
        }
        object->callback = planted_leak_callback;
        object->number = allocated++;
        list_add_tail(&object->link, &planted_objects);
    }
    return 0;
}

static void __exit planted_leak_exit(void)
{
    free_objects();
}

module_init(planted_leak_init);
module_exit(planted_leak_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Leaks objects of kmalloc-64, for tests");
