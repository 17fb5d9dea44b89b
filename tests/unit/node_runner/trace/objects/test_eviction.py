"""Dropping objects from a crowded table: what is left still gives the right figures."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.trace.objects import tables
from memdiag_node.trace.objects.eviction import Evictions
from support.raw_objects import LINEAR_MAP, object_entries

CAPACITY = 1000
STORM, OTHER_STORM, SMALL = 1, 2, 3

Entries = npt.NDArray[np.void]


class Table:
    """A table of objects that is cleared whenever half of it is taken, as the trace does."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.evictions = Evictions(CAPACITY)
        self.entries = object_entries()
        self.now_ns = 0

    def add(self, stack: int, count: int) -> None:
        """Allocate objects at random addresses."""
        new = np.zeros(count, tables.OBJECT_ENTRY_DTYPE)
        slots = self.random.integers(0, 1 << 40, count, np.uint64)
        new["key"], new["value"]["stack"] = np.uint64(LINEAR_MAP) + np.uint64(64) * slots, stack
        new["value"]["born_ns"] = self.now_ns + np.arange(count)
        self.now_ns += count
        self.entries = np.concatenate((self.entries, new))

    def free(self, share: float) -> None:
        """Free objects at random."""
        self.entries = self.entries[self.random.random(len(self.entries)) >= share]

    def evict(self, *, allocated_meanwhile: Sequence[int] = ()) -> None:
        """Drop objects, while others are allocated: what was read before does not have them."""
        read = self.entries
        for stack in allocated_meanwhile:
            self.add(stack, 50)
        dropped = self.evictions.choose(read, now_ns=self.now_ns)
        self.entries = self.entries[~np.isin(self.entries["key"], dropped)]

    def weights(self, stack: int) -> npt.NDArray[np.float64]:
        """What each object of a stack represents, of those that belong to the sample."""
        chosen = self.entries[self.evictions.is_kept(self.entries)]
        levels = self.evictions.levels(chosen)[chosen["value"]["stack"] == stack]
        weights: npt.NDArray[np.float64] = np.exp2(levels.astype(np.float64))
        return weights


def test_a_crowded_table_keeps_a_quarter_of_its_room() -> None:
    table = Table()
    table.add(STORM, 500)
    table.add(OTHER_STORM, 300)
    table.evict()
    assert CAPACITY / 16 < len(table.entries) <= CAPACITY / 4
    assert set(table.entries["value"]["stack"].tolist()) == {STORM, OTHER_STORM}


@pytest.mark.parametrize("frees", [0.0, 0.3])
def test_figures_are_right_on_average_and_within_their_error_after_many_evictions(frees: float) -> None:
    """A stack that grows to six times the table. Freeing removes the same share of what is kept as of the rest."""
    deviations, squares, stated = [], [], []
    for seed in range(400):
        table, truth = Table(seed), 0.0
        for _ in range(12):
            table.add(STORM, 500)
            truth += 500
            table.evict(allocated_meanwhile=[STORM])
            truth += 50
        table.free(frees)
        weights = table.weights(STORM)
        deviation = float(weights.sum()) / (truth * (1 - frees)) - 1
        deviations.append(deviation)
        squares.append((deviation * truth * (1 - frees)) ** 2)
        stated.append(float(np.sum(weights * (weights - 1))))
    assert abs(float(np.mean(deviations))) <= 4 * float(np.std(deviations)) / len(deviations) ** 0.5
    assert float(np.std(deviations)) < 0.12
    assert float(np.mean(squares)) <= 1.3 * float(np.mean(stated))


def test_stacks_are_dropped_from_on_their_own() -> None:
    """The larger one is thinned further; each figure is right."""
    sums = []
    for seed in range(200):
        table = Table(seed)
        table.add(STORM, 4000)
        table.add(OTHER_STORM, 400)
        table.evict()
        sums.append([table.weights(STORM).sum(), table.weights(OTHER_STORM).sum()])
        assert table.weights(STORM).min() > table.weights(OTHER_STORM).min()
    assert np.mean(sums, axis=0) == pytest.approx([4000, 400], rel=0.03)


def test_what_is_allocated_after_an_eviction_counts_once() -> None:
    table = Table()
    table.add(STORM, 600)
    table.evict()
    before = table.weights(STORM)
    table.add(STORM, 150)
    after = table.weights(STORM)
    assert before.min() == before.max() > 1
    assert (after == 1).sum() == 150
    assert float(after.sum()) == float(before.sum()) + 150


def test_an_object_that_came_while_others_were_dropped_does_not_count_with_their_weight() -> None:
    """It is in the sample only if its hash is in the part that is kept."""
    sums = []
    for seed in range(200):
        table = Table(seed)
        table.add(STORM, 600)
        table.evict(allocated_meanwhile=[STORM])
        assert len(table.weights(STORM)) < len(table.entries)
        sums.append(float(table.weights(STORM).sum()))
    assert float(np.mean(sums)) == pytest.approx(650, rel=0.03)


def test_a_stack_that_was_evicted_from_and_is_small_now_keeps_its_weight() -> None:
    table = Table()
    table.add(STORM, 600)
    table.evict()
    table.free(0.7)
    kept = table.weights(STORM)
    table.add(OTHER_STORM, 600)
    table.evict()
    assert table.weights(STORM).tolist() == kept.tolist()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(0, 1 << 32))
def test_small_stacks_are_untouched(counts: list[int], seed: int) -> None:
    table = Table(seed)
    for stack, count in enumerate(counts, 1):
        table.add(stack, count)
    before = table.entries
    table.evict()
    share = CAPACITY // 4 // len(counts)
    small = [stack for stack in range(1, len(counts) + 1) if (before["value"]["stack"] == stack).sum() <= share]
    for stack in small:
        assert (table.entries["value"]["stack"] == stack).sum() == (before["value"]["stack"] == stack).sum()
        assert set(table.weights(stack).tolist()) == {1.0}
    assert len(table.entries) <= max(CAPACITY // 4, len(counts))
    assert set(table.entries["key"].tolist()) <= set(before["key"].tolist())


def test_an_empty_table_is_left_alone() -> None:
    table = Table()
    table.evict()
    assert len(table.entries) == 0
