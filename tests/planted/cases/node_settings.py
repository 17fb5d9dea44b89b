"""Memory that belongs to a setting of the node: huge pages that nobody uses, a disk in compressed memory."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from planted.cases.case import Answer, Case, PlantedTruth, UnavailableError
from planted.child import Truth, held
from planted.sockets.common import MIB

_HUGE_PAGES, _HUGE_PAGE_BYTES = Path("/proc/sys/vm/nr_hugepages"), 2 * MIB
_ZRAM = Path("/sys/block/zram0")
_BLKFLSBUF = 0x1261


@contextlib.contextmanager
def _idle_huge_pages() -> Iterator[PlantedTruth]:
    with held(_reserve, 500) as child:
        yield PlantedTruth(
            Answer.HARMLESS,
            ("UnusedHugePages",),
            ("Hugetlb",),
            child.truth["size_bytes"],
            owning_kinds=("UnusedHugePages",),
        )


@contextlib.contextmanager
def _zram_disk() -> Iterator[PlantedTruth]:
    if not _ZRAM.exists():
        raise UnavailableError("there is no zram device")
    if (_ZRAM / "disksize").read_text().strip() != "0":
        raise UnavailableError("the zram device is in use")
    with held(_fill_zram, 300 * MIB) as child:
        yield PlantedTruth(
            Answer.HARMLESS, ("LargeClass", "LargeHolder"), ("Zsmalloc",), child.truth["size_bytes"], names=("zram",)
        )


def _reserve(kept: ExitStack, pages: int) -> Truth:
    before = int(_HUGE_PAGES.read_text())
    kept.callback(_HUGE_PAGES.write_text, str(before))
    _HUGE_PAGES.write_text(str(before + pages))
    return {"size_bytes": (int(_HUGE_PAGES.read_text()) - before) * _HUGE_PAGE_BYTES}


def _fill_zram(kept: ExitStack, size_bytes: int) -> Truth:
    """Data that cannot be compressed."""
    kept.callback((_ZRAM / "reset").write_text, "1")
    (_ZRAM / "disksize").write_text(str(1 << 30))
    disk = os.open("/dev/zram0", os.O_WRONLY)
    for _ in range(size_bytes // MIB):
        os.write(disk, os.urandom(MIB))
    os.fsync(disk)
    fcntl.ioctl(disk, _BLKFLSBUF)  # or the page cache of the device has it a second time
    os.close(disk)
    used_bytes = int((_ZRAM / "mm_stat").read_text().split()[2])
    return {"size_bytes": used_bytes}


CASES = (
    Case("hugepages_idle", "500 huge pages of 2 MiB that nobody uses", _idle_huge_pages),
    Case("zram_disk", "300 MiB of random data on a disk in compressed memory", _zram_disk),
)
