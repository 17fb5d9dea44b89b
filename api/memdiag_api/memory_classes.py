"""Names of the memory classes of a breakdown, as spelled in documents and reports (docs/breakdown.md)."""

from enum import StrEnum


class ClassName(StrEnum):
    """A class of the breakdown, with its name in /proc/meminfo if it has one."""

    ANON_PAGES = "AnonPages"
    FILE_CACHE = "FileCache"
    SHMEM = "Shmem"
    HUGETLB = "Hugetlb"
    HUGE_ZERO_PAGE = "HugeZeroPage"
    ALLOC_PAGE = "AllocPage"
    SUNRECLAIM = "SUnreclaim"
    SRECLAIMABLE = "SReclaimable"
    VMALLOC = "Vmalloc"
    KERNEL_STACK = "KernelStack"
    PAGE_TABLES = "PageTables"
    SECONDARY_PAGE_TABLES = "SecPageTables"
    PERCPU = "Percpu"
    ZSMALLOC = "Zsmalloc"
    MEMMAP = "Memmap"
    BALLOON = "Balloon"
    MEM_FREE = "MemFree"
    PER_CPU_LISTS = "PerCpuLists"
    SLAB = "Slab"
    """Of a call stack: SUNRECLAIM or SRECLAIMABLE. Its slab cache shows which, if it is known."""
