"""Memory usage of the node: application, kernel and free memory that add up to MemTotal.

The kernel does not count allocpage, the pages that kernel code allocates directly from the buddy allocator. It is the
rest of MemTotal after all other uses are subtracted:

    AllocPage = MemTotal
              - MemFree - pages on per-CPU free lists
              - pages on the LRU lists, including the unevictable list, and pages temporarily isolated from them
              - Hugetlb - the huge zero page
              - Slab - PageTables - SecPageTables
              - vmalloc (kernel stacks are part of it) - (Percpu - its first chunk, which is outside of MemTotal)
              - zsmalloc - the memory map of hot-plugged memory - a balloon that is still part of MemTotal

docs/breakdown.md has the reason for each term and the measured error. The counters are not read at the same moment,
and pages move between them meanwhile. So several readings are taken, and the one with the median AllocPage is shown,
unchanged. If free pages are reported to a hypervisor, the lower quartile is used: pages that are being reported are on
no list, so readings at that moment have too much AllocPage, and none has too little.
"""

from collections.abc import Sequence
from typing import Literal

from memdiag_api.evidence import Breakdown, MemoryClass
from memdiag_api.memory_classes import ClassName
from memdiag_node.breakdown.reading import MemoryReading

Group = Literal["Application", "Kernel", "Free"]

_GROUPS: dict[ClassName, Group] = {
    ClassName.ANON_PAGES: "Application",
    ClassName.FILE_CACHE: "Application",
    ClassName.SHMEM: "Application",
    ClassName.HUGETLB: "Application",
    ClassName.HUGE_ZERO_PAGE: "Application",
    ClassName.ALLOC_PAGE: "Kernel",
    ClassName.SUNRECLAIM: "Kernel",
    ClassName.SRECLAIMABLE: "Kernel",
    ClassName.VMALLOC: "Kernel",
    ClassName.KERNEL_STACK: "Kernel",
    ClassName.PAGE_TABLES: "Kernel",
    ClassName.SECONDARY_PAGE_TABLES: "Kernel",
    ClassName.PERCPU: "Kernel",
    ClassName.ZSMALLOC: "Kernel",
    ClassName.MEMMAP: "Kernel",
    ClassName.BALLOON: "Kernel",
    ClassName.MEM_FREE: "Free",
    ClassName.PER_CPU_LISTS: "Free",
}

# If an inconsistent reading makes AllocPage negative, pages were counted twice. Pages move fastest in these classes.
_REDUCED_FIRST = (ClassName.PER_CPU_LISTS, ClassName.MEM_FREE, ClassName.FILE_CACHE)


def breakdown(readings: Sequence[MemoryReading], *, earlier: Sequence[MemoryReading] = ()) -> Breakdown:
    """Return a typical reading in classes that add up to MemTotal, largest first in each group, without empty ones.

    `earlier` are readings from the start of the window, for the changes. Raises ValueError without
    readings.
    """
    if not readings:
        raise ValueError("a breakdown needs at least one reading")
    typical = _typical(readings)
    sizes = class_sizes(typical)
    before = class_sizes(_typical(earlier)) if earlier else {}
    groups = list(dict.fromkeys(_GROUPS.values()))
    shown = sorted(sizes.items(), key=lambda item: (groups.index(_GROUPS[item[0]]), -item[1]))
    return Breakdown(
        mem_total_bytes=typical.meminfo.mem_total_bytes,
        classes=[
            MemoryClass(
                name=name,
                group=_GROUPS[name],
                size_bytes=size,
                change_bytes=size - before.get(name, 0) if before else None,
            )
            for name, size in shown
            if size
        ],
        alloc_page_bytes=sizes[ClassName.ALLOC_PAGE],
        alloc_page_error_bytes=_half_spread_bytes(readings)
        + typical.surroundings.first_chunk_error_bytes
        + typical.surroundings.unfolded_error_bytes,
        alloc_page_change_bytes=sizes[ClassName.ALLOC_PAGE] - before[ClassName.ALLOC_PAGE] if before else 0,
    )


def alloc_page_bytes(reading: MemoryReading) -> int:
    """Return AllocPage by the formula above. It is negative if the reading is inconsistent by more than AllocPage."""
    return reading.meminfo.mem_total_bytes - sum(_counted(reading).values())


def class_sizes(reading: MemoryReading) -> dict[ClassName, int]:
    """Return bytes by class, none of them negative, that add up to MemTotal."""
    sizes = _counted(reading)
    rest_bytes = reading.meminfo.mem_total_bytes - sum(sizes.values())
    sizes[ClassName.ALLOC_PAGE] = max(0, rest_bytes)
    missing_bytes = max(0, -rest_bytes)
    for name in (*_REDUCED_FIRST, *sizes):
        given_bytes = min(missing_bytes, sizes[name])
        sizes[name] -= given_bytes
        missing_bytes -= given_bytes
    return sizes


def _counted(reading: MemoryReading) -> dict[ClassName, int]:
    """Return the bytes of every class that the kernel counts, each page in one class, none of them negative."""
    meminfo, vmstat, surroundings = reading.meminfo, reading.vmstat, reading.surroundings
    page = surroundings.page_size_bytes
    user_bytes = meminfo.lru_bytes + vmstat.isolated_pages * page
    # The LRU lists have three kinds of pages. AnonPages and Shmem are counted. The rest is the cache of files and of
    # block devices, and swapped-in pages that no process maps.
    anon_bytes = min(meminfo.anon_bytes, user_bytes)
    shmem_bytes = min(meminfo.shmem_bytes, user_bytes - anon_bytes)
    stack_bytes = meminfo.kernel_stack_bytes
    if surroundings.stacks_in_vmalloc:
        stack_bytes = min(stack_bytes, reading.vmalloc_bytes)
    return {
        ClassName.ANON_PAGES: anon_bytes,
        ClassName.SHMEM: shmem_bytes,
        ClassName.FILE_CACHE: user_bytes - anon_bytes - shmem_bytes,
        ClassName.HUGETLB: meminfo.hugetlb_bytes,
        ClassName.HUGE_ZERO_PAGE: surroundings.huge_page_bytes if vmstat.huge_zero_pages_made else 0,
        ClassName.SRECLAIMABLE: meminfo.slab_reclaimable_bytes,
        ClassName.SUNRECLAIM: meminfo.slab_unreclaimable_bytes,
        ClassName.KERNEL_STACK: stack_bytes,
        ClassName.VMALLOC: reading.vmalloc_bytes - (stack_bytes if surroundings.stacks_in_vmalloc else 0),
        ClassName.PAGE_TABLES: meminfo.page_table_bytes,
        ClassName.SECONDARY_PAGE_TABLES: meminfo.secondary_page_table_bytes,
        ClassName.PERCPU: max(0, meminfo.percpu_bytes - surroundings.first_chunk_bytes),
        ClassName.ZSMALLOC: vmstat.zsmalloc_pages * page,
        ClassName.MEMMAP: vmstat.memmap_pages * page,
        ClassName.BALLOON: _balloon_bytes(reading),
        ClassName.MEM_FREE: meminfo.mem_free_bytes,
        ClassName.PER_CPU_LISTS: reading.per_cpu_list_bytes,
    }


def _balloon_bytes(reading: MemoryReading) -> int:
    """Return the part of MemTotal in a balloon, from meminfo if it has the field."""
    if not reading.surroundings.balloon_in_total:
        return 0
    if reading.meminfo.balloon_bytes is not None:
        return reading.meminfo.balloon_bytes
    return reading.vmstat.balloon_pages * reading.surroundings.page_size_bytes


def _typical(readings: Sequence[MemoryReading]) -> MemoryReading:
    """Return the reading whose AllocPage is the median, or the lower quartile: see above."""
    in_order = sorted(readings, key=alloc_page_bytes)
    return in_order[len(in_order) // (4 if _overstate(readings) else 2)]


def _half_spread_bytes(readings: Sequence[MemoryReading]) -> int:
    """Return half the distance between the quartiles. On a busy node one reading in eight is far from the median.

    If readings can only be too large, return half the distance between the lowest and the median.
    """
    sizes = sorted(map(alloc_page_bytes, readings))
    cut = len(sizes) // 4
    lowest, highest = (sizes[0], sizes[len(sizes) // 2]) if _overstate(readings) else (sizes[cut], sizes[-1 - cut])
    return (highest - lowest) // 2


def _overstate(readings: Sequence[MemoryReading]) -> bool:
    """Return whether some readings may have too much AllocPage, and none too little."""
    return readings[0].surroundings.free_pages_reported
