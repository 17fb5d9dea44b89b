"""The class of the breakdown of an allocation site, from its file (pure).

A site only shows which line of source asked for memory, not which allocator gave it. The files below allocate memory of
one class only. A line of any other file may have allocated slab, pages or vmalloc.
"""

from memdiag_api.memory_classes import ClassName

_BY_FUNCTION = {
    "alloc_thread_stack_node": ClassName.KERNEL_STACK,
    "alloc_slab_page": ClassName.SLAB,
}
_BY_FILE = {
    "mm/slub.c": ClassName.SLAB,
    "mm/memory.c": ClassName.ANON_PAGES,
    "mm/huge_memory.c": ClassName.ANON_PAGES,
    "mm/khugepaged.c": ClassName.ANON_PAGES,
    "mm/migrate.c": ClassName.ANON_PAGES,
    "mm/swap_state.c": ClassName.ANON_PAGES,
    "mm/mempolicy.c": ClassName.ANON_PAGES,
    "mm/filemap.c": ClassName.FILE_CACHE,
    "mm/readahead.c": ClassName.FILE_CACHE,
    "mm/shmem.c": ClassName.SHMEM,
    "mm/hugetlb.c": ClassName.HUGETLB,
    "mm/percpu.c": ClassName.PERCPU,
    "mm/percpu-vm.c": ClassName.PERCPU,
    "mm/zsmalloc.c": ClassName.ZSMALLOC,
    "mm/zpdesc.h": ClassName.ZSMALLOC,
    "mm/balloon_compaction.c": ClassName.BALLOON,
    "mm/balloon.c": ClassName.BALLOON,
    "include/linux/mm.h": ClassName.PAGE_TABLES,
    "include/asm-generic/pgalloc.h": ClassName.PAGE_TABLES,
    "mm/page_ext.c": ClassName.MEMMAP,
    "mm/sparse-vmemmap.c": ClassName.MEMMAP,
}


def site_class(place: str, function: str) -> str:
    """Return the class, or an empty text if the file does not show it. `place` is `FILE:LINE`."""
    file = place.rpartition(":")[0].removeprefix("./")
    found = _BY_FUNCTION.get(function) or _BY_FILE.get(file)
    if found is None and file.startswith("arch/") and file.endswith("pgtable.c"):
        found = ClassName.PAGE_TABLES
    return found or ""
