"""The time that the steps of a run may take: each has a limit of its own, and less once the run is asked to stop.

A pod that is asked to stop (SIGTERM) is killed when its termination grace period is over. All that follows the request
shares that time: each step gets a part of what is left, so that the document is written before the end.
"""

import math
import time
from collections.abc import Callable

USABLE_GRACE = 0.8
"""Of the grace period, for steps with a budget. The rest is for what cannot be cut: decoding, symbols, the document."""


class Stop:
    """A request to end the run early, and how much time is left from then on.

    `grace_seconds`: from the request to the end of the process. A signal handler may call `set`, so there is no lock.
    """

    def __init__(self, grace_seconds: float = math.inf, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._grace_seconds = grace_seconds
        self._requested_at = math.inf

    def set(self) -> None:
        """Ask for the end. Only the first call counts."""
        if not self.is_set():
            self._requested_at = self.clock()

    def is_set(self) -> bool:
        """Whether the run is to end early."""
        return self._requested_at < math.inf

    def budget(self, seconds: float, *, share: float) -> "Budget":
        """The time of a step that begins now: `seconds`, after a request no more than `share` of what is left then."""
        return Budget(self, seconds, share)

    def end_of_share(self, began_at: float, share: float) -> float:
        """When `share` of the time that was left, at the request or at `began_at` if that is later, is used up."""
        if not self.is_set():
            return math.inf
        since = max(began_at, self._requested_at)
        end = self._requested_at + USABLE_GRACE * self._grace_seconds
        return since + share * max(0.0, end - since)


class Budget:
    """The time of one step; see Stop.budget."""

    def __init__(self, stop: Stop, seconds: float, share: float) -> None:
        self._stop = stop
        self._began_at = stop.clock()
        self._seconds = seconds
        self._share = share
        self.ran_out = False
        """Whether `late` was ever true: the step was cut."""

    def late(self) -> bool:
        """Whether the step has to end."""
        end = min(self._began_at + self._seconds, self._stop.end_of_share(self._began_at, self._share))
        if self._stop.clock() >= end:
            self.ran_out = True
        return self.ran_out
