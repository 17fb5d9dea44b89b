"""The sweep: looks at everything again and again, so that a lost event costs seconds and not the run."""

import asyncio
import contextlib
import logging
import time

from memdiag_operator.cluster.errors import ClusterError
from memdiag_operator.cluster.gather import gather_fleet, unsettled_names
from memdiag_operator.config import SweepSettings
from memdiag_operator.decide.run_progress import fleet_load
from memdiag_operator.handlers.reconciler import Reconciler

logger = logging.getLogger(__name__)

OVERDUE_FACTOR = 4
OVERDUE_MARGIN_SECONDS = 60


class Sweep:
    """Sweeps without end, at one pace while something runs and at another when nothing does."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._completed_at = time.monotonic()

    @property
    def age_seconds(self) -> float:
        """Time since the last completed sweep, or since the start."""
        return time.monotonic() - self._completed_at

    @property
    def is_overdue(self) -> bool:
        """Whether it must be taken for stuck. An API server that does not answer does not count as that."""
        return self.age_seconds > OVERDUE_FACTOR * self._settings.idle_seconds + OVERDUE_MARGIN_SECONDS

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            active = await self._sweep()
            pause_seconds = self._settings.active_seconds if active else self._settings.idle_seconds
            await self._pause(pause_seconds)

    async def _sweep(self) -> bool:
        """Whether there was something to do."""
        reconciler = self._reconciler
        names: list[str] = []
        try:
            fleet = await asyncio.to_thread(gather_fleet, reconciler.kubernetes, reconciler.config)
            load = fleet_load(fleet, reconciler.config.max_concurrent_runners, reconciler.clock())
            reconciler.metrics.swept(load, time.time())
            names = list(unsettled_names(fleet))
            await asyncio.gather(*(reconciler.reconcile(name) for name in names))
        except ClusterError as error:
            logger.warning("the sweep has to be repeated: %s", error)
        except Exception:
            # One malformed object must not end the sweeps of all others.
            logger.exception("the sweep met a fault of the operator itself")
            reconciler.metrics.faulted()
        self._completed_at = time.monotonic()
        return bool(names)

    async def _pause(self, seconds: float) -> None:
        wanted = self._reconciler.sweep_wanted
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wanted.wait(), timeout=seconds)
        wanted.clear()

    @property
    def _settings(self) -> SweepSettings:
        return self._reconciler.config.sweep
