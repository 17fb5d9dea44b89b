"""Per-CPU free lists from /proc/zoneinfo (kernel: mm/vmstat.c, zoneinfo_show_print)."""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_ZONE = re.compile(rb"Node (\d{1,9}), zone +(\S+)")
_COUNT = re.compile(rb" +count: +(-?\d{1,15})")


@dataclass(frozen=True, slots=True)
class ZoneFreeLists:
    """Pages of one zone on per-CPU lists: free, but not counted in MemFree."""

    node: int
    zone: str
    per_cpu_pages: tuple[int, ...]


def parse_zoneinfo(text: bytes, *, source: str = "zoneinfo") -> list[ZoneFreeLists]:
    """Parse the `pagesets` of every zone. A zone without them has an empty tuple.

    Raises ProcFormatError for a count that is not a number or not in a zone, and for a file without zones.
    """
    zones: list[tuple[int, str, list[int]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(b"Node"):
            zone = _ZONE.fullmatch(line)
            if zone is None:
                raise ProcFormatError(source, number, line, "`Node N, zone NAME`")
            zones.append((int(zone[1]), zone[2].decode(errors="backslashreplace"), []))
        elif line.lstrip().startswith(b"count:"):
            count = _COUNT.fullmatch(line)
            if count is None or not zones:
                raise ProcFormatError(source, number, line, "`count: NUMBER` of a zone's per-CPU list")
            # The kernel reads the count of a list without its lock.
            zones[-1][2].append(max(0, int(count[1])))
    if not zones:
        raise ProcFormatError(source, 0, text, "at least one line `Node N, zone NAME`")
    return [ZoneFreeLists(node, name, tuple(counts)) for node, name, counts in zones]
