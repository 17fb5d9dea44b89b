"""Counters of memory cgroups in a kernel's memory made by hand."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.cgroups.counters import Counters, read_counters
from memdiag_node.cgroups.tree import MemoryCgroup
from memdiag_node.procfs.cgroup import ContainerIdentity

PAGE = 4096
ROOT, GROUP, CGROUP, HIERARCHY, NODE = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
AT = {
    **dict.fromkeys(("HAS_MEMORY_ACCOUNTS", "HAS_LRU_SIZES", "HAS_GENERATIONS"), 1),
    "MEMCG_CSS": 0,
    "CSS_CGROUP": 0,
    "CGROUP_ROOT": 8,
    "ROOT_HIERARCHY": 16,
    "MEMCG_USAGE": 8,
    "MEMCG_LIMIT": 16,
    "MEMCG_WITH_SWAP": 24,
    "MEMCG_SWAP": 24,
    "MEMCG_NODES": 32,
    "NODE_LRU_PAGES": 0,
    "ZONES": 2,
    "NODE_YOUNGEST": 0x100,
    "NODE_GENERATION_PAGES": 0x200,
    "GENERATIONS": 4,
}
GROUPS = [
    MemoryCgroup(ROOT, -1, 1, b"", ContainerIdentity("", "")),
    MemoryCgroup(GROUP, 0, 2, b"/a", ContainerIdentity("", "")),
]


class Words:
    """Kernel memory with these words; 0 elsewhere."""

    def __init__(self, words: Mapping[int, int]) -> None:
        self._words = words

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        return np.array([self._words.get(int(one), 0) & (1 << 64) - 1 for one in np.asarray(addresses)], "<u8")


def counters(words: Mapping[int, int], *, hierarchy: int = 0) -> Counters:
    fixed = {ROOT: CGROUP, CGROUP + 8: HIERARCHY, HIERARCHY + 16: hierarchy | 7 << 32, GROUP + 32: NODE}
    found = read_counters(Words(fixed | dict(words)), AT, GROUPS, nodes=1, page_bytes=PAGE)
    assert found is not None
    return found


def test_lists_of_all_zones_are_added() -> None:
    words = {NODE + 8 * (5 * zone + lru): 100 * zone + lru + 1 for zone in range(2) for lru in range(5)}
    lru_pages = counters(words).lru_pages
    assert lru_pages is not None
    assert lru_pages.tolist() == [[0] * 5, [102, 104, 106, 108, 110]]


def test_the_two_youngest_generations_are_active() -> None:
    """The youngest is 5, so its lists are at place 1, those of 4 at place 0. Unevictable pages have no generation."""
    words = {NODE + 0x100: 5, NODE + 8 * 4: 7}
    anon = {0: 1, 1: 2, 2: 4, 3: 8}
    file = {0: 16, 1: 32, 2: 64, 3: 128}
    for kind, pages in enumerate((anon, file)):
        words |= {NODE + 0x200 + 8 * (4 * place + 2 * kind + 1): count for place, count in pages.items()}
    words[NODE + 0x200] = -5  # negative for a moment
    lru_pages = counters(words).lru_pages
    assert lru_pages is not None
    assert lru_pages[1].tolist() == [4 + 8, 1 + 2, 64 + 128, 16 + 32, 7]


def test_swap_is_a_counter_of_its_own_or_in_the_sum() -> None:
    words = {GROUP + 8: 100, GROUP + 24: 130}
    unified, old = counters(words), counters(words, hierarchy=4)
    assert (unified.is_unified, old.is_unified) == (True, False)
    assert unified.swap_pages is not None
    assert unified.swap_pages.tolist() == [0, 130]
    assert old.swap_pages is not None
    assert old.swap_pages.tolist() == [0, 30]
    assert counters({GROUP + 8: 100}, hierarchy=4).swap_pages is None, "swap is not counted"


def test_a_kernel_without_the_fields_has_no_counters() -> None:
    assert read_counters(Words({}), {}, GROUPS, nodes=1, page_bytes=PAGE) is None
    assert read_counters(Words({}), AT, [], nodes=1, page_bytes=PAGE) is None
