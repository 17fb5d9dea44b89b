"""Time limits of the steps of a run. They are shorter after the run is asked to stop.

A pod that is asked to stop (SIGTERM) is killed after its termination grace period. All steps after the request share
that time: each gets a part of what is left, so that the document is written before the end.
"""

import math
import time
from collections.abc import Callable

USABLE_GRACE = 0.8
"""Share of the grace period for steps with a budget. The rest is for decoding, symbols and the document."""


class Stop:
    """A request to end the run early, and the time that is left after it.

    `grace_seconds`: from the request to the end of the process. There is no lock, because a signal handler may call
    `set`.
    """

    def __init__(self, grace_seconds: float = math.inf, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._grace_seconds = grace_seconds
        self._requested_at = math.inf

    def set(self) -> None:
        """Request the end. Only the first call counts."""
        if not self.is_set():
            self._requested_at = self.clock()

    def is_set(self) -> bool:
        """Return whether the end was requested."""
        return self._requested_at < math.inf

    def budget(self, seconds: float, *, share: float) -> "Budget":
        """Return the budget of a step that starts now: `seconds`, after a request at most `share` of what is left."""
        return Budget(self, seconds, share)

    def end_of_share(self, started_at: float, share: float) -> float:
        """Return when `share` of the time left at the request, or at `started_at` if later, is used up."""
        if not self.is_set():
            return math.inf
        since = max(started_at, self._requested_at)
        end = self._requested_at + USABLE_GRACE * self._grace_seconds
        return since + share * max(0.0, end - since)


class Budget:
    """The time of one step; see Stop.budget."""

    def __init__(self, stop: Stop, seconds: float, share: float) -> None:
        self._stop = stop
        self._started_at = stop.clock()
        self._seconds = seconds
        self._share = share
        self.ran_out = False
        """Whether `late` was ever true: the step was cut short."""

    def late(self) -> bool:
        """Return whether the step must end."""
        end = min(self._started_at + self._seconds, self._stop.end_of_share(self._started_at, self._share))
        if self._stop.clock() >= end:
            self.ran_out = True
        return self.ran_out
