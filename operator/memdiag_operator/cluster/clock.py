"""The API server's clock, taken from the Date header of its responses.

Grace periods and deadlines compare the time with timestamps set by the API server and its controllers. If they used the
clock of the operator's own node, a skewed one would end runs early, or never. The machine's wall clock is used only
until the first response: it may be wrong, and it may jump.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# A Date has whole seconds, so a response may seem this much older than the last; more means that the clock was set.
JITTER_SECONDS = 2.0


class ServerClock:
    """The API server's time, advanced between responses by this machine's monotonic clock."""

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._epoch_at_monotonic_zero: float | None = None

    def observe(self, date: str | None) -> None:
        """Take the Date header of a response that has just arrived; an invalid one is ignored."""
        try:
            answered_at = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return
        with self._lock:
            epoch = answered_at - self._monotonic()
            known = self._epoch_at_monotonic_zero
            # Every response means "at least this late": the latest of them is the best estimate.
            if known is None or epoch > known or epoch < known - JITTER_SECONDS:
                self._epoch_at_monotonic_zero = epoch

    def now(self) -> datetime:
        """The time in whole seconds, as in a status."""
        with self._lock:
            known = self._epoch_at_monotonic_zero
            seconds = self._wall_clock() if known is None else known + self._monotonic()
        return datetime.fromtimestamp(int(seconds), UTC)
