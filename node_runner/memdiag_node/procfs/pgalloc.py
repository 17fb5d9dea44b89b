"""Pages that the page allocator handed out since boot, from /proc/vmstat (kernel: mm/page_alloc.c, rmqueue).

These counters see every path, also `alloc_pages_bulk`, which passes no tracepoint.
"""

from memdiag_node.procfs.errors import ProcFormatError

_PREFIX = b"pgalloc_"


def parse_allocated_pages(text: bytes, *, source: str = "vmstat") -> int:
    """The sum of all zones' `pgalloc_*`. Raises ProcFormatError when there are none, or one is no number."""
    total: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        name, _, value = line.partition(b" ")
        if name.startswith(_PREFIX):
            if not value.isdigit():
                raise ProcFormatError(source, number, line, "`pgalloc_ZONE NUMBER`")
            total = (total or 0) + int(value)
    if total is None:
        raise ProcFormatError(source, 0, text, "lines `pgalloc_ZONE NUMBER`")
    return total
