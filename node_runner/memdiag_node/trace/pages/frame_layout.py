"""The layout of the trace's table: the frames of the machine's memory, section by section, without the holes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdiag_api.units import format_bytes
from memdiag_node.procfs.memory_map import SECTION_FRAMES, FrameRange, frames_in

ENTRY_BYTES = 2
MAX_ORDER = 10
"""The highest order of a traced block: include/linux/mmzone.h, MAX_PAGE_ORDER by default.

Larger ones, which arm64 has with pages of 64 KiB, count as lost."""
CHUNK_FRAMES = 1 << MAX_ORDER
"""Frames of one entry of the table: no block extends beyond its end."""
_SOME_TABLE_BYTES = 64 << 20
_MAX_RATIO = 4


class FrameRun(NamedTuple):
    """Frames that are adjacent in the table."""

    place: int
    """The table index of the first one."""
    first_frame: int
    frames: int


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """The table's entries for the memory in `ranges`, which are whole sections, ascending."""

    ranges: Sequence[FrameRange]

    @property
    def entries(self) -> int:
        """The number of frames that the table has room for."""
        return frames_in(self.ranges)

    @property
    def chunks(self) -> int:
        """Chunks of the table."""
        return self.entries // CHUNK_FRAMES

    @property
    def end_frame(self) -> int:
        """The first frame after all memory."""
        return self.ranges[-1].end

    @property
    def sections(self) -> int:
        """Entries of `index`."""
        return self.end_frame // SECTION_FRAMES

    def index(self) -> npt.NDArray[np.uint64]:
        """For each section of frames: 1 + its index in the table, in sections; 0 for a hole."""
        index = np.zeros(self.sections, np.uint64)
        for run in self.runs():
            first, count = run.first_frame // SECTION_FRAMES, run.frames // SECTION_FRAMES
            index[first : first + count] = run.place // SECTION_FRAMES + 1 + np.arange(count, dtype=np.uint64)
        return index

    def runs(self, max_frames: int = 1 << 62) -> Iterator[FrameRun]:
        """The table in order, in pieces of up to `max_frames` adjacent frames."""
        place = 0
        for one in self.ranges:
            for first in range(one.first, one.end, max_frames):
                frames = min(max_frames, one.end - first)
                yield FrameRun(place, first, frames)
                place += frames


def oversize(layout: FrameLayout, *, mem_total_bytes: int, page_bytes: int) -> str | None:
    """Why the table would be absurdly large for this machine; None if it would not.

    A balloon may have taken most of a small guest's memory, so tables up to 64 MiB are never too large.
    """
    table_bytes = layout.entries * ENTRY_BYTES
    expected_bytes = mem_total_bytes // page_bytes * ENTRY_BYTES
    if table_bytes <= max(_SOME_TABLE_BYTES, _MAX_RATIO * expected_bytes):
        return None
    return (
        f"the kernel lists {format_bytes(layout.entries * page_bytes)} of memory in /sys/devices/system/memory or "
        f"/proc/zoneinfo, but MemTotal is {format_bytes(mem_total_bytes)}: the trace's table would take "
        f"{format_bytes(table_bytes)}, and the trace is not started"
    )
