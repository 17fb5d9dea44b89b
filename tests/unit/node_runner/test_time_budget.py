"""Time limits of steps, with a clock made for the test."""

import math

import pytest

from memdiag_node import allocation_traces, capture
from memdiag_node.sockets import scanner as sockets
from memdiag_node.time_budget import USABLE_GRACE, Budget, Stop


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def seconds_until_late(budget: Budget, clock: Clock) -> float:
    start = clock.seconds
    while not budget.late():
        clock.seconds += 0.25
    return clock.seconds - start


def test_a_step_has_its_own_limit(clock: Clock) -> None:
    assert seconds_until_late(Stop(30, clock=clock).budget(20, share=0.1), clock) == 20


def test_a_step_without_a_limit_is_never_late_before_a_request(clock: Clock) -> None:
    budget = Stop(30, clock=clock).budget(math.inf, share=0.1)
    clock.seconds += 1e9
    assert not budget.late()


def test_after_a_request_a_step_has_its_share_of_what_is_left(clock: Clock) -> None:
    stop = Stop(100, clock=clock)
    stop.set()
    clock.seconds += 40  # of the 80 s that may be used
    assert seconds_until_late(stop.budget(60, share=0.5), clock) == 20


def test_a_request_cuts_the_step_that_is_running(clock: Clock) -> None:
    stop = Stop(100, clock=clock)
    budget = stop.budget(60, share=0.25)
    clock.seconds += 10
    assert not budget.late()
    stop.set()
    assert seconds_until_late(budget, clock) == 20
    assert budget.ran_out


def test_a_request_never_makes_a_step_longer(clock: Clock) -> None:
    stop = Stop(10_000, clock=clock)
    budget = stop.budget(60, share=0.5)
    clock.seconds += 50
    stop.set()
    assert seconds_until_late(budget, clock) == 10


def test_only_the_first_request_counts(clock: Clock) -> None:
    stop = Stop(100, clock=clock)
    stop.set()
    clock.seconds += 79
    stop.set()
    assert seconds_until_late(stop.budget(60, share=1), clock) == 1


def test_a_step_after_the_grace_period_has_no_time(clock: Clock) -> None:
    stop = Stop(30, clock=clock)
    stop.set()
    clock.seconds += 31
    assert stop.budget(60, share=1).late()


@pytest.mark.parametrize("grace_seconds", [1, 5, 30, 300])
def test_all_steps_of_a_run_together_end_within_the_grace_period(clock: Clock, grace_seconds: float) -> None:
    """Each step uses all of its time and a quarter of a second more: it checks between two pieces of work."""
    stop = Stop(grace_seconds, clock=clock)
    stop.set()
    start = clock.seconds
    shares = (
        *(sockets._LISTING_SHARE, sockets._WALKING_SHARE, sockets._CONFIRMING_SHARE, sockets._OTHERS_SHARE),
        *(allocation_traces._TALLY_SHARE, capture._CENSUS_SHARE),
    )
    for share in shares:
        seconds_until_late(stop.budget(math.inf, share=share), clock)
    assert clock.seconds - start <= USABLE_GRACE * grace_seconds + 0.25
