"""Ranges of memory: from memory blocks in sysfs, or from zones, never from the highest frame number."""

from pathlib import Path

import pytest

from memdiag_node.procfs.memory_map import SECTION_FRAMES, FrameRange, parse_zone_ranges, read_memory_map

PAGE_BYTES = 4096
BLOCK_BYTES = 1 << 31
BLOCK_FRAMES = BLOCK_BYTES // PAGE_BYTES
DEVICE_END_FRAME = (1 << 52) // PAGE_BYTES

ZONE = """Node {node}, zone {name:>8}
  pages free     100
        spanned  {spanned}
        present  {spanned}
  start_pfn:           {first}
"""


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """/proc and /sys of a machine with 2 GiB at 0, 10 GiB at 4 GiB, and memory of a device at the end."""
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    proc.mkdir()
    zones = [
        ("DMA", 1, 4095),
        ("DMA32", 4096, BLOCK_FRAMES - 4096),
        ("Normal", 2 * BLOCK_FRAMES, 5 * BLOCK_FRAMES),
        ("Movable", 0, 0),
        ("Device", DEVICE_END_FRAME - (1 << 20), 1 << 20),
    ]
    text = "".join(ZONE.format(node=0, name=name, first=first, spanned=spanned) for name, first, spanned in zones)
    (proc / "zoneinfo").write_text(text)
    folder = sys / "devices/system/memory"
    for number in (0, 2, 3, 4, 5, 6, 9):
        (folder / f"memory{number}").mkdir(parents=True)
        (folder / f"memory{number}/online").write_text("0\n" if number == 9 else "1\n")
    (folder / "block_size_bytes").write_text(f"{BLOCK_BYTES:x}\n")
    (folder / "auto_online_blocks").write_text("online\n")
    return proc, sys


EXPECTED = [FrameRange(0, BLOCK_FRAMES), FrameRange(2 * BLOCK_FRAMES, 7 * BLOCK_FRAMES)]


def test_online_blocks_count(roots: tuple[Path, Path]) -> None:
    assert read_memory_map(*roots, page_bytes=PAGE_BYTES) == EXPECTED


def test_without_memory_blocks_zones_count_but_not_those_of_devices(roots: tuple[Path, Path], tmp_path: Path) -> None:
    assert read_memory_map(roots[0], tmp_path / "none", page_bytes=PAGE_BYTES) == EXPECTED


def test_ranges_are_whole_sections_and_do_not_overlap() -> None:
    zones = [("DMA", 1, 4095), ("Normal", 5000, 70_000), ("Movable", 70_000, 1)]
    text = "".join(ZONE.format(node=0, name=name, first=first, spanned=spanned) for name, first, spanned in zones)
    assert parse_zone_ranges(text.encode()) == [FrameRange(0, 3 * SECTION_FRAMES)]


def test_both_sources_agree_on_this_machine(tmp_path: Path) -> None:
    """Zones can span holes, memory blocks cannot."""
    blocks = read_memory_map(Path("/proc"), Path("/sys"), page_bytes=PAGE_BYTES)
    zones = read_memory_map(Path("/proc"), tmp_path, page_bytes=PAGE_BYTES)
    assert blocks[-1].end == zones[-1].end
    for one in blocks:
        assert any(zone.first <= one.first and one.end <= zone.end for zone in zones)
