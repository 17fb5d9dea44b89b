"""/proc/allocinfo: allocations by source line (kernel: lib/alloc_tag.c, CONFIG_MEM_ALLOC_PROFILING, since Linux 6.10).

The file has a heading of two lines, then for each line of source that allocates:

    <size> <calls> <file>:<line> [<module>] func:<function>
"""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(
    rb" *(?P<size>-?\d{1,18}) +(?P<calls>-?\d{1,18}) (?P<place>\S{1,400}:\d{1,9})"
    rb"(?: \[(?P<module>[^\]\s]{1,64})\])? func:(?P<function>\S{1,400})(?P<rest>(?: \S+)*) *"
)
_HEADING = b"allocinfo - version:"


@dataclass(frozen=True, slots=True)
class Site:
    """A line of source that allocates."""

    place: str
    """File and line."""
    module: str
    """Empty for the kernel itself."""
    function: str
    size_bytes: int
    """Allocated and not freed."""
    calls: int


def parse_allocinfo(text: bytes, *, source: str = "allocinfo") -> list[Site]:
    """Return the sites that have memory. Empty if the kernel does not count (sysctl vm.mem_profiling is off).

    Words after the function are ignored: later kernels mark figures that are not exact. Raises ProcFormatError without
    the heading, and for a line of another form.
    """
    if not text.startswith(_HEADING):
        raise ProcFormatError(source, 1, text, "`allocinfo - version: N`")
    sites = []
    for number, line in enumerate(text.splitlines()[1:], start=2):
        if line.startswith(b"#") or not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProcFormatError(source, number, line, "`SIZE CALLS FILE:LINE [MODULE] func:NAME`")
        size_bytes = int(match["size"])  # can be negative for a moment: the counts of CPUs are added up one by one
        if size_bytes > 0:
            place, module, function = (
                (match[name] or b"").decode(errors="backslashreplace") for name in ("place", "module", "function")
            )
            sites.append(Site(place, module, function, size_bytes, max(0, int(match["calls"]))))
    return sites
