"""The trace's table has room for the memory that exists, at any address."""

import numpy as np
import pytest

from memdiag_node.procfs.memory_map import SECTION_FRAMES, FrameRange
from memdiag_node.trace.pages.frame_layout import ENTRY_BYTES, FrameLayout, FrameRun, oversize

PAGE_BYTES = 4096
GIB = 1 << 30
GIB_FRAMES = GIB // PAGE_BYTES


def test_holes_take_no_room() -> None:
    """Two banks of 1 TiB at the ends of a 46-bit address space, as on some arm64 servers."""
    top = (1 << 46) // PAGE_BYTES
    layout = FrameLayout([FrameRange(0, 1024 * GIB_FRAMES), FrameRange(top - 1024 * GIB_FRAMES, top)])
    assert layout.entries * ENTRY_BYTES == GIB
    assert layout.index().nbytes <= 4 << 20


def test_the_index_leads_to_the_runs() -> None:
    layout = FrameLayout(
        [FrameRange(SECTION_FRAMES, 3 * SECTION_FRAMES), FrameRange(7 * SECTION_FRAMES, 8 * SECTION_FRAMES)]
    )
    assert layout.index().tolist() == [0, 1, 2, 0, 0, 0, 0, 3]
    assert list(layout.runs()) == [
        FrameRun(0, SECTION_FRAMES, 2 * SECTION_FRAMES),
        FrameRun(2 * SECTION_FRAMES, 7 * SECTION_FRAMES, SECTION_FRAMES),
    ]
    pieces = list(layout.runs(SECTION_FRAMES // 2))
    assert [piece.place for piece in pieces] == list(range(0, layout.entries, SECTION_FRAMES // 2))
    assert layout.chunks * 1024 == layout.entries == 3 * SECTION_FRAMES
    assert np.count_nonzero(layout.index()) * SECTION_FRAMES == layout.entries


@pytest.mark.parametrize(
    ("listed_gib", "total_gib", "is_refused"),
    [(64, 62, False), (64, 4, False), (1024, 1000, False), (1 << 14, 1000, True), (1 << 22, 3000, True)],
)
def test_an_absurd_size_is_refused(listed_gib: int, total_gib: int, is_refused: bool) -> None:
    layout = FrameLayout([FrameRange(0, listed_gib * GIB_FRAMES)])
    problem = oversize(layout, mem_total_bytes=total_gib * GIB, page_bytes=PAGE_BYTES)
    assert (problem is not None) is is_refused
    if problem:
        assert "MemTotal is" in problem
