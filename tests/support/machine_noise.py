"""Measure how much the rest of the machine changes the figure that a test checks.

Some bounds are about the whole machine: allocpage and free memory change with every process on it. A test of such a
bound first measures how much the figure changes by itself, over the time that the test takes and without its load. If
that alone exceeds the test's tolerance, nothing can be judged: the test fails and says so.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from memdiag_api.units import format_bytes
from memdiag_node.breakdown.classes import breakdown
from memdiag_node.breakdown.reading import take_readings
from memdiag_node.procfs.roots import HostRoots

_SAMPLES_PER_SECOND = 4
_REST_SECONDS = 0.5
_QUIET_RESTS = 2
_RESTS = 10


@dataclass(frozen=True, slots=True)
class Noise:
    """How much `what` changed within `seconds`, without the test's load."""

    what: str
    moved_bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.what} moved by {format_bytes(self.moved_bytes)} in {self.seconds:.1f} s without the test's load"

    def tolerated_bytes(self, tolerance_bytes: float) -> float:
        """The allowed error of a figure: `tolerance_bytes` plus the change by the machine itself.

        Fails the test if the latter exceeds the former: then the figure says nothing about the load.
        """
        if self.moved_bytes > tolerance_bytes:
            raise too_busy(f"{self}, more than the test's tolerance of {format_bytes(tolerance_bytes)}")
        return tolerance_bytes + self.moved_bytes


def too_busy(reason: str) -> BaseException:
    """The error to raise if a test cannot judge its load: the test fails, and is not skipped."""
    return pytest.fail.Exception(f"machine too busy to judge: {reason}", pytrace=False)


def noise_of(what: str, readings_bytes: Sequence[int], seconds: float) -> Noise:
    """The largest distance between any two of the readings."""
    return Noise(what, max(readings_bytes) - min(readings_bytes), seconds)


def measure_noise(what: str, read_bytes: Callable[[], int], seconds: float) -> Noise:
    """Read the figure repeatedly for `seconds`."""
    start = time.monotonic()
    readings, elapsed = [read_bytes()], 0.0
    while elapsed < seconds:
        time.sleep(min(1 / _SAMPLES_PER_SECOND, seconds - elapsed))
        readings.append(read_bytes())
        elapsed = time.monotonic() - start
    return noise_of(what, readings, elapsed)


def change_by(action: Callable[[], object], read_bytes: Callable[[], int], *, quiet_bytes: float) -> int | None:
    """How much `action` changes a figure; None if the machine changes it by more than `quiet_bytes` before or after.

    The kernel frees some memory only some time after the end of its process. In a guest it then takes free pages from
    its lists, for some moments from about two seconds later on, to report them to the host (mm/page_reporting.c). So
    wait until the figure has been stable for `_QUIET_RESTS` rests.
    """
    earlier = read_bytes()
    time.sleep(_REST_SECONDS)
    before = read_bytes()
    if abs(before - earlier) > quiet_bytes:
        return None
    action()
    after = [read_bytes()]
    for _ in range(_RESTS):
        time.sleep(_REST_SECONDS)
        after.append(read_bytes())
        latest = after[-_QUIET_RESTS - 1 :]
        if len(latest) > _QUIET_RESTS and max(latest) - min(latest) <= quiet_bytes:
            return after[-1] - before
    return None


def measure_alloc_page_noise(seconds: float) -> Noise:
    """How much allocpage changes."""
    return measure_noise("allocpage", alloc_page_bytes, seconds)


def alloc_page_bytes() -> int:
    """Allocpage now: unlike MemFree, independent of processes, and of free pages on the lists of the CPUs."""
    return breakdown(take_readings(HostRoots())).alloc_page_bytes
