"""Totals of a large machine from a random sample: right on average, and as wrong as they say."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.procfs.memory_map import FrameRange
from memdiag_node.slab.estimate import Estimate, estimate_total
from memdiag_node.slab.slabs import PIECE_FRAMES, SLAB_DTYPE, Slabs, read_slabs
from support.synthetic_slabs import LINEAR_BASE, PAGE_SHIFT, array

TIB_PIECES = (1 << 40 >> PAGE_SHIFT) // PIECE_FRAMES
BUDGET = 300.0
"""In the time that an empty piece of memory takes; a full one takes twice as long."""
MACHINES = 200


@dataclass
class Machine:
    """1 TiB whose slabs are clustered: most pieces of memory have few, some are full of them."""

    slabs: npt.NDArray[np.int64]
    """In each piece."""
    clock: float = 0.0

    def read_piece(self, first: int, frames: int) -> npt.NDArray[np.void]:
        assert frames == PIECE_FRAMES
        table = np.zeros(self.slabs[first // PIECE_FRAMES], SLAB_DTYPE)
        table["frame"] = first + np.arange(len(table))
        table["objects"], table["in_use"] = 16, 16
        self.clock += 1 + len(table) / 64
        return table

    def census(self) -> Slabs:
        return read_slabs(
            self.read_piece,
            array(256),
            ranges=[FrameRange(0, TIB_PIECES * PIECE_FRAMES)],
            linear_base=LINEAR_BASE,
            page_shift=PAGE_SHIFT,
            late=lambda: self.clock >= BUDGET,
        )


def machine(seed: int) -> Machine:
    random = np.random.default_rng(seed)
    return Machine(np.minimum(random.gamma(0.5, 20, TIB_PIECES), 64).astype(np.int64))


def objects_of(slabs: Slabs) -> Estimate:
    return slabs.estimate(np.arange(len(slabs.table)), slabs.table["in_use"].astype(np.float64))


def test_a_machine_of_1_tib_is_read_within_its_budget_and_with_its_stated_error() -> None:
    z_scores = []
    for seed in range(MACHINES):
        one = machine(seed)
        slabs = one.census()
        assert one.clock <= BUDGET + 2
        assert slabs.sampled_share < 0.05
        estimate, truth = objects_of(slabs), 16 * int(one.slabs.sum())
        assert 0.01 * truth < estimate.standard_error < 0.12 * truth
        z_scores.append((estimate.total - truth) / estimate.standard_error)
    assert abs(np.mean(z_scores)) < 3 / math.sqrt(MACHINES)  # unbiased
    inside = np.mean(np.abs(z_scores) <= 1.96)
    assert 0.91 <= inside <= 0.99  # 95 %, with the noise of 200 machines


def test_pieces_of_different_sizes_count_by_their_size() -> None:
    frames = np.array([100, 100, 50], np.int64)
    estimate = estimate_total((frames * 2).astype(np.float64), frames, all_pieces=10, all_frames=900)
    assert estimate == Estimate(1800.0, 0.0)


def test_all_pieces_leave_no_error() -> None:
    values = np.array([1.0, 5.0, 0.0])
    assert estimate_total(values, np.full(3, 8), all_pieces=3, all_frames=24) == Estimate(6.0, 0.0)


@pytest.mark.parametrize("values", [np.array([]), np.array([3.0])])
def test_too_few_pieces_say_nothing_about_the_error(values: npt.NDArray[np.float64]) -> None:
    estimate = estimate_total(values, np.full(len(values), 8), all_pieces=3, all_frames=24)
    assert math.isinf(estimate.standard_error)


def test_the_order_of_pieces_does_not_prefer_any_part_of_memory() -> None:
    """A random order: the mean position of what is read first is the middle, within its standard error."""
    slabs = machine(1).census()
    numbers = slabs.numbers
    standard_error = TIB_PIECES / math.sqrt(12 * len(numbers))
    assert abs(numbers.mean() - TIB_PIECES / 2) < 3 * standard_error
    assert abs(np.mean(numbers % 16) - 7.5) < 3 * 16 / math.sqrt(12 * len(numbers))
