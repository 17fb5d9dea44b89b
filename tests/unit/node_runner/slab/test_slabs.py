"""Which frames are slabs, what is dropped as garbage, and the order in which memory is sampled."""

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.procfs.memory_map import FrameRange
from memdiag_node.slab.cache import Cache
from memdiag_node.slab.guarded import guarded_objects
from memdiag_node.slab.slabs import PIECE_FRAMES, SLAB_DTYPE, ReadPiece, Slabs, piece_reader, read_slabs
from support.synthetic_slabs import (
    AT,
    LINEAR_BASE,
    PAGE_ARRAY,
    PAGE_SHIFT,
    SLAB_FLAG,
    STRUCT_PAGE_BYTES,
    TAIL_FLAG,
    Memory,
    address,
    array,
    make_cache,
)

SMALL, LARGE = make_cache(0xFFFF888000100000), make_cache(0xFFFF888000200000, stride=1024)
RANGES = [FrameRange(0, PIECE_FRAMES), FrameRange(3 * PIECE_FRAMES, 4 * PIECE_FRAMES)]
IN_SECOND = 3 * PIECE_FRAMES + 8


def read(memory: Memory, flags: dict[int, int], caches: list[Cache] | None = None) -> Slabs:
    caches = [SMALL, LARGE] if caches is None else caches

    def read_flags(first: int, frames: int) -> npt.NDArray[np.uint64]:
        values = np.zeros(frames, "<u8")
        for frame, value in flags.items():
            if first <= frame < first + frames:
                values[frame - first] = value
        return values

    addresses = np.array([cache.address for cache in caches], "<u8")
    reader = piece_reader(memory, AT, addresses, first_page=PAGE_ARRAY, read_flags=read_flags)
    strides = np.array([cache.stride_bytes for cache in caches], "<u8")
    return read_slabs(reader, strides, ranges=RANGES, linear_base=LINEAR_BASE, page_shift=PAGE_SHIFT)


def test_slabs_of_all_ranges_are_found_in_order() -> None:
    memory = Memory()
    memory.slab(IN_SECOND, LARGE, places=32, free=[1, 2], order=3)
    memory.slab(4, SMALL, places=16, free=[])
    slabs = read(memory, {4: SLAB_FLAG, IN_SECOND: SLAB_FLAG, IN_SECOND + 1: SLAB_FLAG | TAIL_FLAG})
    assert slabs.table[["frame", "cache", "objects", "in_use", "order"]].tolist() == [
        (4, 0, 16, 16, 0),
        (IN_SECOND, 1, 32, 30, 3),
    ]
    assert slabs.sampled_share == 1
    assert (slabs.pieces, slabs.all_pieces, slabs.all_frames) == (2, 2, 2 * PIECE_FRAMES)


def broken(memory: Memory, frame: int, field: str, value: int) -> None:
    memory.slab(frame, SMALL, places=16, free=[3])
    memory.words[PAGE_ARRAY + frame * STRUCT_PAGE_BYTES + AT[field]] = value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("SLAB_CACHE", 0),
        ("SLAB_CACHE", SMALL.address + 8),
        ("SLAB_CACHE", 2**64 - 1),
        ("SLAB_COUNTERS", 0),  # it is being made
        ("SLAB_COUNTERS", 17 << 16),  # more objects than fit
        ("SLAB_COUNTERS", 16 << 16 | 17),  # more in use than there are
        ("SLAB_COUNTERS", 2**64 - 1),
    ],
)
def test_what_contradicts_itself_is_not_a_slab(field: str, value: int) -> None:
    memory = Memory()
    broken(memory, 4, field, value)
    memory.slab(5, SMALL, places=16, free=[])
    assert read(memory, {4: SLAB_FLAG, 5: SLAB_FLAG}).table["frame"].tolist() == [5]


def test_an_impossible_order_is_bounded() -> None:
    memory = Memory()
    memory.slab(4, SMALL, places=16, free=[], order=200)
    assert read(memory, {4: SLAB_FLAG}).table["order"].tolist() == [10]


def test_a_node_without_known_caches_has_no_slabs() -> None:
    memory = Memory()
    memory.slab(4, SMALL, places=16, free=[])
    assert not len(read(memory, {4: SLAB_FLAG}, [LARGE]).table)


@pytest.mark.parametrize("stale", [0, 7, 2**64 - 1, address(5), address(4), address(4, 2048)])
def test_pages_of_kfence_are_kept_apart(stale: int) -> None:
    memory = Memory()
    memory.slab(4, SMALL, places=1, free=[])
    memory.words[PAGE_ARRAY + 4 * STRUCT_PAGE_BYTES + AT["SLAB_COUNTERS"]] = 1 << 16
    memory.words[PAGE_ARRAY + 4 * STRUCT_PAGE_BYTES + AT["SLAB_FREELIST"]] = stale
    slabs = read(memory, {4: SLAB_FLAG})
    assert not len(slabs.table)
    assert slabs.guarded["frame"].tolist() == [4]


def test_a_slab_whose_only_object_is_free_is_no_page_of_kfence() -> None:
    memory = Memory()
    large = make_cache(0xFFFF888000300000, stride=4096)
    memory.slab(4, large, places=1, free=[0])
    slabs = read(memory, {4: SLAB_FLAG}, [large])
    assert slabs.table["frame"].tolist() == [4]
    assert not len(slabs.guarded)


def canary(memory: Memory, frame: int, *, start: int, size: int) -> None:
    """A page of KFENCE with an object of zeros and ones."""
    for offset in range(0, 4096, 8):
        memory.words[address(frame, offset)] = 0xADACAFAEA9A8ABAA
    for offset in range(start, start + size, 8):
        memory.words[address(frame, offset)] = offset % 16 // 8


@pytest.mark.parametrize("start", [0, 4096 - 240])
def test_the_object_of_a_guarded_page_is_found_on_either_side(start: int) -> None:
    memory = Memory()
    canary(memory, 6, start=start, size=240)
    assert guarded_objects(memory, AT, array(6, 7), LINEAR_BASE).tolist() == [address(6, start), 0]


def fixed_pieces(slabs_in_each: list[int]) -> ReadPiece:
    """Pieces with the given numbers of slabs, in all of RANGES' form."""

    def read_piece(first: int, frames: int) -> npt.NDArray[np.void]:
        table = np.zeros(slabs_in_each[first // PIECE_FRAMES], SLAB_DTYPE)
        table["frame"], table["objects"], table["in_use"] = first + np.arange(len(table)), 1, 1
        assert frames == PIECE_FRAMES
        return table

    return read_piece


STRIDES = array(256)


def sample(slabs_in_each: list[int], *, max_slabs: int) -> Slabs:
    ranges = [FrameRange(0, PIECE_FRAMES * len(slabs_in_each))]
    return read_slabs(
        fixed_pieces(slabs_in_each),
        STRIDES,
        ranges=ranges,
        linear_base=LINEAR_BASE,
        page_shift=PAGE_SHIFT,
        max_slabs=max_slabs,
    )


def test_no_more_slabs_are_kept_than_allowed_but_one_piece_always() -> None:
    assert len(sample([10] * 20, max_slabs=105).table) == 100
    assert len(sample([10] * 20, max_slabs=3).table) == 10


def test_a_sample_knows_its_share_and_its_pieces() -> None:
    slabs = sample([10] * 20, max_slabs=105)
    assert slabs.sampled_share == 0.5
    assert (slabs.pieces, slabs.all_pieces, len(set(slabs.table["piece"].tolist()))) == (10, 20, 10)
    assert slabs.numbers.tolist() == sorted(set(slabs.table["piece"].tolist()))


def test_the_time_ends_the_search_after_the_first_piece() -> None:
    slabs = read_slabs(
        fixed_pieces([1] * 20),
        STRIDES,
        ranges=[FrameRange(0, PIECE_FRAMES * 20)],
        linear_base=LINEAR_BASE,
        page_shift=PAGE_SHIFT,
        late=lambda: True,
    )
    assert slabs.pieces == 1
