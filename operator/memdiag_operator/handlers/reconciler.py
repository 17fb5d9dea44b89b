"""Gather, decide, apply: the loop behind every event and every sweep."""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from weakref import WeakValueDictionary

from memdiag_operator.cluster.apply import apply
from memdiag_operator.cluster.cache import Cache
from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.errors import ClusterError, ConflictError, NotFoundError
from memdiag_operator.cluster.gather import gather, gather_about, gather_fleet, reread, with_fresh_nodes
from memdiag_operator.cluster.orphans import orphans, remove_orphans
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide import naming
from memdiag_operator.decide.objects import Diagnosis, Pod
from memdiag_operator.decide.pace import is_only_progress
from memdiag_operator.decide.reconcile import nodes_to_launch_on, reconcile, starts_anew, wants_slot
from memdiag_operator.decide.run_progress import node_steps, run_begins
from memdiag_operator.decide.snapshot import Plan, Snapshot
from memdiag_operator.metrics import OperatorMetrics
from memdiag_operator.run_log import about, of_run

logger = logging.getLogger(__name__)

ATTEMPTS = 5
DIAGNOSES_AT_ONCE = 8
DIAGNOSES_WITH_RESULTS_AT_ONCE = 3


class Reconciler:
    """Brings diagnoses forward, one step of one diagnosis at a time; different diagnoses go at the same time."""

    def __init__(
        self,
        kubernetes: KubernetesClient,
        config: OperatorConfig,
        metrics: OperatorMetrics,
    ) -> None:
        self.kubernetes = kubernetes
        self.config = config
        self.metrics = metrics
        self.cache = Cache()
        self.clock = kubernetes.clock.now
        """The API server's time."""
        self.sweep_wanted = asyncio.Event()
        """Set when a run has begun, whose progress is to be told, or a slot may have become free for another."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._queued: set[str] = set()
        # Counting runners and adding one must not be interleaved.
        self._launch_lock = asyncio.Lock()
        # A diagnosis that is looked at is large, and larger with the results that have just come.
        self._looks = asyncio.Semaphore(DIAGNOSES_AT_ONCE)
        self._results = asyncio.Semaphore(DIAGNOSES_WITH_RESULTS_AT_ONCE)
        self._told_at: dict[str, float] = {}
        """By UID: when a status was last written. Without it, after a restart, progress is told once too often."""
        self._deleted_uids: set[str] = set()
        """Diagnoses that were deleted: Kubernetes deletes their children, unless somebody asked for orphans."""
        self._woken: set[asyncio.Task[None]] = set()

    def saw_diagnosis(self, diagnosis: Diagnosis, *, deleted: bool) -> None:
        """A watch has delivered `diagnosis`."""
        meta = diagnosis.metadata
        if deleted:
            self.cache.diagnoses.drop(meta.name, meta.uid)
            self._told_at.pop(meta.uid, None)
            self._deleted_uids.add(meta.uid)
            self.sweep_wanted.set()
        else:
            self.cache.diagnoses.put(diagnosis)
            self.wake(meta.name)

    def saw_pod(self, pod: Pod, *, deleted: bool) -> None:
        """A watch has delivered a runner pod."""
        meta = pod.metadata
        if deleted:
            self.cache.pods.drop(meta.name, meta.uid)
            self.sweep_wanted.set()
        else:
            self.cache.pods.put(pod)
        if name := meta.annotations.get(naming.DIAGNOSIS_ANNOTATION):
            self.wake(name)

    def wake(self, name: str) -> asyncio.Task[None]:
        """Reconcile `name` soon, without keeping the caller waiting for it."""
        task = asyncio.create_task(self.reconcile(name), name=f"reconcile {name}")
        self._woken.add(task)
        task.add_done_callback(self._woken.discard)
        return task

    async def remove_orphans(self) -> None:
        """Remove what is left of deleted diagnoses. Raises ClusterError when that has to wait."""
        uids = set(self._deleted_uids)
        if uids or orphans(self.cache):
            await asyncio.to_thread(remove_orphans, self.kubernetes, self.cache, uids)
            self._deleted_uids -= uids

    async def stop(self) -> None:
        """Drop what events and sweeps have asked for: the next operator finds it again."""
        for task in self._woken:
            task.cancel()
        await asyncio.gather(*self._woken, return_exceptions=True)

    async def reconcile(self, name: str) -> None:
        """Take the diagnosis `name` as far as it goes now. Failures are logged: the next sweep tries again."""
        if name in self._queued or not self.cache.is_complete:
            return  # the one that waits, or the first sweep, will see the same world
        self._queued.add(name)
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            self._queued.discard(name)
            with about(name):
                await self._reconcile_or_log(name)

    async def _reconcile_or_log(self, name: str) -> None:
        try:
            async with self._results if self._has_ended_runner(name) else contextlib.nullcontext(), self._looks:
                await self._reconcile(name)
        except ClusterError as error:
            logger.warning("diagnosis %s has to wait for the next sweep: %s", name, error)
        except Exception:
            # A fault of the operator itself, met with one diagnosis: all others must go on.
            logger.exception("diagnosis %s has to wait: the operator met a fault of its own", name)
            self.metrics.faulted()

    def _has_ended_runner(self, name: str) -> bool:
        ended = (pod.metadata for pod in self.cache.pods.all() if pod.is_terminal)
        return any(meta.annotations.get(naming.DIAGNOSIS_ANNOTATION) == name for meta in ended)

    async def _reconcile(self, name: str) -> None:
        for _ in range(ATTEMPTS):
            try:
                refusals = await self._once(name, {})
                if refusals:
                    await self._once(name, refusals)
            except (ConflictError, NotFoundError):
                await asyncio.to_thread(reread, self.kubernetes, self.cache, name)
                continue
            return
        logger.warning("diagnosis %s keeps changing: the next sweep goes on with it", name)

    async def _once(self, name: str, refusals: dict[str, str]) -> dict[str, str]:
        began_at = time.monotonic()
        snapshot = await asyncio.to_thread(gather, self.kubernetes, self.cache, self.config, name, self.clock())
        if snapshot is None:
            return {}
        before = snapshot.diagnosis
        of_run(before.status.run_id)
        begun = Plan()
        if starts_anew(before):
            begun, snapshot = await self._begin(snapshot)
        if refusals or not wants_slot(snapshot):
            return await self._decide_and_apply(before, begun, replace(snapshot, refusals=refusals))
        async with self._launch_lock:
            snapshot = replace(snapshot, fleet=gather_fleet(self.cache, snapshot.diagnosis))
            names = nodes_to_launch_on(snapshot, self.config, self.clock())
            age_seconds = time.monotonic() - began_at
            snapshot = await asyncio.to_thread(
                with_fresh_nodes, self.kubernetes, self.cache, snapshot, names, age_seconds
            )
            return await self._decide_and_apply(before, begun, snapshot)

    async def _begin(self, snapshot: Snapshot) -> tuple[Plan, Snapshot]:
        """Begin a run, and see at once how it goes on, so that both become one write."""
        now = self.clock()
        begun = reconcile(snapshot, self.config, now)
        diagnosis = snapshot.diagnosis.model_copy(update={"status": begun.status} if begun.status else {})
        return begun, await asyncio.to_thread(gather_about, self.kubernetes, self.cache, self.config, diagnosis, now)

    async def _decide_and_apply(self, before: Diagnosis, begun: Plan, snapshot: Snapshot) -> dict[str, str]:
        """Carry out `begun` and what is to be done next; `before` is the diagnosis as it is stored."""
        plan = begun.then(reconcile(snapshot, self.config, self.clock()))
        of_run(plan.status.run_id if plan.status else None)
        if is_only_progress(before, plan) and self._told_lately(before.metadata.uid):
            return {}
        refusals = await asyncio.to_thread(apply, self.kubernetes, self.cache, self.config, snapshot, plan)
        if plan.status:
            self._told_at[before.metadata.uid] = time.monotonic()
        self.metrics.applied(before, plan)
        _log(before, plan)
        if plan.launches or plan.removals:
            self.sweep_wanted.set()
        return refusals

    def _told_lately(self, uid: str) -> bool:
        """Whether the status was just written: the next sweep, one pace of progress later, tells the latest."""
        return time.monotonic() - self._told_at.get(uid, float("-inf")) < self.config.sweep.active_seconds / 2


def _log(diagnosis: Diagnosis, plan: Plan) -> None:
    """Tell of each step of a run: its begin, every node's way, its end."""
    name = diagnosis.metadata.name
    nodes = [
        (logging.INFO, f"node {step.node_name} is {step.reason}", step.message) for step in node_steps(diagnosis, plan)
    ]
    run = [
        (logging.WARNING if one.type == "Warning" else logging.INFO, one.reason, one.message)
        for one in plan.announcements
    ]
    for level, what, message in [*run, *nodes] if run_begins(diagnosis, plan) else [*nodes, *run]:
        logger.log(level, "diagnosis %s: %s%s", name, what, f": {message}" if message else "")
