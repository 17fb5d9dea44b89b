"""Objects and frames whose slabs are looked up: whole blocks, lists of free objects, garbage, and pages of KFENCE."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.slab import lookup
from memdiag_node.slab.access import SlabAccess
from memdiag_node.slab.frames import slabs_of_frames
from memdiag_node.slab.lookup import LocatedObjects, located_objects
from support.synthetic_slabs import (
    AT,
    LINEAR_BASE,
    PAGE_ARRAY,
    SLAB_FLAG,
    STRUCT_PAGE_BYTES,
    TAIL_FLAG,
    Memory,
    address,
    array,
    make_cache,
    page,
)

END_FRAME = 1000
PER_CPU = array(0x1000000, 0x2000000)
SMALL = make_cache(0xFFFF888000100000)
LARGE = make_cache(0xFFFF888000200000, stride=1000, random=0x9E3779B97F4A7C15)
CACHES = [SMALL, LARGE]
SMALL_FRAME, LARGE_FRAME, ORDER, LARGE_PLACES = 5, 16, 3, 32
TAILS = range(LARGE_FRAME + 1, LARGE_FRAME + (1 << ORDER))
FLAGS = {SMALL_FRAME: SLAB_FLAG, LARGE_FRAME: SLAB_FLAG} | dict.fromkeys(TAILS, SLAB_FLAG | TAIL_FLAG)


def small(number: int) -> int:
    return address(SMALL_FRAME, SMALL.stride_bytes * number)


def large(number: int) -> int:
    return address(LARGE_FRAME, LARGE.stride_bytes * number)


def two_slabs(memory: Memory | None = None) -> Memory:
    memory = memory or Memory()
    memory.slab(SMALL_FRAME, SMALL, places=16, free=[3, 0])
    memory.slab(LARGE_FRAME, LARGE, places=LARGE_PLACES, free=[30, 1], order=ORDER)
    memory.tails(LARGE_FRAME, order=ORDER)
    return memory


def flags_of(marked: dict[int, int], asked: list[int] | None = None) -> Any:
    def read_flags(first: int, frames: int) -> npt.NDArray[np.uint64]:
        if asked is not None:
            asked.append(frames)
        return np.array([marked.get(frame, 0) for frame in range(first, min(first + frames, END_FRAME))], "<u8")

    return read_flags


def accessed(memory: Memory, at: dict[str, int] | None = None) -> SlabAccess:
    layout = AT if at is None else at
    return SlabAccess(memory, layout, CACHES, first_page=PAGE_ARRAY, linear_base=LINEAR_BASE, per_cpu=PER_CPU)


def located(
    memory: Memory, addresses: Iterable[int], *, at: dict[str, int] | None = None, flags: dict[int, int] | None = None
) -> LocatedObjects:
    read_flags = flags_of(FLAGS if flags is None else flags)
    return located_objects(accessed(memory, at), array(*addresses), frame_count=END_FRAME, read_flags=read_flags)


def caches_of(memory: Memory, frames: Iterable[int], *, at: dict[str, int] | None = None) -> list[int]:
    found = slabs_of_frames(accessed(memory, at), array(*frames), frame_count=END_FRAME, read_flags=flags_of(FLAGS))
    return [int(found.table["cache"][number]) if number >= 0 else -1 for number in found.numbers.tolist()]


def test_objects_of_several_caches_are_found_and_are_allocated_or_free() -> None:
    wanted = {large(31): True, small(0): False, large(1): False, small(15): True, large(30): False, large(4): True}
    found = located(two_slabs(), wanted)
    assert found.caches == CACHES
    assert found.cache.tolist() == [1, 0, 1, 0, 1, 1]
    assert found.is_allocated.tolist() == list(wanted.values())
    assert found.cache.dtype == np.int32


def test_an_address_may_be_asked_for_twice() -> None:
    found = located(two_slabs(), [small(3), small(2), small(3), small(2)])
    assert found.is_allocated.tolist() == [False, True, False, True]


def test_an_object_is_gone_if_its_memory_is_of_another_kind_now() -> None:
    """What cannot be looked at may still be there."""
    gone = {small(3): False, small(2) + 8: True, address(SMALL_FRAME + 1): True, address(END_FRAME): False}
    found = located(two_slabs(), gone)
    assert found.is_gone.tolist() == list(gone.values())


@pytest.mark.parametrize(
    "outside",
    [
        0,
        1,
        2**64 - 1,
        LINEAR_BASE - 8,
        address(END_FRAME),
        address(SMALL_FRAME - 1),
        address(SMALL_FRAME + 1),
        small(2) + 8,
        large(2) + 1,
        large(LARGE_PLACES),  # the rest of the block is too small for another object
        0xFFFFC90000000000,  # vmalloc
    ],
)
def test_what_starts_no_object_has_no_cache(outside: int) -> None:
    found = located(two_slabs(), [small(2), outside, large(2)])
    assert found.cache.tolist() == [0, -1, 1]
    assert found.is_allocated.tolist() == [True, False, True]


def test_no_addresses_are_located_without_any_slab() -> None:
    assert not len(located(Memory(), []).cache)
    found = located(Memory(), [small(1)])
    assert found.cache.tolist() == [-1]


def test_every_frame_of_a_block_is_in_its_slab() -> None:
    frames = [LARGE_FRAME, SMALL_FRAME, LARGE_FRAME - 1, 2**60, END_FRAME, *TAILS, LARGE_FRAME + 8, SMALL_FRAME]
    assert caches_of(two_slabs(), frames) == [1, 0, -1, -1, -1, *[1] * len(TAILS), -1, 0]


def test_a_tail_may_have_a_mask_instead_of_the_address_of_its_head() -> None:
    memory = two_slabs()
    mask = (1 << 64) - (STRUCT_PAGE_BYTES << ORDER) + 1
    for tail in TAILS:
        memory.words[page(tail) + AT["PAGE_COMPOUND"]] = mask
    layout = AT | {"COMPOUND_MAY_BE_MASK": 1}
    assert caches_of(memory, [LARGE_FRAME, LARGE_FRAME + 1, LARGE_FRAME + 7], at=layout) == [1, 1, 1]


def test_a_tail_beyond_the_end_of_its_block_is_in_no_slab() -> None:
    """The block was freed and made again, with another size, while it was read."""
    memory = two_slabs()
    memory.words[page(LARGE_FRAME + 8) + AT["PAGE_COMPOUND"]] = page(LARGE_FRAME) + 1
    memory.words[page(LARGE_FRAME + 9) + AT["PAGE_COMPOUND"]] = page(END_FRAME + 1) + 1
    memory.words[page(LARGE_FRAME + 10) + AT["PAGE_COMPOUND"]] = 1
    assert caches_of(memory, range(LARGE_FRAME + 7, LARGE_FRAME + 11)) == [1, -1, -1, -1]


@pytest.mark.parametrize(
    ("layout", "offset", "marked", "freed"),
    [
        ({"SLAB_TYPE": 0xF5, "PAGE_TYPE": 48}, 48, 0xABCD_F5000000, 0xABCD_FFFFFFFF),
        ({"SLAB_BIT": 9}, 0, 1 << 9, 1 << 8),
    ],
)
def test_a_page_that_is_no_longer_marked_as_a_slab_is_none(
    layout: dict[str, int], offset: int, marked: int, freed: int
) -> None:
    memory = two_slabs()
    memory.words[page(SMALL_FRAME) + offset] = freed
    memory.words[page(LARGE_FRAME) + offset] = marked | 1 << 6  # PG_HEAD
    found = located(memory, [small(2), large(2)], at=AT | layout, flags={})
    assert found.cache.tolist() == [-1, 1]


def test_flags_of_frames_decide_where_types_are_not_known() -> None:
    last = END_FRAME - 1
    memory = two_slabs()
    memory.slab(last, SMALL, places=16, free=[])
    found = located(memory, [small(2), large(2), address(last)], flags={LARGE_FRAME: SLAB_FLAG, last: SLAB_FLAG})
    assert found.cache.tolist() == [-1, 1, 0]


def on_cpu_list(memory: Memory, cpu: int, objects: list[int]) -> None:
    pointer = 0x40000
    memory.words[SMALL.address + AT["CACHE_CPU_SLAB"]] = pointer
    copy = pointer + int(PER_CPU[cpu])
    memory.words[copy + AT["CPU_SLAB_FREELIST"]] = memory.chain(SMALL, objects)
    memory.words[copy + AT["CPU_SLAB_TRANSACTION"]] = 7


def in_sheaf(memory: Memory, cpu: int, objects: list[int]) -> None:
    """Of the large cache."""
    pointer, sheaf = 0x50000, 0xFFFF888000A00000 + 0x1000 * cpu
    memory.words[LARGE.address + AT["CACHE_SHEAVES"]] = pointer
    memory.words[pointer + int(PER_CPU[cpu]) + AT["SHEAVES_MAIN"]] = sheaf
    memory.words[sheaf + AT["SHEAF_CACHE"]] = LARGE.address
    memory.words[sheaf + AT["SHEAF_SIZE"]] = len(objects)
    for number, one in enumerate(objects):
        memory.words[sheaf + AT["SHEAF_OBJECTS"] + 8 * number] = one


@pytest.fixture(params=[None, 1], ids=["all at once", "one at a time"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs, and the lists of caches, that are read at once."""
    if request.param:
        monkeypatch.setattr(lookup, "_MAX_PLACES", request.param)
        monkeypatch.setattr(lookup, "_MAX_COPIES", request.param)


@pytest.mark.usefixtures("at_once")
def test_objects_on_lists_of_cpus_and_in_sheaves_are_free() -> None:
    memory = two_slabs()
    elsewhere = 40
    memory.slab(elsewhere, SMALL, places=16, free=[])
    on_cpu_list(memory, 0, [address(elsewhere), address(elsewhere, 256)])
    on_cpu_list(memory, 1, [small(7), small(9)])
    in_sheaf(memory, 0, [large(5)])
    in_sheaf(memory, 1, [large(8), address(elsewhere), small(6)])  # the last ones are garbage
    wanted = [small(number) for number in range(16)] + [large(number) for number in range(LARGE_PLACES)]
    found = located(memory, wanted)
    assert found.cache.tolist() == [0] * 16 + [1] * LARGE_PLACES
    assert np.flatnonzero(~found.is_allocated[:16]).tolist() == [0, 3, 7, 9]
    assert np.flatnonzero(~found.is_allocated[16:]).tolist() == [1, 5, 8, 30]


class Vanishing(Memory):
    """The small slab is freed after its list was followed, before the lists of CPUs are read."""

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        values = super().peek(addresses)
        if SMALL.address + AT["CACHE_CPU_SLAB"] in np.asarray(addresses, "<u8").tolist():
            self.words[page(SMALL_FRAME) + AT["SLAB_CACHE"]] = 0
        return values


def test_objects_of_a_slab_that_is_freed_meanwhile_are_free() -> None:
    found = located(two_slabs(Vanishing()), [small(1), large(2)])
    assert found.cache.tolist() == [0, 1]
    assert found.is_allocated.tolist() == [False, True]


def test_only_the_slabs_of_the_addresses_are_read() -> None:
    few, many = two_slabs(), two_slabs()
    for frame in range(100, END_FRAME):
        many.slab(frame, SMALL, places=16, free=[4, 5, 6])
    asked: list[int] = []
    for memory in (few, many):
        read_flags = flags_of(dict.fromkeys(range(END_FRAME), SLAB_FLAG), asked)
        located_objects(accessed(memory), array(small(2)), frame_count=END_FRAME, read_flags=read_flags)
    assert few.reads == many.reads < 100
    assert sum(asked) < END_FRAME


def guarded(memory: Memory, frame: int) -> None:
    """A page of KFENCE whose object is freed: it cannot be read."""
    memory.slab(frame, SMALL, places=1, free=[])
    memory.words[page(frame) + AT["SLAB_COUNTERS"]] = 1 << 16


def with_object(memory: Memory, frame: int, *, start: int) -> None:
    """An object of ones at an offset in a page of KFENCE."""
    guarded(memory, frame)
    for offset in range(0, 4096, 8):
        is_object = start <= offset < start + SMALL.object_bytes
        memory.words[address(frame, offset)] = 1 if is_object else 0xADACAFAEA9A8ABAA


def test_objects_of_kfence_are_found_where_they_are() -> None:
    memory = two_slabs()
    at_end = 4096 - SMALL.object_bytes
    with_object(memory, 50, start=at_end)
    with_object(memory, 52, start=0)
    guarded(memory, 54)
    wanted = [address(54, at_end), small(2), address(50, at_end), address(50), address(52), address(52)]
    found = located(memory, wanted, flags=FLAGS | dict.fromkeys((50, 52, 54), SLAB_FLAG))
    assert found.cache.tolist() == [0, 0, 0, -1, 0, 0]
    assert found.is_allocated.tolist() == [False, True, True, False, True, True]
