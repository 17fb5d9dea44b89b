"""Some pointers of many xarrays, from simulated memory."""

import numpy as np
import numpy.typing as npt

from memdiag_node.census.files.page_tree import some_entries, spread

AT = {"XARRAY_SLOTS": 40, "XARRAY_SLOT_COUNT": 64}
NODE_BYTES = 1024
BASE = 0xFFFF888000000000


class Trees:
    """Memory with xarrays."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        self.nodes = 0

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        return np.array([self.words.get(int(address), 0) for address in np.asarray(addresses, "<u8")], "<u8")

    def node(self, entries: list[int]) -> int:
        """Store a node; return the entry that points to it."""
        address = BASE + NODE_BYTES * self.nodes
        self.nodes += 1
        for slot, entry in enumerate(entries):
            self.words[address + AT["XARRAY_SLOTS"] + 8 * slot] = entry
        return address + 2


def pointers(first: int, count: int) -> list[int]:
    return [first + 64 * number for number in range(count)]


def found(trees: Trees, heads: list[int], limit: int) -> dict[int, list[int]]:
    owners, entries = some_entries(trees, AT, np.array(heads, "<u8"), limit)
    return {owner: entries[owners == owner].tolist() for owner in np.unique(owners).tolist()}


def test_all_pointers_of_small_trees_are_found() -> None:
    trees = Trees()
    two_levels = trees.node([trees.node(pointers(0x10000, 64)), 0, trees.node(pointers(0x20000, 3))])
    single, empty = 0x30000, 0
    result = found(trees, [two_levels, empty, single], limit=100)
    assert result == {0: pointers(0x10000, 64) + pointers(0x20000, 3), 2: [single]}


def test_values_and_siblings_are_no_pointers() -> None:
    evicted, sibling = 0x12345 << 1 | 1, 3 << 2 | 2
    trees = Trees()
    assert found(trees, [trees.node([evicted, 0x40000, sibling, sibling])], limit=10) == {0: [0x40000]}


def test_a_sample_is_spread_over_the_tree() -> None:
    trees = Trees()
    head = trees.node([trees.node(pointers(0x100000 * (1 + number), 64)) for number in range(64)])
    (sample,) = found(trees, [head], limit=16).values()
    assert len(sample) == 16
    assert len({entry // 0x100000 for entry in sample}) == 16


def test_a_loop_of_nodes_ends() -> None:
    trees = Trees()
    head = trees.node([0x50000])
    trees.words[head - 2 + AT["XARRAY_SLOTS"] + 8] = head
    (sample,) = found(trees, [head], limit=1000).values()
    assert set(sample) == {0x50000}


def test_spread_keeps_up_to_the_limit_of_each_owner() -> None:
    owners = np.array([3] * 2 + [5] * 10 + [6])
    kept = spread(owners, 4)
    assert np.bincount(owners[kept]).tolist() == [0, 0, 0, 2, 0, 4, 1]
    assert np.diff(np.flatnonzero(kept[2:12])).max() <= 3
