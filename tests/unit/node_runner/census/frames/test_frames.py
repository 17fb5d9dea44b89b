"""The census of page frames: blocks, charges and holders, from flags, compared with counting frame by frame."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.census.frames import frames as frame_census
from memdiag_node.census.frames.frames import (
    HELD_DTYPE,
    ORDERS,
    ChargedFrames,
    FrameCensus,
    UserFrames,
    take_census,
)
from memdiag_node.procfs.memory_map import FrameRange

HEAD, TAIL, FREE, SLAB, ANON_HEAD, NO_PAGE, RESERVED, PLAIN = (
    0x8000,
    0x10000,
    0x400,
    0x8080,
    0x409068,
    1 << 20,
    1 << 32,
    0,
)


def census(
    flags: list[int],
    charges: list[int] | None = None,
    held: list[tuple[int, int]] | None = None,
    **options: Any,
) -> FrameCensus:
    words, inodes = np.array(flags, "<u8"), None if charges is None else np.array(charges, "<u8")
    return take_census(
        [FrameRange(0, len(words))],
        lambda first, count: words[first : first + count],
        None if inodes is None else lambda first, count: inodes[first : first + count],
        held=None if held is None else np.array(held, HELD_DTYPE),
        **options,
    )


def block(order: int, head: int = HEAD, tail: int = TAIL) -> list[int]:
    return [head, *[tail] * ((1 << order) - 1)]


def by_order(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    return {order: int(counts[order]) for order in np.flatnonzero(counts).tolist()}


def test_compound_blocks_are_counted_by_order() -> None:
    found = census([PLAIN, *block(3), *block(3), *block(1), PLAIN, *block(2)])
    assert by_order(found.blocks) == {1: 1, 2: 1, 3: 2}
    assert by_order(found.frames) == {1: 2, 2: 4, 3: 16}


def test_frames_that_a_flag_explains_are_not_counted() -> None:
    found = census(
        [FREE, NO_PAGE, RESERVED, *block(3, SLAB, SLAB + TAIL - HEAD), *block(1, ANON_HEAD, 0x411068)], [7] * 13
    )
    assert by_order(found.blocks) == {}
    assert found.charged == {}


def test_tails_are_charged_like_their_head() -> None:
    found = census([PLAIN, PLAIN, *block(2), PLAIN], [5, 0, 6, 0, 0, 0, 5])
    assert found.charged == {5: ChargedFrames(single=2), 6: ChargedFrames(compound=4)}


def test_frames_in_known_holders_are_counted_separately() -> None:
    found = census([*block(3), *block(3), PLAIN, PLAIN], [9] * 18, [(8, 8), (16, 1)])
    assert by_order(found.frames) == {3: 16}
    assert by_order(found.held_frames) == {3: 8}
    assert found.charged == {9: ChargedFrames(single=2, compound=16, held=9)}


def test_holes_between_memory_are_not_read() -> None:
    far = 1 << 40  # frames: the top of a 52-bit address space
    read: list[tuple[int, int]] = []

    def flags(first: int, count: int) -> npt.NDArray[np.uint64]:
        read.append((first, count))
        return np.array([*block(3), *[FREE] * (count - 8)], "<u8")

    found = take_census([FrameRange(0, 64), FrameRange(far, far + 64)], flags)
    assert read == [(0, 64), (far, 64)]
    assert by_order(found.blocks) == {3: 2}
    assert found.scanned_share == 1


def test_without_charges_and_holders_they_are_reported_as_unknown() -> None:
    found = census(block(3))
    assert (found.knows_charges, found.knows_holders) == (False, False)


def test_the_scanned_share_is_reported_when_the_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_census, "_PIECE_FRAMES", 8)
    ticks = itertools.count()
    found = census(block(3) * 10, late=lambda: next(ticks) >= 3)
    assert found.scanned_share == pytest.approx(0.3)
    assert by_order(found.blocks) == {3: 3}


PIECES = st.sampled_from([[PLAIN], [FREE], [SLAB], block(1), block(2), block(3), [NO_PAGE], [PLAIN] * 5])


@given(
    pieces=st.lists(PIECES, max_size=30),
    inodes=st.lists(st.integers(0, 3), min_size=240, max_size=240),
    held=st.lists(st.tuples(st.integers(0, 250), st.sampled_from([1, 2, 8])), max_size=10),
)
def test_it_agrees_with_checking_every_frame(
    pieces: list[list[int]], inodes: list[int], held: list[tuple[int, int]]
) -> None:
    expected: dict[int, ChargedFrames] = {}
    frames, held_frames = np.zeros(ORDERS, np.int64), np.zeros(ORDERS, np.int64)
    covered = {first + offset for first, count in held for offset in range(count)}
    at = 0
    for piece in pieces:
        order = len(piece).bit_length() - 1
        for frame, flags in enumerate(piece, start=at):
            if flags not in {PLAIN, HEAD, TAIL}:
                continue
            compound = flags != PLAIN
            frames[order] += compound
            held_frames[order] += compound and frame in covered
            inode = inodes[at] if compound else inodes[frame]
            if inode:
                count = expected.setdefault(inode, ChargedFrames())
                count.single += not compound
                count.compound += compound
                count.held += frame in covered
        at += len(piece)
    found = census([flags for piece in pieces for flags in piece], inodes, held)
    assert found.frames.tolist() == frames.tolist()
    assert found.held_frames.tolist() == held_frames.tolist()
    assert found.charged == expected


def test_the_boundaries_of_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    flags, charges = [PLAIN, *([PLAIN] * 7), *block(3)] * 50, [4] * 800
    held = [(8 + 16 * number, 8) for number in range(0, 50, 2)]
    whole = census(flags, charges, held)
    monkeypatch.setattr(frame_census, "_PIECE_FRAMES", 16)
    in_pieces = census(flags, charges, held)
    assert in_pieces.charged == whole.charged == {4: ChargedFrames(single=400, compound=400, held=200)}
    assert in_pieces.held_frames.tolist() == whole.held_frames.tolist()


ANON, FILE, ACTIVE_FILE, SHMEM, HUGETLB = 0x5868, 0x828, 0x868, 0x4838, 0x20000


def test_user_memory_is_counted_by_use_and_cgroup() -> None:
    found = census(
        [ANON, ANON, FILE, ACTIVE_FILE, SHMEM, SLAB, FREE, ANON, HUGETLB, PLAIN], [5, 6, 5, 5, 6, 5, 0, 0, 0, 5]
    )
    assert found.user == {
        5: UserFrames(anonymous=1, file=2, active_file=1),
        6: UserFrames(anonymous=1, shmem=1),
        0: UserFrames(anonymous=1, hugetlb=1),
    }
    assert found.charged == {5: ChargedFrames(single=1)}


def test_tails_of_huge_pages_count_for_the_cgroup_and_use_of_their_head() -> None:
    """Tails of shared memory have neither SWAPBACKED nor LRU on some kernels."""
    found = census([*block(2, ANON_HEAD, 0x411068), *block(1, 0xC838, TAIL)], [5, 0, 0, 0, 6, 0])
    assert found.user == {5: UserFrames(anonymous=4), 6: UserFrames(shmem=2)}


def test_a_huge_page_that_is_larger_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_census, "_PIECE_FRAMES", 8)
    found = census(block(5, HUGETLB | HEAD, HUGETLB | TAIL))
    assert found.user == {0: UserFrames(hugetlb=32)}


def test_without_charges_user_memory_belongs_to_none() -> None:
    assert census([ANON, SHMEM, ANON]).user == {0: UserFrames(anonymous=2, shmem=1)}


@given(
    frames=st.lists(
        st.tuples(st.sampled_from([ANON, FILE, ACTIVE_FILE, SHMEM, HUGETLB, SLAB, FREE]), st.integers(0, 3)),
        max_size=60,
    ),
    size=st.sampled_from([4, 16, 1 << 16]),
)
def test_user_memory_agrees_with_checking_every_frame(frames: list[tuple[int, int]], size: int) -> None:
    expected: dict[int, UserFrames] = {}
    for flags, inode in frames:
        if flags in {SLAB, FREE}:
            continue
        count = expected.setdefault(inode, UserFrames())
        count.anonymous += flags == ANON
        count.file += flags in {FILE, ACTIVE_FILE}
        count.active_file += flags == ACTIVE_FILE
        count.shmem += flags == SHMEM
        count.hugetlb += flags == HUGETLB
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(frame_census, "_PIECE_FRAMES", size)
        found = census([flags for flags, _ in frames], [inode for _, inode in frames])
    assert found.user == expected
