"""Memory of the machine that the kernel's allocator does not have (kernel: kernel/resource.c, mm/vmstat.c).

/proc/iomem shows addresses only to processes with CAP_SYS_ADMIN; all others see zeros.
"""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(rb"( *)([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*)")
_ZONE = re.compile(rb"Node +\d+, zone +(\S+)")
_PRESENT = re.compile(rb" +present +(\d{1,15})")
_DEVICE_ZONE = b"Device"


@dataclass(frozen=True, slots=True)
class Areas:
    """Sizes of areas of physical memory by their name."""

    ram_bytes: int
    kernel_bytes: int
    """Code, read-only data, data and bss."""
    crash_kernel_bytes: int


def parse_iomem(text: bytes, *, source: str = "iomem") -> Areas | None:
    """Parse /proc/iomem. None if its addresses are hidden. Raises ProcFormatError for a line of another form."""
    ram_bytes = kernel_bytes = crash_bytes = 0
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProcFormatError(source, number, line, "`START-END : NAME`")
        first, last = int(match[2], 16), int(match[3], 16)
        if last <= first:
            continue
        size_bytes, name = last - first + 1, match[4]
        if name == b"System RAM" and not match[1]:
            ram_bytes += size_bytes
        elif name.startswith(b"Kernel "):
            kernel_bytes += size_bytes
        elif name.startswith(b"Crash kernel"):
            crash_bytes += size_bytes
    return Areas(ram_bytes, kernel_bytes, crash_bytes) if ram_bytes else None


def parse_present_pages(text: bytes, *, source: str = "zoneinfo") -> int:
    """Return the pages of all zones of /proc/zoneinfo that exist, without memory of devices.

    Raises ProcFormatError if no zone shows them.
    """
    pages, zone = 0, b""
    for line in text.splitlines():
        if match := _ZONE.match(line):
            zone = match[1]
        elif (match := _PRESENT.fullmatch(line)) and zone != _DEVICE_ZONE:
            pages += int(match[1])
    if not pages:
        raise ProcFormatError(source, 0, text, "zones with `present`")
    return pages
