"""The sweep: reconciles everything periodically, so that a lost event costs seconds and not the run.

It uses what the watches have delivered. Whole lists, which cost requests, are read rarely: in case a watch has missed
something, or has died silently.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from memdiag_operator.cluster.apply import delete_old_reports
from memdiag_operator.cluster.errors import ClusterError
from memdiag_operator.config import SweepSettings
from memdiag_operator.decide.limits import held_back, load
from memdiag_operator.decide.pace import due, only_waiting
from memdiag_operator.decide.stored_reports import stored_bytes
from memdiag_operator.loop.reconciler import Reconciler

logger = logging.getLogger(__name__)

RELIST_SECONDS = 600.0
REPORTS_RETRY_SECONDS = 60.0
# While runs are in progress, every runner that starts or ends requests a sweep.
SHORTEST_PAUSE_SECONDS = 0.2
# A reconcile that takes longer continues by itself: a slow node must not delay the sweep of all others.
LOOKS_SECONDS = 10.0
OVERDUE_FACTOR = 4
OVERDUE_MARGIN_SECONDS = 60


class Sweep:
    """Sweeps endlessly, at one interval while runs are in progress and at another when there are none."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._completed_at = time.monotonic()
        self._active = True
        self._is_answered = False
        self._relisted_at = self._pods_relisted_at = self._all_looked_at = float("-inf")
        self._reports_due_at = float("-inf")

    @property
    def age_seconds(self) -> float:
        """Time since the last completed sweep, or since the start."""
        return time.monotonic() - self._completed_at

    @property
    def is_overdue(self) -> bool:
        """Whether the sweep must be considered stuck. An API server that does not respond does not count."""
        return self.age_seconds > OVERDUE_FACTOR * self._settings.idle_seconds + OVERDUE_MARGIN_SECONDS

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._sweep()
            await self._pause(self._settings.active_seconds if self._active else self._settings.idle_seconds)

    async def _sweep(self) -> None:
        reconciler = self._reconciler
        try:
            await self._relist()
            await self._remove_orphans()
            looks = [reconciler.wake(name) for name in self._due()]
            if looks:
                await asyncio.wait(looks, timeout=LOOKS_SECONDS)
            await self._keep_to_budget()
        except Exception:
            # One malformed object must not end the sweeps of all others.
            logger.exception("internal error in the sweep")
            reconciler.metrics.faulted()
        self._completed_at = time.monotonic()

    async def _relist(self) -> None:
        """Refill the cache by whole lists, if due; without a response, continue with what the watches deliver."""
        cluster, now = self._reconciler.cluster, time.monotonic()
        try:
            if not self._is_answered or now - self._relisted_at > RELIST_SECONDS:
                await asyncio.to_thread(cluster.refill)
                self._relisted_at = self._pods_relisted_at = now
            elif self._active and now - self._pods_relisted_at > self._settings.idle_seconds:
                await asyncio.to_thread(cluster.refill_pods)
                self._pods_relisted_at = now
            self._is_answered = True
        except ClusterError as error:
            self._is_answered = False
            logger.warning("cannot list the cluster, will retry on the next sweep: %s", error)

    async def _remove_orphans(self) -> None:
        try:
            await self._reconciler.remove_orphans()
        except ClusterError as error:
            logger.warning("cannot remove what deleted diagnoses left behind, will retry on the next sweep: %s", error)

    async def _keep_to_budget(self) -> None:
        """Delete the oldest reports when all together are too large."""
        cluster, metrics = self._reconciler.cluster, self._reconciler.metrics
        now = time.monotonic()
        try:
            if now > self._reports_due_at:
                self._reports_due_at = now + REPORTS_RETRY_SECONDS
                await asyncio.to_thread(cluster.refill_reports)
                self._reports_due_at = now + RELIST_SECONDS
            deleted = await asyncio.to_thread(delete_old_reports, cluster)
        except ClusterError as error:
            logger.warning("cannot keep stored reports within their budget, will retry on the next sweep: %s", error)
            return
        metrics.counted_reports(stored_bytes(cluster.cache.reports.all()), deleted)

    def _due(self) -> Sequence[str]:
        """The diagnoses to reconcile now: all that need work, less often those that only wait."""
        reconciler, cluster, now = self._reconciler, self._reconciler.cluster, time.monotonic()
        fleet, allotment = cluster.cache.fleet(), reconciler.allotment()
        held = held_back(fleet.claims, reconciler.starting, cluster.config.limits)
        if self._is_answered:
            reconciler.metrics.swept(allotment, load(fleet.claims), len(held), time.time())
        names = due(fleet, held)
        self._active = bool(names) or not self._is_answered
        if now - self._all_looked_at > self._settings.idle_seconds:
            self._all_looked_at = now
            return names
        waiting = only_waiting(fleet, allotment)
        patient = {one.name for one in fleet.claims if one.uid in waiting}.difference(cluster.cache.diagnoses.drafted())
        return [name for name in names if name not in patient]

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(SHORTEST_PAUSE_SECONDS)
        wanted = self._reconciler.sweep_wanted
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wanted.wait(), timeout=seconds)
        wanted.clear()

    @property
    def _settings(self) -> SweepSettings:
        return self._reconciler.cluster.config.sweep
