"""Which places of slabs are free, when lists are whole, change, or are garbage."""

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.slab.cache import Cache
from memdiag_node.slab.free_lists import ATTEMPTS, encoding_of
from memdiag_node.slab.places import Places, ReadStates, SlabState, spread
from support.synthetic_slabs import AT, PAGE_ARRAY, STRUCT_PAGE_BYTES, Memory, address, array, make_cache

FRAMES, PLACES = (10, 20, 21), 16
CACHES = [make_cache(), make_cache(random=0xDEADBEEFCAFEF00D)]
FREE = {10: [3, 1, 15], 20: [], 21: [0]}


def planted(cache: Cache) -> tuple[Memory, Places]:
    memory = Memory()
    for frame in FRAMES:
        memory.slab(frame, cache, places=PLACES, free=FREE[frame])
    places = np.full(len(FRAMES), PLACES, np.int64)
    return memory, Places(array(*map(address, FRAMES)), places, cache.stride_bytes)


def state_reader(memory: Memory) -> ReadStates:
    pages = np.array([PAGE_ARRAY + frame * STRUCT_PAGE_BYTES for frame in FRAMES], "<u8")

    def read(rows: npt.NDArray[np.int64]) -> SlabState:
        counters = memory.peek(pages[rows] + np.uint64(AT["SLAB_COUNTERS"]))
        heads = memory.peek(pages[rows] + np.uint64(AT["SLAB_FREELIST"]))
        return SlabState(heads, (counters & np.uint64(0xFFFF)).astype(np.int64))

    return read


def truth(cache: Cache) -> list[int]:
    return [
        address(frame, cache.stride_bytes * number)
        for frame in FRAMES
        for number in range(PLACES)
        if number not in FREE[frame]
    ]


@pytest.mark.parametrize("cache", CACHES)
def test_what_is_on_no_list_is_allocated(cache: Cache) -> None:
    memory, places = planted(cache)
    places.mark_lists(memory, encoding_of([cache]), state_reader(memory))
    assert places.allocated().tolist() == truth(cache)
    assert places.uncertain_objects == 0


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("garbage", [0, 0xFFFF, address(20, 7), address(10, 3 * 256)])
def test_a_torn_list_is_counted_with_the_objects_that_it_leaves_uncertain(cache: Cache, garbage: int) -> None:
    memory, places = planted(cache)
    memory.chain(cache, [address(10, cache.stride_bytes * 3)], end=garbage)  # instead of two more objects
    places.mark_lists(memory, encoding_of([cache]), state_reader(memory))
    assert places.uncertain_objects == 2
    assert abs(len(places.allocated()) - len(truth(cache))) == 2


def test_a_list_that_changes_is_read_again() -> None:
    cache = CACHES[0]
    memory, places = planted(cache)
    read, calls = state_reader(memory), list[int]()

    def changing(rows: npt.NDArray[np.int64]) -> SlabState:
        calls.append(len(rows))
        state = read(rows)
        if len(calls) == 1:  # the objects on the list are allocated after their head was read
            memory.slab(10, cache, places=PLACES, free=[7])
            memory.words[address(10, cache.stride_bytes * 3) + cache.free_pointer_bytes] = 0xDA7A
        return state

    places.mark_lists(memory, encoding_of([cache]), changing)
    assert calls == [len(FRAMES), 1]
    assert places.is_free.nonzero()[0].tolist() == [7, 2 * PLACES]
    assert places.uncertain_objects == 0


def test_a_list_that_always_changes_is_given_up() -> None:
    cache = CACHES[0]
    memory, places = planted(cache)
    read, calls = state_reader(memory), list[int]()

    def wrong(rows: npt.NDArray[np.int64]) -> SlabState:
        calls.append(len(rows))
        state = read(rows)
        return SlabState(state.freelist, state.in_use - (rows == 1))

    places.mark_lists(memory, encoding_of([cache]), wrong)
    assert len(calls) == ATTEMPTS
    assert places.uncertain_objects == 1


def test_only_the_starts_of_places_are_places() -> None:
    _, places = planted(CACHES[0])
    outside = [0, 1, address(9), address(10) - 256, address(10, 4096), address(22), 2**64 - 1, 2**64 - 256]
    inside = [address(10), address(10, 256 * 15), address(21, 256)]
    assert places.slots(array(*outside, address(10, 8))).tolist() == [-1] * (len(outside) + 1)
    assert places.slots(array(*inside)).tolist() == [0, 15, 2 * PLACES + 1]


def test_no_slabs_have_no_places() -> None:
    places = Places(array(), np.empty(0, np.int64), 256)
    memory = Memory()
    places.mark_lists(memory, encoding_of(CACHES[:1]), state_reader(memory))
    assert not len(places.allocated())
    assert places.slots(array(address(10))).tolist() == [-1]
    assert not places.mark_free(array(address(10))).any()


def test_all_objects_are_chosen_if_they_are_few() -> None:
    assert spread(5, 10).tolist() == [0, 1, 2, 3, 4]


def test_a_choice_has_one_object_of_each_part() -> None:
    places = spread(1_000_003, 1000)
    assert (places // 1000.003).astype(int).tolist() == pytest.approx(list(range(1000)), abs=1)
    assert len(np.unique(places)) == 1000
    assert places[-1] < 1_000_003
