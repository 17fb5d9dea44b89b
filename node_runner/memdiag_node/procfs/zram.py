"""zram devices (kernel: drivers/block/zram/zram_drv.c, Documentation/admin-guide/blockdev/zram.rst)."""

from dataclasses import dataclass
from pathlib import Path

from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.hugepages import parse_count

_MIN_FIELDS = 3


@dataclass(frozen=True, slots=True)
class Zram:
    """A device, in bytes."""

    name: str
    disk_bytes: int
    stored_bytes: int
    """What was written and is stored, uncompressed."""
    taken_bytes: int
    """Memory that it takes, including the waste of its allocator."""


def parse_mm_stat(text: bytes, *, source: str = "mm_stat") -> tuple[int, int]:
    """Return the stored bytes, uncompressed, and the bytes of memory that they take.

    The file has orig_data_size, compr_data_size, mem_used_total and more, in one line. Raises ProcFormatError.
    """
    words = text.split()
    if len(words) < _MIN_FIELDS:
        raise ProcFormatError(source, 1, text, "at least three numbers")
    return parse_count(words[0], source=source), parse_count(words[2], source=source)


def read_zram(sys: Path) -> list[Zram]:
    """Return every zram device that has a size, by name. Raises ProcFormatError if a file is malformed."""
    devices = []
    for folder in sorted((sys / "block").glob("zram*")):
        try:
            disk, stat = (folder / "disksize").read_bytes(), (folder / "mm_stat").read_bytes()
        except OSError:  # removed meanwhile, or a kernel without mm_stat (before Linux 4.2)
            continue
        disk_bytes = parse_count(disk, source=str(folder / "disksize"))
        if disk_bytes:
            devices.append(Zram(folder.name, disk_bytes, *parse_mm_stat(stat, source=str(folder / "mm_stat"))))
    return devices
