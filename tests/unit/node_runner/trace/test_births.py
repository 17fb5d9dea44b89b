"""The rule for growth, a pin and churn: a row for each way that survivors can be distributed over a window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.evidence import Trend
from memdiag_node.trace.births import growth_of, median_life_seconds

MIB = 1 << 20
SLICES = 20


@pytest.mark.parametrize(
    ("why", "births", "trend"),
    [
        ("the same in every slice", [MIB] * SLICES, Trend.GROWING),
        ("a leak in bursts, every other slice", [2 * MIB, 0] * 10, Trend.GROWING),
        ("a leak and young survivors of churn on top", [MIB] * 18 + [30 * MIB] * 2, Trend.GROWING),
        ("a leak that gets faster", [MIB * (10 + i) for i in range(SLICES)], Trend.GROWING),
        ("nothing but young survivors", [0] * 18 + [MIB, 9 * MIB], Trend.CHURN),
        ("young survivors and a few old ones", [4096] * 15 + [MIB] * 5, Trend.CHURN),
        ("once filled, at the start", [40 * MIB] + [0] * 19, Trend.PINNED),
        ("filled in three steps", [0, MIB, 0, 0, 0, MIB, 0, 0, 0, 0, MIB] + [0] * 9, Trend.PINNED),
        ("long lives: it thins out towards the past", [2.0**i for i in range(SLICES)], Trend.CHURN),
        ("longer lives: half as many every four slices", [MIB * 2 ** (i / 4) for i in range(SLICES)], Trend.UNCLEAR),
        ("old ones and as many young ones", [10 * MIB] + [0] * 12 + [2 * MIB] * 7, Trend.UNCLEAR),
        ("nothing", [0] * SLICES, Trend.CHURN),
    ],
)
def test_trend(why: str, births: list[float], trend: Trend) -> None:
    assert growth_of(births, slice_seconds=1.0, last_slice_seconds=1.0, blocks=1000).trend is trend, why


def test_few_blocks_prove_nothing() -> None:
    assert growth_of([4096.0] * SLICES, slice_seconds=1.0, last_slice_seconds=1.0, blocks=7).trend is Trend.UNCLEAR


def test_too_few_slices_prove_nothing() -> None:
    assert growth_of([MIB] * 5, slice_seconds=1.0, last_slice_seconds=1.0, blocks=1000).trend is Trend.UNCLEAR


def test_growth_is_bytes_per_second_with_the_error_of_the_mean() -> None:
    steady = growth_of([5.0 * MIB] * SLICES, slice_seconds=0.5, last_slice_seconds=0.5, blocks=1000)
    assert steady.bytes_per_second == pytest.approx(10 * MIB)
    assert steady.error_bytes_per_second == 0
    uneven = growth_of([4.0 * MIB, 6.0 * MIB] * 10, slice_seconds=0.5, last_slice_seconds=0.5, blocks=1000)
    assert uneven.bytes_per_second == pytest.approx(10 * MIB)
    assert uneven.error_bytes_per_second == pytest.approx(2 * MIB / 12**0.5 * (12 / 11) ** 0.5)


def test_thinned_figures_have_a_larger_error_and_lose_their_verdict_when_it_is_too_large() -> None:
    births = [1.0 * MIB] * SLICES
    sure = growth_of(births, slice_seconds=1.0, last_slice_seconds=1.0, blocks=1000, error_bytes=MIB)
    unsure = growth_of(births, slice_seconds=1.0, last_slice_seconds=1.0, blocks=1000, error_bytes=15 * MIB)
    assert 0 < sure.error_bytes_per_second < unsure.error_bytes_per_second
    assert (sure.trend, unsure.trend) == (Trend.GROWING, Trend.UNCLEAR)


@pytest.mark.parametrize(
    ("why", "births", "trend"),
    [
        ("a steady leak", [MIB] * 19 + [160 * MIB], Trend.GROWING),
        ("a leak and churn on top", [MIB] * 19 + [190 * MIB], Trend.GROWING),
        ("nothing but young survivors", [0] * 19 + [160 * MIB], Trend.CHURN),
        ("once filled, and more since", [40 * MIB] + [0] * 18 + [100 * MIB], Trend.UNCLEAR),
        ("once filled", [40 * MIB] + [0] * 18 + [10 * MIB], Trend.PINNED),
    ],
)
def test_trend_when_the_last_slice_is_160_times_as_long(why: str, births: list[float], trend: Trend) -> None:
    growth = growth_of(births, slice_seconds=0.25, last_slice_seconds=40, blocks=1000)
    assert growth.trend is trend, why


@given(st.lists(st.floats(0, 2**50), max_size=64), st.floats(0.001, 100), st.floats(0, 1000), st.integers(0, 10**9))
def test_any_profile_has_an_answer(
    births: list[float], slice_seconds: float, last_slice_seconds: float, blocks: int
) -> None:
    growth = growth_of(births, slice_seconds=slice_seconds, last_slice_seconds=last_slice_seconds, blocks=blocks)
    assert growth.bytes_per_second >= 0
    assert growth.error_bytes_per_second >= 0


@pytest.mark.parametrize(
    ("lives", "seconds"),
    [
        ({}, None),
        ({4 * 10: 5}, 1024e-6 * 4.5 / 4),
        ({4 * 3: 1, 4 * 10 + 1: 1, 4 * 20: 1}, 1024e-6 * 5.5 / 4),
        ({4 * 20 + 3: 100, 0: 1}, 2**20 * 1e-6 * 7.5 / 4),
    ],
)
def test_median_life(lives: dict[int, int], seconds: float | None) -> None:
    assert median_life_seconds(lives) == (seconds if seconds is None else pytest.approx(seconds))
