"""The distance of the linear map and the page array, from the slabs of a simulated kernel."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.linear_map import linear_to_page
from memdiag_node.kernel.memory import memory_layout

RECORDED = Path(__file__).parents[3] / "fixtures/btf/linux-5.10-x86_64.btf"
LINEAR_MAP, PAGE_ARRAY = 0xFFFF8C4740000000, 0xFFFFEA1240000000
PAGE_BYTES, STRUCT_PAGE_BYTES = 4096, 64
HEAD_FLAG = 1
CACHE_BYTES, NODE_BYTES = 4096, 256
EXPECTED = (PAGE_ARRAY - LINEAR_MAP // PAGE_BYTES * STRUCT_PAGE_BYTES) % 2**64


class Kernel:
    """Memory with a list of caches; each cache has its structures on separate pages."""

    def __init__(self, at: dict[str, int]) -> None:
        self.at = at
        self.words: dict[int, int] = {}
        self.caches: list[int] = []
        self.list_head = LINEAR_MAP + (1 << 20)
        self.words[self.list_head] = self.list_head

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        return np.array([self.words.get(int(address), 0) for address in np.asarray(addresses, np.uint64)], np.uint64)

    def add_cache(self) -> int:
        cache = LINEAR_MAP + (2 << 20) + CACHE_BYTES * len(self.caches)
        entry = cache + self.at["KMEM_CACHE_LIST"]
        self.words[entry], self.words[self.list_head] = self.words[self.list_head], entry
        self.caches.append(cache)
        return cache

    def add_node(self, cache: int, number: int) -> int:
        """A node whose list of partial slabs is empty."""
        node = cache + NODE_BYTES * (number + 1)
        self.words[cache + self.at["KMEM_CACHE_NODE"] + 8 * number] = node
        self.words[node + self.at["KMEM_CACHE_NODE_PARTIAL"]] = node + self.at["KMEM_CACHE_NODE_PARTIAL"]
        return node

    def add_slab(self, node: int, frame: int, *, cache: int, free: int, order: int = 0) -> None:
        page = PAGE_ARRAY + frame * STRUCT_PAGE_BYTES
        self.words[node + self.at["KMEM_CACHE_NODE_PARTIAL"]] = page + self.at["SLAB_LIST"]
        self.words[page + self.at["SLAB_CACHE"]] = cache
        self.words[page + self.at["SLAB_FREELIST"]] = free
        self.words[page + self.at["PAGE_FLAGS"]] = HEAD_FLAG << self.at["PG_HEAD"] if order else 0
        self.words[page + self.at["PAGE_ORDER"]] = order

    def find(self) -> int:
        return linear_to_page(self, self.at, cache=self.caches[0])


def address(frame: int, offset: int = 0) -> int:
    return LINEAR_MAP + frame * PAGE_BYTES + offset


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(memory_layout(Btf.parse(RECORDED.read_bytes(), source=RECORDED.name)))


def test_a_partial_slab_of_any_cache_is_enough(kernel: Kernel) -> None:
    for _ in range(3):
        kernel.add_node(kernel.add_cache(), 0)
    cache = kernel.add_cache()
    kernel.add_slab(kernel.add_node(cache, 0), 777, cache=cache, free=address(777, 0x180))
    assert kernel.find() == EXPECTED


def test_numa_node_0_may_have_no_memory(kernel: Kernel) -> None:
    cache = kernel.add_cache()
    kernel.add_slab(kernel.add_node(cache, 3), 777, cache=cache, free=address(777))
    assert kernel.find() == EXPECTED


def test_the_free_object_may_be_in_any_page_of_the_block(kernel: Kernel) -> None:
    cache = kernel.add_cache()
    kernel.add_slab(kernel.add_node(cache, 0), 8 * 99, cache=cache, free=address(8 * 99 + 5, 0x80), order=3)
    assert kernel.find() == EXPECTED


def test_a_slab_that_changed_meanwhile_does_not_turn_it_off(kernel: Kernel) -> None:
    for number in range(4):
        cache = kernel.add_cache()
        free = address(1000 + number) if number != 2 else address(5)
        kernel.add_slab(kernel.add_node(cache, number % 2), 1000 + number, cache=cache, free=free)
    assert kernel.find() == EXPECTED


def test_a_slab_that_another_cache_took_meanwhile_does_not_count(kernel: Kernel) -> None:
    cache, other = kernel.add_cache(), kernel.add_cache()
    kernel.add_slab(kernel.add_node(cache, 0), 777, cache=other, free=address(778))
    kernel.add_slab(kernel.add_node(other, 0), 800, cache=other, free=address(800))
    assert kernel.find() == EXPECTED


def test_contradicting_slabs_and_caches_without_slabs_show_nothing(kernel: Kernel) -> None:
    kernel.add_node(kernel.add_cache(), 0)
    assert kernel.find() == 0
    for frame, other in ((777, 778), (800, 850)):
        cache = kernel.add_cache()
        kernel.add_slab(kernel.add_node(cache, 0), frame, cache=cache, free=address(other))
    assert kernel.find() == 0
