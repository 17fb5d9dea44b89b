// planted_pages.c - a kernel module that allocates single pages and never frees them while it is loaded, like a driver
// that loses them.
//
// No page table maps them, no socket, pipe or file has them, and they are in no slab. Only an array of pointers leads to
// them.
//
// Parameter `pages`: how many. Read /sys/module/planted_pages/parameters/allocated for how many there are.
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>

static unsigned int pages;
module_param(pages, uint, 0444);
MODULE_PARM_DESC(pages, "number of pages to allocate");

static unsigned int allocated;
module_param(allocated, uint, 0444);
MODULE_PARM_DESC(allocated, "number of pages that were allocated");

static struct page **planted;

static void free_planted_pages(void)
{
    while (allocated)
        __free_page(planted[--allocated]);
    kvfree(planted);
}

static int __init planted_pages_init(void)
{
    planted = kvcalloc(pages, sizeof(*planted), GFP_KERNEL);
    if (!planted)
        return -ENOMEM;
    while (allocated < pages) {
        struct page *page = alloc_page(GFP_KERNEL);

        if (!page) {
            free_planted_pages();
            return -ENOMEM;
        }
        planted[allocated++] = page;
        cond_resched();
    }
    return 0;
}

static void __exit planted_pages_exit(void)
{
    free_planted_pages();
}

module_init(planted_pages_init);
module_exit(planted_pages_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Loses pages, for tests");
