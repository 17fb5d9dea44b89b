"""The class of memory that a call stack allocated, and the caller of the allocator (pure).

Each class has an allocator of its own between the page allocator and its callers. Its frames are the same for every
allocation, so they are removed. docs/trace.md lists them for users.
"""

import re
from collections.abc import Sequence

from memdiag_api.memory_classes import ClassName
from memdiag_node.kernel.symbols import function_name

_SLAB = re.compile(
    r"_*(kmalloc|kzalloc|kcalloc|krealloc|kmem_cache_(alloc|zalloc)|kvmalloc|kvzalloc|kmem_buckets_alloc)\w*"
    r"|kmalloc_(large|order)\w*|_*slab_alloc\w*|allocate_slab|new_slab\w*|alloc_slab_page|alloc_(from_)?(pcs|sheaf)\w*"
    r"|_*(get|alloc|refill|init)_?\w*sheaf\w*|__pcs_\w+|refill_objects|_*kmem_cache_refill\w*|___?cache_alloc\w*"
    r"|kmemdup\w*|kstrn?dup\w*"
)
_VMALLOC = re.compile(
    r"alloc_vmap_area|__get_vm_area_node|__vmalloc(_area)?(_node)?(_range)?\w*|vm_area_alloc_pages|v[mz]alloc\w*"
    r"|_*kvmalloc\w*|kvzalloc\w*|module_alloc|module_memory_alloc|execmem_\w+"
)
_PERCPU = re.compile(r"pcpu_\w+|__?_?alloc_percpu\w*|__alloc_reserved_percpu\w*")
_VMALLOC_PAGES = re.compile(r"__vmalloc_area_node|vm_area_alloc_pages|__vmalloc_node_range\w*")
_THREAD_STACK = re.compile(r"alloc_thread_stack_node|dup_task_struct|copy_process")
# What pages are used for, by the function that allocated them. The first match from the inner end decides.
_PAGE_CLASSES = (
    (ClassName.VMALLOC, _VMALLOC_PAGES),
    (ClassName.PERCPU, re.compile(r"pcpu_alloc_pages\w*|pcpu_populate_chunk\w*")),
    (ClassName.SLAB, re.compile(r"_{0,3}kmalloc_large\w*|kmalloc_order\w*|allocate_slab\w*|new_slab\w*")),
    (ClassName.PAGE_TABLES, re.compile(r"_*(pte|pmd|pud|p4d|pgd)_alloc\w*")),
    (ClassName.KERNEL_STACK, re.compile(r"alloc_thread_stack_node\w*")),
    (ClassName.ZSMALLOC, re.compile(r"alloc_zspage|zs_malloc")),
    (ClassName.BALLOON, re.compile(r"balloon_page_alloc|vmballoon_\w+")),
)
_ALLOCATORS = {ClassName.SLAB: _SLAB, ClassName.VMALLOC: _VMALLOC, ClassName.PERCPU: _PERCPU}


def page_class(frames: Sequence[str]) -> ClassName:
    """Return the class of pages, by the function that allocated them; AllocPage if no other class matches."""
    for frame in frames:
        name = function_name(frame)
        for class_name, pattern in _PAGE_CLASSES:
            if pattern.fullmatch(name):
                return class_name
    return ClassName.ALLOC_PAGE


def is_vmalloc(frames: Sequence[str]) -> bool:
    """Return whether an area is of vmalloc: others map memory that was allocated otherwise, or belongs to a device."""
    return any(_VMALLOC_PAGES.fullmatch(function_name(frame)) for frame in frames)


def callers(frames: Sequence[str], memory_class: ClassName) -> tuple[ClassName, tuple[str, ...]]:
    """Remove the frames of the class's allocator, never all; a stack of a thread in vmalloc is of class KernelStack."""
    allocator = _ALLOCATORS.get(memory_class)
    start = 0
    if allocator:
        start = next((n for n, one in enumerate(frames) if not allocator.fullmatch(function_name(one))), len(frames))
    rest = tuple(frames[min(start, len(frames) - 1) :])
    if memory_class is ClassName.VMALLOC and rest and _THREAD_STACK.fullmatch(function_name(rest[0])):
        return ClassName.KERNEL_STACK, rest
    return memory_class, rest
