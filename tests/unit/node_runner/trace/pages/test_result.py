import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.trace.pages.result import GROUP_DTYPE
from memdiag_node.trace.pages.uses import calibrated_weights
from support.trace_results import NO_BLOCKS


def groups_of(
    blocks: tuple[int, ...], levels: tuple[int, ...], *, order: int, random: np.random.Generator
) -> npt.NDArray[np.void]:
    """What a trace has of `blocks` outstanding blocks of each stack if it recorded one in 2^level at random."""
    recorded = np.array([random.binomial(count, 0.5**level) for count, level in zip(blocks, levels, strict=True)])
    groups = np.zeros(len(blocks), GROUP_DTYPE)
    groups["stack"], groups["order"], groups["frames"] = np.arange(len(blocks)), order, recorded << order
    thinned_frames = (sum(blocks) - int(recorded.sum())) << order
    groups["weight"] = calibrated_weights(np.array(levels, np.uint8), groups["frames"], thinned_frames)
    return groups


@pytest.mark.parametrize(
    ("blocks", "levels"),
    [((170, 500), (5, 5)), ((500, 500), (3, 6)), ((2000, 2000), (6, 3)), ((1000, 3000), (4, 7))],
    ids=["few blocks", "others thinned more", "others thinned less", "a small share"],
)
def test_the_stated_error_is_that_of_repeated_traces(blocks: tuple[int, int], levels: tuple[int, int]) -> None:
    """Also if one stack is thinned more than the other: then most of the error is that of the other one."""
    order, random = 3, np.random.default_rng(1)
    squares, stated = [], []
    for _ in range(3000):
        groups = groups_of(blocks, levels, order=order, random=random)
        estimated = float(groups[0]["frames"] * groups[0]["weight"])
        squares.append((estimated - (blocks[0] << order)) ** 2)
        stated.append(dataclasses.replace(NO_BLOCKS, groups=groups).error_bytes(groups[:1]) ** 2)
    assert float(np.mean(stated)) == pytest.approx(float(np.mean(squares)), rel=0.12)


def test_a_stack_that_was_recorded_completely_has_no_error() -> None:
    groups = groups_of((20, 4000), (0, 5), order=0, random=np.random.default_rng(1))
    result = dataclasses.replace(NO_BLOCKS, groups=groups)
    assert result.error_bytes(groups[:1]) == 0
    assert result.error_bytes(groups[1:]) == pytest.approx(0)


def test_errors_of_several_orders_add_up_as_squares() -> None:
    random = np.random.default_rng(1)
    small, large = (groups_of((300, 900), (4, 4), order=order, random=random) for order in (0, 2))
    together = dataclasses.replace(NO_BLOCKS, groups=np.concatenate((small, large)))
    apart = [dataclasses.replace(NO_BLOCKS, groups=groups).error_bytes(groups[:1]) for groups in (small, large)]
    assert together.error_bytes(np.concatenate((small[:1], large[:1]))) == pytest.approx(math.hypot(*apart))
