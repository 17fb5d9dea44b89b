"""A busy machine fails a test with that reason; it neither loosens a bound silently nor skips the test."""

import pytest

from support import machine_noise
from support.machine_noise import Noise, change_by, measure_noise, noise_of, too_busy

MIB = 1 << 20


def test_the_noise_is_the_largest_distance_between_two_readings() -> None:
    assert noise_of("allocpage", [5 * MIB, 9 * MIB, 2 * MIB, 8 * MIB], 6.0) == Noise("allocpage", 7 * MIB, 6.0)
    assert noise_of("allocpage", [5 * MIB], 0.0).moved_bytes == 0


def test_on_a_quiet_machine_the_bound_is_the_tests_own() -> None:
    assert Noise("allocpage", 0, 6.0).tolerated_bytes(3 * MIB) == 3 * MIB


def test_what_the_machine_moves_by_itself_is_added() -> None:
    assert Noise("allocpage", 2 * MIB, 6.0).tolerated_bytes(3 * MIB) == 5 * MIB


def test_more_noise_than_the_bound_is_a_failure_that_says_so() -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        Noise("allocpage", 74 * MIB, 40.0).tolerated_bytes(27.2 * MIB)
    assert str(caught.value) == (
        "machine too busy to judge: allocpage moved by 74.0 MiB in 40.0 s without the test's load, "
        "more than the test's tolerance of 27.2 MiB"
    )


def test_it_is_a_failure_and_not_a_skip() -> None:
    with pytest.raises(pytest.fail.Exception, match="machine too busy to judge: why"):
        raise too_busy("why")


def test_the_figure_is_read_at_both_ends() -> None:
    readings = iter([10, 30, *[20] * 1000])
    noise = measure_noise("a figure", lambda: next(readings), 0.3)
    assert noise.moved_bytes == 20


@pytest.mark.parametrize(
    ("readings", "change_bytes"),
    [
        pytest.param([100, 101, 60, 61, 61], -40, id="quiet: at rest at once"),
        pytest.param([100, 100, 90, 60, 61, 61], -39, id="the last of it went a little later"),
        pytest.param([100, 100, 70, 70, 60, 61, 61], -39, id="the last of it went after a while"),
        pytest.param([100, 120, 60, 60], None, id="moved before"),
        pytest.param([100, 100, *range(0, 1000, 50)], None, id="never at rest after"),
    ],
)
def test_a_change_is_reported_only_between_two_quiet_moments(
    monkeypatch: pytest.MonkeyPatch, readings: list[int], change_bytes: int | None
) -> None:
    monkeypatch.setattr(machine_noise, "_REST_SECONDS", 0.001)
    following = iter(readings)
    assert change_by(lambda: None, lambda: next(following), quiet_bytes=5) == change_bytes
