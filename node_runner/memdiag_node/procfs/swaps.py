"""/proc/swaps: the swap devices and files (kernel: mm/swapfile.c, swap_show)."""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(rb"(\S+)\s+(?:partition|file)\s+(\d{1,15})\s+(\d{1,15})\s+(-?\d+)")
_BYTES_PER_KB = 1024
_MAX_PATH = 256


@dataclass(frozen=True, slots=True)
class Swap:
    """A device or file that is used for swap."""

    path: str
    """With blanks and special characters as octal numbers, and ` (deleted)` for a deleted file."""
    size_bytes: int
    used_bytes: int


def parse_swaps(text: bytes, *, source: str = "swaps") -> list[Swap]:
    """Parse the lines after the heading. Raises ProcFormatError for a line that is not `PATH TYPE SIZE USED PRIO`."""
    swaps = []
    for number, line in enumerate(text.splitlines()[1:], start=2):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProcFormatError(source, number, line, "`PATH TYPE SIZE USED PRIORITY`")
        path = match[1].decode(errors="backslashreplace")[:_MAX_PATH]
        swaps.append(Swap(path, int(match[2]) * _BYTES_PER_KB, int(match[3]) * _BYTES_PER_KB))
    return swaps
