"""The API server's clock: neither a wrong wall clock nor one that jumps reaches a decision."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from memdiag_operator.cluster.clock import ServerClock

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


class Machine:
    """A machine whose wall clock is ahead by an hour."""

    def __init__(self) -> None:
        self.monotonic_seconds = 500.0
        self.wall_seconds = NOON.timestamp() + 3600

    def wait(self, seconds: float) -> None:
        self.monotonic_seconds += seconds
        self.wall_seconds += seconds

    def clock(self) -> ServerClock:
        return ServerClock(monotonic=lambda: self.monotonic_seconds, wall_clock=lambda: self.wall_seconds)


def date(second: int) -> str:
    return format_datetime(NOON.replace(second=second), usegmt=True)


def test_before_the_first_answer_the_machine_must_do() -> None:
    assert Machine().clock().now() == NOON.replace(hour=13)


def test_answers_set_it_and_time_goes_on_between_them() -> None:
    machine = Machine()
    clock = machine.clock()
    clock.observe(date(0))
    assert clock.now() == NOON
    machine.wait(20)
    assert clock.now() == NOON.replace(second=20)
    machine.wall_seconds -= 86400
    assert clock.now() == NOON.replace(second=20)


def test_the_whole_seconds_of_a_date_do_not_make_it_jump_back() -> None:
    machine = Machine()
    clock = machine.clock()
    clock.observe(date(10))
    machine.wait(0.9)
    clock.observe(date(10))
    machine.wait(0.2)
    assert clock.now() == NOON.replace(second=11)
    machine.wait(5)
    clock.observe(date(2))  # the API server's clock was set back
    assert clock.now() == NOON.replace(second=2)


@pytest.mark.parametrize("nonsense", [None, "", "yesterday", "Sun, 99 Mar 2026 12:00:00 GMT"])
def test_a_date_that_cannot_be_read_is_passed_over(nonsense: str | None) -> None:
    machine = Machine()
    clock = machine.clock()
    clock.observe(date(0))
    clock.observe(nonsense)
    assert clock.now() == NOON
