"""Gather, decide, apply: the loop behind every event and every sweep."""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from datetime import datetime
from weakref import WeakValueDictionary

from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_operator.cluster.apply import apply
from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.errors import ClusterError, ConflictError, NotFoundError
from memdiag_operator.cluster.fetch import gather, gather_about, gather_fleet, reread, with_fresh_nodes
from memdiag_operator.cluster.orphans import orphans, remove_orphans
from memdiag_operator.cluster.store import Cache
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.changes import node_steps, run_begins
from memdiag_operator.decide.claims import claim_of
from memdiag_operator.decide.fleet import Fleet
from memdiag_operator.decide.limits import may_begin, why_it_waits
from memdiag_operator.decide.pace import is_only_progress, may_wait
from memdiag_operator.decide.reconcile import nodes_to_launch_on, reconcile, starts_anew, wants_slot
from memdiag_operator.decide.slots import Allotment, allot
from memdiag_operator.decide.snapshot import Plan, Snapshot
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, Pod
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
        # To choose from a cluster's nodes takes all of them, which are large.
        self._selections = asyncio.Semaphore(1)
        self.beginning: set[str] = set()
        """Names of the diagnoses whose run begins right now: the limits count them."""
        self._allotted: tuple[tuple[object, ...], Allotment] | None = None
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
            self.cache.reports.drop(lambda run: run.diagnosis_uid == meta.uid)
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
            async with (
                self._selections if self._selects_nodes(name) else contextlib.nullcontext(),
                self._results if self._has_ended_runner(name) else contextlib.nullcontext(),
                self._looks,
            ):
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

    def _selects_nodes(self, name: str) -> bool:
        claim = self.cache.diagnoses.claim(name)
        return claim is not None and claim.wants_to_begin and claim.selects_nodes

    def allotment(self, latest: Diagnosis | None = None) -> Allotment:
        """Who gets a slot now, made once for what the cache holds; `latest` instead of what the cache has of it."""
        diagnoses, pods, now = self.cache.diagnoses, self.cache.pods, self.clock()
        limit = self.config.max_concurrent_runners
        # A runner that outlives its deadline gives up its slot without an event.
        key = (diagnoses.version, pods.version, int(now.timestamp()) // self.config.sweep.active_seconds)
        fleet = gather_fleet(self.cache)
        claim = claim_of(latest) if latest else None
        if claim and diagnoses.claim(claim.name) != claim:
            others = tuple(one for one in fleet.claims if one.name != claim.name)
            return allot(Fleet(fleet.pods, (*others, claim)), limit, now)
        if self._allotted is None or self._allotted[0] != key:
            self._allotted = key, allot(fleet, limit, now)
        return self._allotted[1]

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
        claim, limits = self.cache.diagnoses.claim(name), self.config.limits
        if claim is None or not claim.wants_to_begin:
            return await self._step(name, refusals)
        # Nothing is awaited in between: of two that begin at the same time the second sees the first.
        if not may_begin(claim, self.cache.diagnoses.claims(), self.beginning, limits):
            return await self._step(name, refusals, limit_reached=why_it_waits(limits))
        self.beginning.add(name)
        try:
            return await self._step(name, refusals)
        finally:
            self.beginning.discard(name)

    async def _step(self, name: str, refusals: dict[str, str], *, limit_reached: str = "") -> dict[str, str]:
        began_at = time.monotonic()
        snapshot = await asyncio.to_thread(
            gather, self.kubernetes, self.cache, self.config, name, self.clock(), limit_reached=limit_reached
        )
        if snapshot is None:
            return {}
        before = snapshot.diagnosis
        of_run(before.status.run_id)
        begun = Plan()
        if starts_anew(before) and not snapshot.limit_reached:
            begun, snapshot = await self._begin(snapshot)
        if refusals or not await asyncio.to_thread(wants_slot, snapshot):
            return await self._decide_and_apply(before, begun, replace(snapshot, refusals=refusals))
        async with self._launch_lock:
            snapshot = replace(snapshot, allotment=self.allotment(snapshot.diagnosis))
            names = nodes_to_launch_on(snapshot)
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
        """Carry out `begun` and what is to be done next; `before` is the diagnosis as it was looked at."""
        uid, now = before.metadata.uid, self.clock()
        plan = begun.then(await asyncio.to_thread(reconcile, snapshot, self.config, now))
        of_run(plan.status.run_id if plan.status else None)
        if is_only_progress(before, plan) and self._told_lately(uid):
            return {}
        # What an earlier look has decided is written now, or waits on.
        decided = plan.status or (before.status if snapshot.stored else None)
        todo = replace(plan, status=decided)
        if decided and begun == Plan() and self._may_wait(snapshot, decided, now):
            todo = replace(plan, status=None, confirm=bool(plan.launches))
        refusals = await asyncio.to_thread(apply, self.kubernetes, self.cache, self.config, snapshot, todo)
        if todo.status:
            self._told_at[uid] = time.monotonic()
        elif plan.status:
            self.cache.diagnoses.keep_draft(before.model_copy(update={"status": plan.status}))
        self.metrics.applied(before, plan)
        _log(before, plan)
        if plan.launches or plan.removals:
            self.sweep_wanted.set()
        return refusals

    def _may_wait(self, snapshot: Snapshot, decided: MemoryDiagnosisStatus, now: datetime) -> bool:
        since_seconds = time.monotonic() - self._told_at.get(snapshot.diagnosis.metadata.uid, float("-inf"))
        return may_wait(snapshot, decided, since_seconds, now)

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
