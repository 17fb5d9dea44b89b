"""/proc/vmstat (kernel: mm/vmstat.c, vmstat_text)."""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_ALLOCATED = b"pgalloc_"
_LINE = re.compile(rb"([a-z0-9_]+) (-?\d{1,20})")


@dataclass(frozen=True, slots=True)
class VmStat:
    """Counters that /proc/meminfo does not have. A counter that this kernel does not have is 0."""

    isolated_pages: int
    """Temporarily removed from the LRU lists by reclaim or compaction."""
    zsmalloc_pages: int
    memmap_pages: int
    """The kernel's memory map of memory that was hot-plugged after boot, since Linux 6.10."""
    balloon_pages: int
    """Inflated and not deflated since boot, by balloons with these counters (virtio, VMware)."""
    huge_zero_pages_made: int


def parse_vmstat(text: bytes, *, source: str = "vmstat") -> VmStat:
    """Parse /proc/vmstat. Raises ProcFormatError for a line that is not `name number`."""
    counters: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProcFormatError(source, number, line, "`name number`")
        counters[match[1]] = int(match[2])
    if b"nr_free_pages" not in counters:
        raise ProcFormatError(source, 0, text, "a line nr_free_pages")

    def pages(name: bytes) -> int:
        # Differences of per-CPU counts can be temporarily negative.
        return max(0, counters.get(name, 0))

    return VmStat(
        isolated_pages=pages(b"nr_isolated_anon") + pages(b"nr_isolated_file"),
        zsmalloc_pages=pages(b"nr_zspages"),
        memmap_pages=pages(b"nr_memmap_pages"),
        balloon_pages=max(0, counters.get(b"balloon_inflate", 0) - counters.get(b"balloon_deflate", 0)),
        huge_zero_pages_made=pages(b"thp_zero_page_alloc"),
    )


def parse_allocated_pages(text: bytes, *, source: str = "vmstat") -> int:
    """Return the pages that the page allocator allocated since boot: the sum of `pgalloc_*` (mm/page_alloc.c).

    The counters include all paths, also `alloc_pages_bulk`, which has no tracepoint. Raises ProcFormatError if there
    are none, or one is not a number.
    """
    total: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        name, _, value = line.partition(b" ")
        if name.startswith(_ALLOCATED):
            if not value.isdigit():
                raise ProcFormatError(source, number, line, "`pgalloc_ZONE NUMBER`")
            total = (total or 0) + int(value)
    if total is None:
        raise ProcFormatError(source, 0, text, "lines `pgalloc_ZONE NUMBER`")
    return total
