"""Blocks that are outstanding, from the frame table and what the kernel says of its frames."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from memdiag_node.procfs.kpageflags import FrameKind, ReadFrames
from memdiag_node.procfs.memory_map import SECTION_FRAMES, FrameRange
from memdiag_node.trace.pages import frame_tally, tables
from memdiag_node.trace.pages.frame_layout import FrameLayout

PAGE_BYTES = 4096
SLAB_FLAG = 1 << 7


def tally_frames(
    frames: npt.NDArray[np.uint16],
    orders: npt.NDArray[np.uint8],
    read_flags: ReadFrames,
    read_charges: ReadFrames | None = None,
    ranges: Sequence[FrameRange] = (),
) -> frame_tally.FrameTally:
    layout = FrameLayout(ranges or [FrameRange(0, len(frames))])
    return frame_tally.tally_frames(frames, orders, read_flags, read_charges, layout=layout)


def flags_of(kinds: dict[int, int]) -> ReadFrames:
    def read(first: int, count: int) -> npt.NDArray[np.uint64]:
        return np.array([kinds.get(frame, 0) for frame in range(first, first + count)], np.uint64)

    return read


def orders_of(**orders: int) -> npt.NDArray[np.uint8]:
    result = np.zeros(tables.CLASSES, np.uint8)
    for name, order in orders.items():
        result[int(name[1:])] = order
    return result


def test_frames_of_a_block_are_put_together_and_neighbours_kept_apart() -> None:
    frames = np.zeros(4096, np.uint16)
    frames[8:16] = 20  # whole block of order 3
    frames[16:21] = 20  # its neighbour, three frames of which are freed
    frames[24] = 21
    frames[25] = 21 | 0x8000  # timed, else the same
    frames[2048:2052] = 20
    tally = tally_frames(frames, orders_of(c20=3, c21=0), flags_of({}))
    (part,) = tally.parts
    assert part.tolist() == [(8, 20, 8), (16, 20, 5), (24, 21, 1), (25, 21, 1), (2048, 20, 4)]
    assert (tally.blocks[20], tally.blocks[21]) == (3, 2)


def test_frames_behind_a_hole_keep_their_number() -> None:
    last_section = (1 << 46) // PAGE_BYTES - SECTION_FRAMES  # the end of a 46-bit address space
    frames = np.zeros(2 * SECTION_FRAMES, np.uint16)
    frames[8:10] = 20
    frames[SECTION_FRAMES + 6 : SECTION_FRAMES + 8] = 20
    asked: list[int] = []

    def read(first: int, count: int) -> npt.NDArray[np.uint64]:
        asked.append(count)
        return np.zeros(count, np.uint64)

    ranges = [FrameRange(0, SECTION_FRAMES), FrameRange(last_section, last_section + SECTION_FRAMES)]
    tally = tally_frames(frames, orders_of(c20=1), read, ranges=ranges)
    blocks = [tuple(block) for part in tally.parts for block in part.tolist()]
    assert blocks == [(8, 20, 2), (last_section + 6, 20, 2)]
    assert sum(asked) <= 2 * SECTION_FRAMES


def test_frames_that_are_something_else_are_set_aside() -> None:
    frames = np.zeros(1024, np.uint16)
    frames[0:4] = 22
    frames[4:8] = tables.CLASS_MOVABLE
    tally = tally_frames(frames, orders_of(c22=0), flags_of({0: SLAB_FLAG, 1: SLAB_FLAG, 5: 1 << 12}))
    assert tally.by_kind[FrameKind.SLAB, 22] == tally.by_kind[FrameKind.DIRECT, 22] == 2
    assert tally.by_kind[FrameKind.USER_MEMORY, tables.CLASS_MOVABLE] == 1
    assert tally.blocks[22] == 2


def test_a_frame_that_is_freed_while_its_flags_are_read_does_not_count() -> None:
    frames = np.full(1024, 22, np.uint16)

    def read(first: int, count: int) -> npt.NDArray[np.uint64]:
        frames[100:200] = 0
        return np.zeros(count, np.uint64)

    assert tally_frames(frames, orders_of(c22=0), read).by_kind.sum() == 1024 - 100


def test_blocks_are_charged_by_their_first_frame() -> None:
    frames = np.zeros(1024, np.uint16)
    frames[8:16] = 20
    frames[32:34] = 21
    tally = tally_frames(frames, orders_of(c20=3, c21=0), flags_of({}), flags_of({8: 77, 32: 77, 33: 78}))
    assert tally.charged == {77: 9, 78: 1}


@settings(deadline=None)
@given(st.binary(min_size=2048, max_size=2048), st.integers(0, 10))
def test_any_frame_table_is_tallied_whole(entries: bytes, order: int) -> None:
    frames = np.frombuffer(entries, np.uint16)
    orders = np.full(tables.CLASSES, order, np.uint8)
    tally = tally_frames(frames, orders, flags_of({}))
    assert tally.by_kind.sum() == np.count_nonzero(frames & tables.CLASS_MASK)
    assert sum(int(part["frames"].sum()) for part in tally.parts) == tally.by_kind[0, tables.FIRST_CLASS :].sum()
