"""Which diagnosis is reconciled when, and which steps may run at the same time."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from weakref import WeakValueDictionary

from memdiag_operator.cluster.apply import apply
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import ClusterError, ConflictError, NotFoundError
from memdiag_operator.cluster.fetch import fetch, read_snapshot, reread
from memdiag_operator.cluster.orphans import orphans, remove_orphans
from memdiag_operator.decide.changes import node_steps, run_starts
from memdiag_operator.decide.claims import claim_of
from memdiag_operator.decide.fleet import Fleet
from memdiag_operator.decide.limits import may_start, why_it_waits
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.slots import Allotment, allot
from memdiag_operator.decide.snapshot import Needs, Snapshot
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, Pod
from memdiag_operator.loop.driver import drive
from memdiag_operator.metrics import OperatorMetrics
from memdiag_operator.run_log import about, of_run

logger = logging.getLogger(__name__)

ATTEMPTS = 5
DIAGNOSES_AT_ONCE = 8
DIAGNOSES_WITH_RESULTS_AT_ONCE = 3


class Reconciler:
    """Reconciles diagnoses: one step of a diagnosis at a time, different diagnoses concurrently."""

    def __init__(self, cluster: Cluster, metrics: OperatorMetrics) -> None:
        self.cluster = cluster
        self.metrics = metrics
        self.sweep_wanted = asyncio.Event()
        """Set when a run has started, whose progress must be reported, or a slot may have become free for another."""
        self.launch_lock = asyncio.Lock()
        """Counting runners and adding one must not be interleaved."""
        self.starting: set[str] = set()
        """Names of the diagnoses whose run is being started right now: the limits count them."""
        self.written_at: dict[str, float] = {}
        """By UID: when a status was last written. Without it, after a restart, progress is reported once too often."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._queued: set[str] = set()
        # A diagnosis is large while it is reconciled, and larger with results that have just arrived.
        self._steps = asyncio.Semaphore(DIAGNOSES_AT_ONCE)
        self._results = asyncio.Semaphore(DIAGNOSES_WITH_RESULTS_AT_ONCE)
        # To choose nodes, all nodes of the cluster are read, which are large.
        self._selections = asyncio.Semaphore(1)
        self._allotted: tuple[tuple[object, ...], Allotment] | None = None
        self._deleted_uids: set[str] = set()
        """Diagnoses that were deleted: Kubernetes deletes their children, except with `--cascade=orphan`."""
        self._woken: set[asyncio.Task[None]] = set()

    def saw_diagnosis(self, diagnosis: Diagnosis, *, deleted: bool) -> None:
        """Take `diagnosis` as a watch has delivered it."""
        meta, cache = diagnosis.metadata, self.cluster.cache
        if deleted:
            cache.diagnoses.drop(meta.name, meta.uid)
            cache.reports.drop(lambda run: run.diagnosis_uid == meta.uid)
            self.written_at.pop(meta.uid, None)
            self._deleted_uids.add(meta.uid)
            self.sweep_wanted.set()
        else:
            cache.diagnoses.put(diagnosis)
            self.wake(meta.name)

    def saw_pod(self, pod: Pod, *, deleted: bool) -> None:
        """Take a runner pod as a watch has delivered it."""
        meta, pods = pod.metadata, self.cluster.cache.pods
        if deleted:
            pods.drop(meta.name, meta.uid)
            self.sweep_wanted.set()
        else:
            pods.put(pod)
        if name := meta.annotations.get(naming.DIAGNOSIS_ANNOTATION):
            self.wake(name)

    def wake(self, name: str) -> asyncio.Task[None]:
        """Reconcile `name` soon, without blocking the caller."""
        task = asyncio.create_task(self.reconcile(name), name=f"reconcile {name}")
        self._woken.add(task)
        task.add_done_callback(self._woken.discard)
        return task

    async def remove_orphans(self) -> None:
        """Remove what is left of deleted diagnoses. Raises ClusterError if that has to be retried."""
        uids = set(self._deleted_uids)
        if uids or orphans(self.cluster.cache):
            await asyncio.to_thread(remove_orphans, self.cluster, uids)
            self._deleted_uids -= uids

    async def stop(self) -> None:
        """Cancel what events and sweeps have requested: the next operator finds it again."""
        for task in self._woken:
            task.cancel()
        await asyncio.gather(*self._woken, return_exceptions=True)

    async def reconcile(self, name: str) -> None:
        """Reconcile the diagnosis `name`. Failures are logged: the next sweep retries."""
        if name in self._queued or not self.cluster.cache.is_complete:
            return  # the waiting reconcile, or the first sweep, will see the same state
        self._queued.add(name)
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            self._queued.discard(name)
            with about(name):
                await self._reconcile_or_log(name)

    def allotment(self, latest: Diagnosis | None = None) -> Allotment:
        """Who gets a slot now, computed once per state of the cache; `latest` replaces the cached diagnosis."""
        diagnoses, pods, now = self.cluster.cache.diagnoses, self.cluster.cache.pods, self.cluster.now()
        limit = self.cluster.config.max_concurrent_runners
        # A runner that outlives its deadline gives up its slot without an event.
        key = (diagnoses.version, pods.version, int(now.timestamp()) // self.cluster.config.sweep.active_seconds)
        fleet = self.cluster.cache.fleet()
        claim = claim_of(latest) if latest else None
        if claim and diagnoses.claim(claim.name) != claim:
            others = tuple(one for one in fleet.claims if one.name != claim.name)
            return allot(Fleet(fleet.pods, (*others, claim)), limit, now)
        if self._allotted is None or self._allotted[0] != key:
            self._allotted = key, allot(fleet, limit, now)
        return self._allotted[1]

    async def _reconcile_or_log(self, name: str) -> None:
        try:
            async with (
                self._selections if self._selects_nodes(name) else contextlib.nullcontext(),
                self._results if self._has_ended_runner(name) else contextlib.nullcontext(),
                self._steps,
            ):
                await self._reconcile(name)
        except ClusterError as error:
            logger.warning("cannot reconcile diagnosis %s, will retry on the next sweep: %s", name, error)
        except Exception:
            # An error of the operator itself, which must not stop the other diagnoses.
            logger.exception("internal error while reconciling diagnosis %s, will retry on the next sweep", name)
            self.metrics.faulted()

    def _has_ended_runner(self, name: str) -> bool:
        ended = (pod.metadata for pod in self.cluster.cache.pods.all() if pod.is_terminal)
        return any(meta.annotations.get(naming.DIAGNOSIS_ANNOTATION) == name for meta in ended)

    def _selects_nodes(self, name: str) -> bool:
        claim = self.cluster.cache.diagnoses.claim(name)
        return claim is not None and claim.wants_to_start and claim.selects_nodes

    async def _reconcile(self, name: str) -> None:
        for _ in range(ATTEMPTS):
            try:
                refusals = await self._step(name, {})
                if refusals:
                    await self._step(name, refusals)
            except (ConflictError, NotFoundError):
                await asyncio.to_thread(reread, self.cluster, name)
                continue
            return
        logger.warning("diagnosis %s keeps changing, will retry on the next sweep", name)

    async def _step(self, name: str, refusals: Mapping[str, str]) -> Mapping[str, str]:
        """Read, decide and apply once. Returns by pod name why it was not created, for the next decision."""
        started_at = time.monotonic()
        snapshot = await asyncio.to_thread(read_snapshot, self.cluster, name)
        if snapshot is None:
            return {}
        before = snapshot.diagnosis
        of_run(before.status.run_id)
        async with contextlib.AsyncExitStack() as held:
            world = _World(self, before, held, started_at)
            applied = await drive(world, replace(snapshot, refusals=refusals), self.cluster.config)
        self.metrics.applied(before, applied.plan)
        _log(before, applied.plan)
        if applied.plan.launches or applied.plan.removals:
            self.sweep_wanted.set()
        return applied.refusals


class _World:
    """The cluster, for one step of one diagnosis; `held` is reserved for it until its plan is carried out."""

    def __init__(
        self, reconciler: Reconciler, diagnosis: Diagnosis, held: contextlib.AsyncExitStack, started_at: float
    ) -> None:
        self._reconciler = reconciler
        self._cluster = reconciler.cluster
        self._diagnosis = diagnosis
        self._held = held
        self._started_at = started_at

    def now(self) -> datetime:
        return self._cluster.now()

    def since_write_seconds(self) -> float:
        return time.monotonic() - self._reconciler.written_at.get(self._diagnosis.metadata.uid, float("-inf"))

    async def fetch(self, needs: Needs) -> Snapshot:
        if needs.permission:
            return replace(needs.snapshot, limit_reached=self._why_not_start())
        if needs.allotment:
            await self._held.enter_async_context(self._reconciler.launch_lock)
            return replace(needs.snapshot, allotment=self._reconciler.allotment(needs.snapshot.diagnosis))
        return await asyncio.to_thread(fetch, self._cluster, needs, time.monotonic() - self._started_at)

    async def apply(self, snapshot: Snapshot, plan: Plan) -> Mapping[str, str]:
        of_run(plan.decided.run_id if plan.decided else None)
        refusals = await asyncio.to_thread(apply, self._cluster, snapshot, plan)
        if plan.status:
            self._reconciler.written_at[self._diagnosis.metadata.uid] = time.monotonic()
        return refusals

    def _why_not_start(self) -> str:
        # Nothing is awaited in between: of two that start at the same time, the second sees the first.
        claim, starting, limits = claim_of(self._diagnosis), self._reconciler.starting, self._cluster.config.limits
        if not may_start(claim, self._cluster.cache.diagnoses.claims(), starting, limits):
            return why_it_waits(limits)
        starting.add(claim.name)
        self._held.callback(starting.discard, claim.name)
        return ""


def _log(diagnosis: Diagnosis, plan: Plan) -> None:
    """Log each step of a run: its start, the state of every node, its end."""
    name = diagnosis.metadata.name
    nodes = [
        (logging.INFO, f"node {step.node_name} is {step.reason}", step.message) for step in node_steps(diagnosis, plan)
    ]
    run = [
        (logging.WARNING if one.type == "Warning" else logging.INFO, one.reason, one.message)
        for one in plan.announcements
    ]
    for level, what, message in [*run, *nodes] if run_starts(diagnosis, plan) else [*nodes, *run]:
        logger.log(level, "diagnosis %s: %s%s", name, what, f": {message}" if message else "")
