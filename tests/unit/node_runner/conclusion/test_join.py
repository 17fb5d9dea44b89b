"""The join: outstanding blocks found in holders, frame by frame."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.conclusion.join import join_blocks
from memdiag_node.holding import unique_bytes

STRUCT_PAGE = 64
PAGE = 4096
BASE = 0xFFFF_EA00_0000_0000
BLOCK = np.dtype([("page", "<u8"), ("order", "u1"), ("frames", "<u4"), ("stack", "<i4"), ("weight", "<f4")])
HELD = np.dtype([("page", "<u8"), ("order", "u1")])


def page(frame: int) -> int:
    return BASE + frame * STRUCT_PAGE


def blocks(*rows: tuple[int, int, int]) -> npt.NDArray[np.void]:
    """Rows of (first frame, order, stack), whole and unsampled."""
    return np.array([(page(frame), order, 1 << order, stack, 1.0) for frame, order, stack in rows], dtype=BLOCK)


def held(*rows: tuple[int, int]) -> npt.NDArray[np.void]:
    return np.array([(page(frame), order) for frame, order in rows], dtype=HELD)


def join(traced: npt.NDArray[np.void], *holders: npt.NDArray[np.void]) -> dict[tuple[int, int], int]:
    result = join_blocks(traced, holders, struct_page_bytes=STRUCT_PAGE, page_bytes=PAGE)
    return {(one.stack, one.holder): one.size_bytes for one in result.overlaps}


def test_a_block_in_a_queue_is_explained_whole() -> None:
    assert join(blocks((8, 3, 0)), held((8, 3))) == {(0, 0): 8 * PAGE}


def test_a_page_inside_a_block_finds_the_block() -> None:
    assert join(blocks((8, 3, 0)), held((13, 0))) == {(0, 0): 8 * PAGE}


def test_many_packets_on_one_block_count_it_once() -> None:
    assert join(blocks((8, 3, 0)), held((8, 0), (9, 0), (15, 0))) == {(0, 0): 8 * PAGE}


def test_the_frame_after_a_block_is_not_in_it() -> None:
    assert join(blocks((8, 3, 0)), held((16, 0), (7, 0))) == {}


def test_a_block_shared_by_two_holders_is_explained_once() -> None:
    result = join_blocks(
        blocks((8, 3, 0)), [held((8, 3)), held((8, 3))], struct_page_bytes=STRUCT_PAGE, page_bytes=PAGE
    )
    assert [(one.holder, one.size_bytes) for one in result.overlaps] == [(0, 8 * PAGE), (1, 8 * PAGE)]
    assert result.explained_bytes == 8 * PAGE


def test_only_the_frames_that_are_still_out_are_explained() -> None:
    split = blocks((8, 3, 0))
    split["frames"] = 3
    assert join(split, held((8, 0))) == {(0, 0): 3 * PAGE}


def test_a_sampled_block_stands_for_its_weight() -> None:
    sampled = blocks((8, 0, 0))
    sampled["weight"] = 4.0
    assert join(sampled, held((8, 0))) == {(0, 0): 4 * PAGE}


def test_stacks_are_told_apart() -> None:
    traced = blocks((0, 0, 0), (1, 0, 1), (2, 0, 1))
    assert join(traced, held((0, 0), (1, 0)), held((2, 0))) == {(0, 0): PAGE, (1, 0): PAGE, (1, 1): PAGE}


def test_nothing_joins_with_nothing() -> None:
    assert join(blocks(), held((1, 0))) == {}
    assert join(blocks((1, 0, 0))) == {}
    assert join(blocks((1, 0, 0)), held()) == {}


@given(
    traced=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), max_size=12, unique_by=lambda row: row[0]),
    kept=st.lists(st.lists(st.integers(0, 170), max_size=20), min_size=1, max_size=4),
)
def test_it_agrees_with_counting_every_frame(traced: list[tuple[int, int]], kept: list[list[int]]) -> None:
    # Blocks of at most 4 frames on places 4 apart never overlap.
    rows = [(4 * place, order, place % 3) for place, order in traced]
    explained = {
        (stack, frame): 1 << order
        for frame, order, stack in rows
        if any(frame <= one < frame + (1 << order) for frames in kept for one in frames)
    }
    result = join_blocks(
        blocks(*rows),
        [held(*((frame, 0) for frame in frames)) for frames in kept],
        struct_page_bytes=STRUCT_PAGE,
        page_bytes=PAGE,
    )
    assert result.explained_bytes == sum(explained.values()) * PAGE


def test_bytes_of_several_holders_count_shared_blocks_once() -> None:
    assert unique_bytes([held((8, 3), (16, 0)), held((8, 3))], page_bytes=PAGE) == 9 * PAGE
    assert unique_bytes([], page_bytes=PAGE) == 0
