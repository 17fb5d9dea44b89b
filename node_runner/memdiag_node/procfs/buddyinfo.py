"""/proc/buddyinfo: free blocks by order and zone (kernel: mm/vmstat.c, frag_show_print)."""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(rb"Node (\d{1,6}), zone +(\S{1,32})((?: +\d{1,15})+) *")
_MAX_ORDERS = 16


@dataclass(frozen=True, slots=True)
class ZoneBlocks:
    """Free blocks of one zone. A block of order N has 2^N pages."""

    numa_node: int
    zone: str
    blocks: tuple[int, ...]
    """By order."""


def parse_buddyinfo(text: bytes, *, source: str = "buddyinfo") -> list[ZoneBlocks]:
    """Parse the file. Raises ProcFormatError for a line of another form, and for a file without zones."""
    zones = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        counts = match[3].split() if match else []
        if match is None or len(counts) > _MAX_ORDERS:
            raise ProcFormatError(source, number, line, "`Node N, zone NAME COUNT...`")
        zones.append(ZoneBlocks(int(match[1]), match[2].decode(errors="backslashreplace"), tuple(map(int, counts))))
    if not zones:
        raise ProcFormatError(source, 0, text, "at least one zone")
    return zones


def free_pages_by_order(zones: list[ZoneBlocks]) -> list[int]:
    """Return the free pages in blocks of each order, over all zones."""
    orders = max((len(zone.blocks) for zone in zones), default=0)
    return [sum(zone.blocks[order] << order for zone in zones if order < len(zone.blocks)) for order in range(orders)]
