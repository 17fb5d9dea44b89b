"""Lists of free objects that are whole, hardened, torn, circular, or lead into nowhere."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.slab.cache import Cache
from memdiag_node.slab.free_lists import Accept, cpu_lists, encoding_of, follow
from memdiag_node.slab.sheaves import MAX_SHEAF_OBJECTS, numa_nodes, sheaf_objects
from support.synthetic_slabs import AT, Memory, address, array, make_cache

PER_CPU = array(0x1000000, 0x2000000)
PLAIN, HARDENED = make_cache(), make_cache(random=0x9E3779B97F4A7C15)
FRAME = 5


def collecting(found: list[int], is_object: Callable[[int], bool] = lambda _: True) -> Accept:
    """Accepts objects and notes them."""

    def accept(_: npt.NDArray[np.int64], objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        good = np.array([is_object(one) for one in objects.tolist()], np.bool_)
        found.extend(objects[good].tolist())
        return good

    return accept


def is_in_frame(one: int) -> bool:
    return address(FRAME) <= one < address(FRAME + 1) and (one - address(FRAME)) % PLAIN.stride_bytes == 0


def objects_of(*numbers: int) -> list[int]:
    return [address(FRAME, PLAIN.stride_bytes * number) for number in numbers]


@pytest.mark.parametrize("cache", [PLAIN, HARDENED])
def test_a_list_is_followed_to_its_end_in_its_order(cache: Cache) -> None:
    memory, found = Memory(), list[int]()
    head = memory.chain(cache, objects_of(3, 0, 9))
    whole = follow(memory, array(head, 0), encoding_of([cache, cache]), collecting(found), max_steps=16)
    assert found == objects_of(3, 0, 9)
    assert whole.tolist() == [True, True]


def test_many_lists_of_different_caches_are_followed_in_step() -> None:
    memory, found = Memory(), list[int]()
    heads = [memory.chain(PLAIN, objects_of(1, 2)), memory.chain(HARDENED, objects_of(4, 5, 6))]
    whole = follow(memory, array(*heads), encoding_of([PLAIN, HARDENED]), collecting(found), max_steps=16)
    assert sorted(found) == objects_of(1, 2, 4, 5, 6)
    assert whole.all()


@pytest.mark.parametrize("cache", [PLAIN, HARDENED])
def test_a_cycle_ends_and_is_not_whole(cache: Cache) -> None:
    memory, found = Memory(), list[int]()
    head = memory.chain(cache, objects_of(1, 2), end=objects_of(1)[0])
    whole = follow(memory, array(head), encoding_of([cache]), collecting(found), max_steps=16)
    assert len(found) == 16
    assert not whole.any()


@pytest.mark.parametrize("garbage", [1, 0xFFFF, 0xFFFFFFFFFFFFFFFF, address(FRAME, 8), address(FRAME + 1)])
def test_garbage_ends_a_list_which_is_not_whole(garbage: int) -> None:
    memory, found = Memory(), list[int]()
    head = memory.chain(PLAIN, objects_of(1, 2), end=garbage)
    whole = follow(memory, array(head), encoding_of([PLAIN]), collecting(found, is_in_frame), max_steps=16)
    assert found == objects_of(1, 2)
    assert not whole.any()


def test_a_hardened_list_whose_object_cannot_be_read_is_not_whole() -> None:
    memory, found = Memory(), list[int]()
    head = memory.chain(HARDENED, objects_of(1, 2))
    del memory.words[objects_of(2)[0] + HARDENED.free_pointer_bytes]
    whole = follow(memory, array(head), encoding_of([HARDENED]), collecting(found, is_in_frame), max_steps=16)
    assert found == objects_of(1, 2)
    assert not whole.any()


CPU_SLAB = 0x40000


def with_cpu_list(memory: Memory, cpu: int, objects: list[int], transaction: int) -> int:
    """Give a CPU a list; returns the address of its struct kmem_cache_cpu."""
    copy = CPU_SLAB + int(PER_CPU[cpu])
    memory.words[PLAIN.address + AT["CACHE_CPU_SLAB"]] = CPU_SLAB
    memory.words[copy + AT["CPU_SLAB_FREELIST"]] = memory.chain(PLAIN, objects)
    memory.words[copy + AT["CPU_SLAB_TRANSACTION"]] = transaction
    return copy


def test_the_lists_of_all_cpus_are_read() -> None:
    memory = Memory()
    with_cpu_list(memory, 0, objects_of(1, 2), 7)
    with_cpu_list(memory, 1, objects_of(5), 8)
    lists = cpu_lists(memory, AT, [PLAIN], PER_CPU, collecting([]), max_steps=16)
    assert sorted(lists.objects.tolist()) == objects_of(1, 2, 5)
    assert lists.caches.tolist() == [0, 0, 0]
    assert not len(lists.unfollowed)


class Restless(Memory):
    """A CPU that allocates the first object of its list at each of the next reads of its transaction id."""

    def start(self, copy: int, left: list[int], operations: int) -> None:
        self.copy, self.left, self.operations = copy, left, operations

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        values = super().peek(addresses)
        transaction = self.copy + AT["CPU_SLAB_TRANSACTION"]
        if self.operations and transaction in np.asarray(addresses, "<u8").tolist():
            self.operations -= 1
            self.words[transaction] += 1
            taken = self.left.pop(0)
            self.words[taken + PLAIN.free_pointer_bytes] = 0xDEAD
            self.words[self.copy + AT["CPU_SLAB_FREELIST"]] = self.left[0]
        return values


@pytest.mark.parametrize(("operations", "unfollowed"), [(1, 0), (3, 0), (100, 1)])
def test_a_cpu_list_that_changes_is_read_again_until_it_rests(operations: int, unfollowed: int) -> None:
    memory, objects = Restless(), objects_of(*range(16))
    memory.start(with_cpu_list(memory, 0, objects, 7), list(objects), operations)
    lists = cpu_lists(memory, AT, [PLAIN], PER_CPU[:1], collecting([], is_in_frame), max_steps=16)
    assert len(lists.unfollowed) == unfollowed
    if not unfollowed:
        assert sorted(lists.objects.tolist()) == memory.left
        assert len(memory.left) == 16 - operations


SHEAVES, SHEAF = 0x50000, 0xFFFF888000A00000


def with_sheaf(memory: Memory, which: str, objects: list[int], *, size: int | None = None) -> int:
    """Give CPU 0 a sheaf; returns its address."""
    copy, sheaf = SHEAVES + int(PER_CPU[0]), SHEAF + 0x1000 * len(memory.words)
    memory.words[PLAIN.address + AT["CACHE_SHEAVES"]] = SHEAVES
    memory.words[copy + AT[which]] = sheaf
    fill_sheaf(memory, sheaf, objects, size=size)
    return sheaf


def fill_sheaf(memory: Memory, sheaf: int, objects: list[int], *, size: int | None = None) -> None:
    memory.words[sheaf + AT["SHEAF_CACHE"]] = PLAIN.address
    memory.words[sheaf + AT["SHEAF_SIZE"]] = (0xABCD << 32) | (len(objects) if size is None else size)
    for number, one in enumerate(objects):
        memory.words[sheaf + AT["SHEAF_OBJECTS"] + 8 * number] = one


def test_all_sheaves_of_a_cpu_are_read() -> None:
    memory = Memory()
    with_sheaf(memory, "SHEAVES_MAIN", objects_of(1, 2))
    with_sheaf(memory, "SHEAVES_SPARE", objects_of(3))
    with_sheaf(memory, "SHEAVES_RCU_FREE", objects_of(4))
    owners, objects = sheaf_objects(memory, AT, [PLAIN], PER_CPU, nodes=0)
    assert sorted(objects.tolist()) == objects_of(1, 2, 3, 4)
    assert set(owners.tolist()) == {0}


def test_what_is_no_sheaf_of_the_cache_is_not_read() -> None:
    memory = Memory()
    sheaf = with_sheaf(memory, "SHEAVES_MAIN", objects_of(1))
    memory.words[sheaf + AT["SHEAF_CACHE"]] = PLAIN.address + 256
    assert not len(sheaf_objects(memory, AT, [PLAIN], PER_CPU, nodes=0)[1])


def test_an_impossible_size_is_not_believed() -> None:
    memory = Memory()
    with_sheaf(memory, "SHEAVES_MAIN", objects_of(1), size=MAX_SHEAF_OBJECTS + 1)
    assert not len(sheaf_objects(memory, AT, [PLAIN], PER_CPU, nodes=0)[1])


NODE, BARN = 0xFFFF888000B00000, 0xFFFF888000C00000


@pytest.mark.parametrize(
    "layout",
    [
        AT,  # 6.18: a barn belongs to a node of the cache
        {key: value for key, value in AT.items() if "NODE_BARN" not in key}
        | {"HAS_CACHE_BARN": 1, "CACHE_BARN": 200, "KMEM_CACHE_NODE": 208, "KMEM_CACHE_NODE_STRIDE": 16},  # 7.2
    ],
)
@pytest.mark.parametrize("is_circular", [False, True])
def test_full_sheaves_of_numa_nodes_are_read(layout: dict[str, int], is_circular: bool) -> None:
    memory = Memory()
    stride = layout["KMEM_CACHE_NODE_STRIDE"]
    caches = [PLAIN, make_cache(0xFFFF888000E00000, name="kmem_cache", stride=AT["KMEM_CACHE_NODES"] + 2 * stride)]
    for node in (0, 1):
        slot, barn = PLAIN.address + AT["KMEM_CACHE_NODES"] + node * stride, BARN + 0x1000 * node
        if "HAS_CACHE_BARN" in layout:
            memory.words[slot] = barn
        else:
            memory.words[slot] = NODE + 0x1000 * node
            memory.words[NODE + 0x1000 * node + AT["NODE_BARN"]] = barn
        first, second = SHEAF + 0x20000 * node, SHEAF + 0x20000 * node + 0x10000
        head = barn + AT["BARN_FULL"]
        memory.words |= {head: first, first: second, second: first if is_circular else head}
        fill_sheaf(memory, first, objects_of(4 * node, 4 * node + 1))
        fill_sheaf(memory, second, objects_of(4 * node + 2))
    _, objects = sheaf_objects(memory, layout, [PLAIN], PER_CPU, nodes=numa_nodes(layout, caches))
    assert set(objects.tolist()) == set(objects_of(0, 1, 2, 4, 5, 6))
