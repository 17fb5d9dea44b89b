"""Which of the listed stacks count: the same memory can be in stacks of pages and in stacks of objects (pure)."""

from collections.abc import Collection, Sequence

from memdiag_api.evidence import AllocationUnit, Stack
from memdiag_api.memory_classes import ClassName

_ORDERS_OF_SLABS_ONLY = {"0", "1"}
"""kmalloc has caches for up to two pages. Larger blocks are pages of their own."""
_PARTS: dict[str, str] = {ClassName.KERNEL_STACK: ClassName.VMALLOC}
"""Stacks of threads are areas of vmalloc, and are traced with them."""


def counted_stacks(stacks: Sequence[Stack], object_classes: Collection[str]) -> list[int]:
    """Return the indexes of the stacks that count, in their order: each byte is in one of them at most.

    `object_classes`: the classes of which objects were traced (Trace.object_classes). Their pages are left out, except
    for kmalloc blocks that are too large for a slab cache and that are not among the objects.
    """
    has_large_objects = any(one.unit is AllocationUnit.OBJECTS and _is_outside_caches(one) for one in stacks)
    return [
        index
        for index, stack in enumerate(stacks)
        if stack.unit is AllocationUnit.OBJECTS
        or _PARTS.get(stack.memory_class, stack.memory_class) not in object_classes
        or (not has_large_objects and is_large_kmalloc(stack))
    ]


def _is_outside_caches(stack: Stack) -> bool:
    return stack.memory_class == ClassName.SLAB and not stack.slab_cache


def is_large_kmalloc(stack: Stack) -> bool:
    """Return whether it is kmalloc of blocks too large for a cache, and not of slabs whose cache is not known."""
    return _is_outside_caches(stack) and not _ORDERS_OF_SLABS_ONLY.intersection(stack.outstanding_by_order)
