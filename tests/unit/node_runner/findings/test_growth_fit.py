"""A line through sizes: its rate, its error, and whether they rise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.findings.growth_fit import Point, fall_bytes, fit


def points(*sizes: int, error: int = 0) -> list[Point]:
    return [Point(10.0 * index, size, error) for index, size in enumerate(sizes)]


def test_two_points_have_a_rate_and_the_error_of_both() -> None:
    growth = fit(points(100, 300, error=5))
    assert growth
    assert (growth.grown_bytes, growth.seconds, growth.bytes_per_second) == (200, 10.0, 20.0)
    assert (growth.error_bytes_per_second, growth.read_error_bytes, growth.explained_share) == (1.0, 10, 1.0)


def test_points_on_a_line_have_no_error() -> None:
    growth = fit(points(0, 100, 200, 300))
    assert growth
    assert growth.bytes_per_second == pytest.approx(10)
    assert growth.error_bytes_per_second == pytest.approx(0, abs=1e-9)
    assert growth.explained_share == pytest.approx(1)
    assert growth.is_rising


def test_the_error_is_the_standard_error_of_the_slope() -> None:
    """Checked by hand: residuals -10/3, 20/3, -10/3 of a line with the slope 1.5 through 0, 25, 30."""
    growth = fit(points(0, 25, 30))
    assert growth
    assert growth.bytes_per_second == pytest.approx(1.5)
    assert growth.error_bytes_per_second == pytest.approx(((3 * 200 / 9) / 1 / 200) ** 0.5)
    assert growth.explained_share == pytest.approx(1 - (600 / 9) / 516.6667, rel=1e-4)


@pytest.mark.parametrize("found", [[], points(1), [Point(5, 1), Point(5, 2)]])
def test_one_time_is_not_enough(found: list[Point]) -> None:
    assert fit(found) is None


@pytest.mark.parametrize(
    ("sizes", "fall"), [((), 0), ((1, 2, 3), 0), ((5, 1, 6), 4), ((1, 9, 8, 2, 7), 7), ((3, 2), 1)]
)
def test_the_largest_fall(sizes: tuple[int, ...], fall: int) -> None:
    assert fall_bytes(points(*sizes)) == fall


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=10), st.integers(0, 2**40))
def test_more_at_the_end_is_never_a_lower_rate_nor_a_larger_fall(sizes: list[int], more: int) -> None:
    before, after = points(*sizes), points(*sizes[:-1], sizes[-1] + more)
    slower, faster = fit(before), fit(after)
    assert slower
    assert faster
    assert faster.bytes_per_second >= slower.bytes_per_second - 1e-3
    assert fall_bytes(after) <= fall_bytes(before)


@pytest.mark.parametrize(
    ("name", "found", "is_rising"),
    [
        ("every interval grew", [(0, 0), (50, 500), (100, 1000)], True),
        ("a long interval without growth", [(0, 0), (50, 1000), (100, 1000)], False),
        ("noise in a short interval", [(0, 0), (50, 500), (99, 1000), (100, 960)], True),
        ("more than noise in a short interval", [(0, 0), (50, 500), (99, 1000), (100, 940)], False),
        ("noise in a long interval", [(0, 0), (50, 1000), (100, 990)], False),
    ],
)
def test_every_interval_must_grow_but_for_noise_in_short_ones(
    name: str, found: list[tuple[float, int]], is_rising: bool
) -> None:
    growth = fit([Point(at_seconds, size) for at_seconds, size in found])
    assert growth
    assert growth.is_rising is is_rising, name
