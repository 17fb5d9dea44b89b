"""A run from start to end by the decisions alone: a clock, and pods that behave like those of a working kubelet."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_api.evidence import Evidence, LeakDetected, VerdictKind
from memdiag_api.history import RunSummary
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.plan import Plan, ReportCleanup
from memdiag_operator.decide.slots import allot
from memdiag_operator.decide.snapshot import Candidates, Needs, Snapshot
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, Node, Pod
from memdiag_operator.loop.driver import drive
from memdiag_operator.results.history import history_of_report
from memdiag_operator.results.receive import RunnerOutput
from support.evidence import answered, clean, evidence_with, suspicious
from support.kubernetes_objects import CONFIG, NOW, delivered, diagnosis, fleet, node, timestamp

START_SECONDS = 3
STOP_SECONDS = 5
WEB = {"pool": "web"}
HEALTHY = VerdictKind.NO_LEAK


@dataclass
class Runner:
    """A runner pod and its future result."""

    manifest: dict[str, Any]
    created: datetime
    message: str
    log: bytes
    duration_seconds: int
    is_stuck: bool = False
    """Whether its container is never started."""
    stopped: datetime | None = None
    """When it was asked to terminate, which takes STOP_SECONDS."""

    def pod(self, now: datetime) -> Pod:
        """The pod as the API server shows it at `now`."""
        age = (now - self.created).total_seconds()
        cut_short = self.stopped is not None and now - self.stopped >= timedelta(seconds=STOP_SECONDS)
        started = self.created + timedelta(seconds=START_SECONDS)
        node_name = self.manifest["metadata"]["annotations"][naming.NODE_ANNOTATION]
        if age < START_SECONDS or self.is_stuck:
            phase = "Pending"
            state: dict[str, dict[str, object]] = {"waiting": {"reason": "ContainerCreating"}}
        elif cut_short:
            ended = {"exitCode": 0, "reason": "Completed", "message": self.message, "finishedAt": timestamp(now)}
            phase, state = "Failed", {"terminated": ended}
        elif age < START_SECONDS + self.duration_seconds:
            phase, state = "Running", {"running": {"startedAt": timestamp(started)}}
        else:
            ended = {"exitCode": 0, "reason": "Completed", "message": self.message, "finishedAt": timestamp(now)}
            phase, state = "Succeeded", {"terminated": ended}
        return Pod.model_validate(
            {
                "metadata": {
                    **self.manifest["metadata"],
                    "uid": f"uid-of-{self.manifest['metadata']['name']}",
                    "creationTimestamp": timestamp(self.created),
                },
                "spec": {"nodeName": node_name, "activeDeadlineSeconds": 1 if self.stopped else 86400},
                "status": {
                    "phase": phase,
                    "reason": "DeadlineExceeded" if phase == "Failed" else "",
                    "conditions": [
                        {"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp(self.created)}
                    ],
                    "containerStatuses": [{"name": "node-runner", "state": state}],
                },
            }
        )


@dataclass
class Clockwork:
    """One diagnosis in a cluster of its own."""

    diagnosis: Diagnosis
    nodes: dict[str, Node]
    evidence: Callable[[str, str], Evidence | None]
    """The result of the runner, by node and run; None: it fails without one."""
    config: OperatorConfig = CONFIG
    duration_seconds: int = 60
    target_pod: Pod | None = None
    sick: frozenset[str] = frozenset()
    """Nodes that start no container."""
    now: datetime = NOW
    runners: dict[str, Runner] = field(default_factory=dict)
    statuses: list[MemoryDiagnosisStatus] = field(default_factory=list)
    """Every status that was written."""
    draft: MemoryDiagnosisStatus | None = None
    """Decided and not written yet."""
    written: datetime | None = None
    """The time of the latest status."""
    reports: list[str] = field(default_factory=list)
    newest_reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By node: the report that was stored last."""
    cleanups: list[ReportCleanup] = field(default_factory=list)
    most_runners: int = 0
    """The highest number of runners that were active at the same time."""

    @property
    def status(self) -> MemoryDiagnosisStatus:
        """The latest status."""
        return self.diagnosis.status

    def run(self, seconds: int, *, look_every_seconds: int = 1) -> None:
        """Decide repeatedly, once a second as events could at worst, until the end or for the given time."""
        asyncio.run(self._run(seconds, look_every_seconds))

    async def _run(self, seconds: int, look_every_seconds: int) -> None:
        for _ in range(0, seconds, look_every_seconds):
            await drive(_World(self), self._snapshot(), self.config)
            if self.diagnosis.is_finished and not self.runners:
                return
            self.now += timedelta(seconds=look_every_seconds)

    def annotate(self, requested_at: str) -> None:
        """Request another run."""
        self.store({"metadata": {"annotations": {"memdiag.dev/requestedAt": requested_at}}})

    def restart_operator(self) -> None:
        """Clear the state that only the operator has, as on a restart."""
        self.draft = self.written = None

    def _snapshot(self) -> Snapshot:
        pods = tuple(runner.pod(self.now) for runner in self.runners.values())
        if self.draft is None:
            return Snapshot(diagnosis=self.diagnosis, pods=pods)
        drafted = self.diagnosis.model_copy(update={"status": self.draft})
        return Snapshot(diagnosis=drafted, pods=pods, stored=self.diagnosis.status)

    def apply(self, plan: Plan) -> None:
        """Carry out `plan`."""
        self.reports += [manifest["metadata"]["name"] for manifest in plan.reports]
        for manifest in plan.reports:
            self.newest_reports[manifest["nodeName"]] = manifest
        if plan.report_cleanup:
            self.cleanups.append(plan.report_cleanup)
        self.draft = plan.draft or self.draft
        if plan.status:
            self.draft = None
            self.statuses.append(plan.status)
            self.written = self.now
            stored = plan.status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
            self.store({"status": stored})
        for manifest in plan.launches:
            name, meta = manifest["metadata"]["name"], manifest["metadata"]
            found = self.evidence(meta["annotations"][naming.NODE_ANNOTATION], meta["labels"][naming.RUN_ID_LABEL])
            message, log = delivered(found) if found else ("", b"")
            is_stuck = meta["annotations"][naming.NODE_ANNOTATION] in self.sick
            self.runners[name] = Runner(manifest, self.now, message, log, self.duration_seconds, is_stuck)
        for stop in plan.stops:
            self.runners[stop.name].stopped = self.now
        for removal in plan.removals:
            del self.runners[removal.name]
        working = [one for one in self.runners.values() if not one.pod(self.now).is_terminal]
        self.most_runners = max(self.most_runners, len(working))

    def store(self, change: dict[str, Any]) -> None:
        """Change the stored diagnosis, like a user."""
        document = self.diagnosis.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for key, value in change.items():
            document[key] = {**document[key], **value} if key == "metadata" else value
        self.diagnosis = Diagnosis.model_validate(document)


@dataclass(frozen=True)
class _World:
    """A clockwork with the interface of the operator's driver."""

    clockwork: Clockwork

    def now(self) -> datetime:
        return self.clockwork.now

    def since_write_seconds(self) -> float:
        written = self.clockwork.written
        return (self.clockwork.now - written).total_seconds() if written else float("inf")

    async def fetch(self, needs: Needs) -> Snapshot:
        one, snapshot = self.clockwork, needs.snapshot
        known = {name: one.nodes.get(name) for name in (*needs.nodes, *needs.fresh_nodes)}
        ended = [pod.metadata.name for pod in needs.outputs]
        everyone = fleet(snapshot.pods, (snapshot.diagnosis,))
        return replace(
            snapshot,
            limit_reached="" if needs.permission else snapshot.limit_reached,
            candidates=Candidates(tuple(one.nodes.values()), one.target_pod) if needs.candidates else None,
            absent_pods=snapshot.absent_pods.union(needs.pods),
            nodes={**snapshot.nodes, **known},
            fresh_nodes=snapshot.fresh_nodes.union(needs.fresh_nodes),
            histories={**snapshot.histories, **{name: self._history(name) for name in needs.histories}},
            outputs={name: RunnerOutput(one.runners[name].log) for name in ended} if ended else snapshot.outputs,
            events=dict.fromkeys((pod.metadata.name for pod in needs.events), ()) if needs.events else snapshot.events,
            allotment=allot(everyone, one.config.max_concurrent_runners, one.now)
            if needs.allotment
            else snapshot.allotment,
        )

    def _history(self, node_name: str) -> tuple[RunSummary, ...]:
        report = self.clockwork.newest_reports.get(node_name)
        return history_of_report(json.dumps(report).encode(), node_name) if report else ()

    async def apply(self, snapshot: Snapshot, plan: Plan) -> Mapping[str, str]:
        self.clockwork.apply(plan)
        return {}


def found_on(node_name: str, run: str, kind: VerdictKind = HEALTHY, *, finds: int = 1) -> Evidence:
    """Evidence of a node with that verdict, and with the given number of holders and stacks."""
    template = evidence_with(run_id=run, holders=finds, stacks=finds)
    suspects = {} if kind is VerdictKind.PINNED_BY_UNREAD_SOCKET else {"holder": None, "stack": None}
    verdict = template.verdict.model_copy(update={"kind": kind, "sentence": f"So it is on {node_name}.", **suspects})
    host = template.host.model_copy(update={"node_name": node_name})
    return template.model_copy(update={"host": host, "verdict": verdict})


def answers_on(node_name: str, run: str, kind: VerdictKind = HEALTHY) -> Evidence:
    """As `found_on`, by a runner that ranks its findings."""
    template = evidence_with(run_id=run, findings=16)
    template = template.model_copy(update={"host": template.host.model_copy(update={"node_name": node_name})})
    match kind:
        case VerdictKind.PINNED_BY_UNREAD_SOCKET:
            return template
        case VerdictKind.NO_LEAK:
            return clean(template)
        case VerdictKind.SUSPICIOUS_MEMORY:
            return suspicious(template)
        case _:
            return answered(template, kind, LeakDetected.UNKNOWN, *template.findings[2:])


def of_many(count: int, *, leaks: tuple[int, ...] = (), fails: tuple[int, ...] = (), **fields: Any) -> Clockwork:
    """A diagnosis of the given number of nodes; those in `leaks` have a leak, those in `fails` deliver nothing."""
    names = [f"node-{number:03}" for number in range(count)]

    def evidence(node_name: str, run: str) -> Evidence | None:
        number = int(node_name.removeprefix("node-"))
        kind = VerdictKind.PINNED_BY_UNREAD_SOCKET if number in leaks else HEALTHY
        return None if number in fails else found_on(node_name, run, kind)

    target = {"nodeSelector": {"matchLabels": WEB}, "maxNodes": count}
    one = diagnosis(spec={"target": target, "activeDeadlineSeconds": 86400, **fields.pop("spec", {})})
    return Clockwork(one, {name: node(name, labels=WEB) for name in names}, evidence, **fields)


def largest_run() -> Clockwork:
    """A run on the maximum number of nodes, with names of the maximum length of Kubernetes; the first one fails."""
    one = of_many(1000, config=OperatorConfig(runner=CONFIG.runner, max_concurrent_runners=1000))
    long = {name: f"{name}-{'x' * (62 - len(name))}" for name in one.nodes}
    one.nodes = {name: node(name, labels=WEB) for name in long.values()}

    def evidence(name: str, run: str) -> Evidence | None:
        number = int(name[5:8])
        finds = 10 if number < 30 else 0  # more long answers than the status has room for
        return found_on(name, run, VerdictKind.GROWING_KERNEL_ALLOCATION, finds=finds) if number else None

    one.evidence = evidence
    one.run(200, look_every_seconds=20)
    return one
