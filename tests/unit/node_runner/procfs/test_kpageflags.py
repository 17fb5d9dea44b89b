"""Frame kinds from flag words of a 6.18 kernel, and the other files with an entry for each frame."""

from pathlib import Path

import numpy as np
import pytest

from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.kpageflags import FrameKind, FrameTable, FrameUse, classify, frame_uses, is_anonymous
from memdiag_node.procfs.memory_map import frames_in, parse_zone_ranges
from memdiag_node.procfs.vmstat import parse_allocated_pages
from support.fixtures import RECORDED, RECORDED_IDS


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (0x0, FrameKind.DIRECT),
        (0x8000, FrameKind.DIRECT),  # the head of the block of a queued fragment
        (0x10000, FrameKind.DIRECT),  # its tail
        (0x800, FrameKind.DIRECT),  # mapped only: a packet ring
        (0x810, FrameKind.DIRECT),  # mapped and dirty: a ring that user space has written to
        (0x100000000, FrameKind.DIRECT),  # reserved
        (0x400, FrameKind.FREE),
        (0x80, FrameKind.SLAB),
        (0x201080, FrameKind.SLAB),  # slab frames also look anonymous and KSM
        (0x4000000, FrameKind.PAGE_TABLES),
        (0x5868, FrameKind.USER_MEMORY),
        (0x402000828, FrameKind.USER_MEMORY),
        (0x4838, FrameKind.USER_MEMORY),  # shared memory
        (0x20000, FrameKind.HUGETLB),
        (0x800000, FrameKind.BALLOON),
        (0x1000000, FrameKind.HUGE_ZERO_PAGE),
    ],
)
def test_kind(flags: int, kind: FrameKind) -> None:
    assert classify(np.array([flags], np.uint64)).tolist() == [kind]


def test_anonymous_memory_is_distinguished_from_other_memory() -> None:
    flags = np.array([0x5868, 0x200045868, 0x201080, 0x0], np.uint64)
    assert is_anonymous(flags).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("flags", "use"),
    [
        (0x5868, FrameUse.ANONYMOUS),
        (0x41868, FrameUse.ANONYMOUS),  # locked
        (0x1828, FrameUse.ANONYMOUS),  # MADV_FREE: not backed by swap space
        (0x409068, FrameUse.ANONYMOUS),  # the head of a transparent huge page
        (0x411068, FrameUse.ANONYMOUS),  # its tail
        (0x828, FrameUse.FILE),
        (0x402000828, FrameUse.FILE),
        (0x868, FrameUse.ACTIVE_FILE),
        (0x40828, FrameUse.FILE),  # locked, on the unevictable list
        (0x4838, FrameUse.SHMEM),
        (0x4878, FrameUse.SHMEM),
        (0x20000, FrameUse.HUGETLB),
        (0x80, FrameUse.NONE),  # slab
        (0x201080, FrameUse.NONE),  # slab frames also look anonymous and KSM
        (0x400, FrameUse.NONE),  # free
        (0x4001000, FrameUse.NONE),  # page tables that look anonymous
        (0x0, FrameUse.NONE),
        (0x8000, FrameUse.NONE),
        (0x800, FrameUse.NONE),  # a packet ring that is mapped
        (0x1000000, FrameUse.NONE),  # the huge zero page
    ],
)
def test_use(flags: int, use: FrameUse) -> None:
    assert frame_uses(np.array([flags], np.uint64)).tolist() == [use]


def test_a_table_is_read_by_frame_and_ends_where_memory_ends(tmp_path: Path) -> None:
    path = tmp_path / "kpageflags"
    np.arange(1000, dtype="<u8").tofile(path)
    with FrameTable(path) as table:
        assert table.read(10, 3).tolist() == [10, 11, 12]
        assert table.read(998, 10).tolist() == [998, 999]
        assert table.read(5000, 1).tolist() == []


@pytest.mark.parametrize("machine", RECORDED, ids=RECORDED_IDS)
def test_recorded_machines(machine: Path) -> None:
    zoneinfo = (machine / "proc/zoneinfo").read_bytes()
    managed = sum(int(line.split()[1]) for line in zoneinfo.splitlines() if line.split()[:1] == [b"managed"])
    assert managed < frames_in(parse_zone_ranges(zoneinfo))
    assert parse_allocated_pages((machine / "proc/vmstat").read_bytes()) > 0


def test_files_without_required_lines_are_rejected() -> None:
    with pytest.raises(ProcFormatError, match="spanned"):
        parse_zone_ranges(b"Node 0, zone Normal\n")
    with pytest.raises(ProcFormatError, match="zoneinfo:1"):
        parse_zone_ranges(b"spanned many\n")
    with pytest.raises(ProcFormatError, match="pgalloc"):
        parse_allocated_pages(b"pgfree 12\n")
    with pytest.raises(ProcFormatError, match="vmstat:2"):
        parse_allocated_pages(b"pgfree 12\npgalloc_normal x\n")
