import random
import statistics

import pytest

from support.medians import median_of


def test_equal_values_leave_no_doubt() -> None:
    found = median_of([1.2] * 5)
    assert (found.value, found.low, found.high, found.half_width) == (1.2, 1.2, 1.2, 0.0)
    assert str(found) == "1.20 (1.20 to 1.20)"


def test_the_interval_has_the_true_median_in_nine_of_ten_samples() -> None:
    draw = random.Random(1)
    samples = [[draw.gauss(1.1, 0.1) for _ in range(15)] for _ in range(200)]
    covered = sum(1 for sample in samples if (found := median_of(sample)).low <= 1.1 <= found.high)
    assert 0.82 <= covered / len(samples) <= 0.97


def test_an_outlier_moves_neither_the_median_nor_much_of_its_interval() -> None:
    values = [1.10, 1.11, 1.12, 1.13, 1.14, 1.11, 1.12, 1.13]
    assert median_of([*values, 9.0]).high < 1.2
    assert median_of([*values, 9.0]).value == statistics.median([*values, 9.0])


def test_more_values_narrow_the_interval() -> None:
    draw = random.Random(1)
    values = [draw.gauss(1.1, 0.1) for _ in range(64)]
    assert median_of(values).half_width < median_of(values[:6]).half_width == pytest.approx(0.07, abs=0.06)
