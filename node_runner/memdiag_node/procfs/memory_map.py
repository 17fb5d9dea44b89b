"""The page frames that are RAM (kernel: drivers/base/memory.c, mm/vmstat.c).

The number of the last frame is not enough: memory of devices (HMM, persistent memory) may be at the top of the
physical address space, and there may be large holes between banks.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from memdiag_node.procfs.errors import ProcFormatError

SECTION_FRAMES = 1 << 15
"""Ranges start and end at multiples of this: 128 MiB, a memory section of x86-64."""

_BLOCK = re.compile(r"memory(\d{1,12})")
_ZONE = re.compile(rb"Node +\d+, zone +(\S+)")
_DEVICE_ZONE = b"Device"


class FrameRange(NamedTuple):
    """Frames from `first` up to `end`, exclusive."""

    first: int
    end: int


def read_memory_map(proc: Path, sys: Path, *, page_bytes: int) -> list[FrameRange]:
    """Return the frames of the machine's memory in ascending order: of online memory blocks, or else of the zones.

    /sys/devices/system/memory requires CONFIG_MEMORY_HOTPLUG. Raises OSError or ProcFormatError if /proc/zoneinfo does
    not have the ranges either.
    """
    folder = sys / "devices/system/memory"
    try:
        blocks = _online_blocks(folder, page_bytes)
    except OSError:
        blocks = []
    if blocks:
        return _whole_sections(blocks)
    path = proc / "zoneinfo"
    return parse_zone_ranges(path.read_bytes(), source=str(path))


def parse_zone_ranges(text: bytes, *, source: str = "zoneinfo") -> list[FrameRange]:
    """Return the frames that the zones of /proc/zoneinfo span, except the zone of devices.

    Raises ProcFormatError if no zone has its start and its number of spanned frames.
    """
    ranges: list[FrameRange] = []
    zone, spanned = b"", 0
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if match := _ZONE.match(line):
            zone, spanned = match[1], 0
        elif words[:1] in ([b"spanned"], [b"start_pfn:"]):
            if len(words) < 2 or not words[1].isdigit():  # noqa: PLR2004 - a name and its number
                raise ProcFormatError(source, number, line, "a number of frames")
            if words[0] == b"spanned":
                spanned = int(words[1])
            elif spanned and zone != _DEVICE_ZONE:
                ranges.append(FrameRange(int(words[1]), int(words[1]) + spanned))
    if not ranges:
        raise ProcFormatError(source, 0, text, "zones with `spanned` and `start_pfn`")
    return _whole_sections(ranges)


def frames_in(ranges: Iterable[FrameRange]) -> int:
    """Return the number of frames."""
    return sum(one.end - one.first for one in ranges)


def _online_blocks(folder: Path, page_bytes: int) -> list[FrameRange]:
    """Return the memory blocks that are online. Memory of devices has none."""
    block_frames = int((folder / "block_size_bytes").read_text(), 16) // page_bytes
    numbers = [int(match[1]) for entry in folder.iterdir() if (match := _BLOCK.fullmatch(entry.name))]
    online = [number for number in sorted(numbers) if (folder / f"memory{number}/online").read_text().strip() == "1"]
    return [FrameRange(number * block_frames, (number + 1) * block_frames) for number in online]


def _whole_sections(ranges: Iterable[FrameRange]) -> list[FrameRange]:
    """Return these ranges in order, extended to whole sections, with adjacent ranges merged."""
    merged: list[FrameRange] = []
    for one in sorted(ranges):
        first, end = one.first // SECTION_FRAMES * SECTION_FRAMES, -(-one.end // SECTION_FRAMES) * SECTION_FRAMES
        if merged and first <= merged[-1].end:
            merged[-1] = FrameRange(merged[-1].first, max(end, merged[-1].end))
        else:
            merged.append(FrameRange(first, end))
    return merged
