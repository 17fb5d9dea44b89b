"""One node's part of a run: from waiting for a slot to a stored result."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import MemoryDiagnosisSpec, NodeResult
from memdiag_api.units import parse_duration_seconds
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide import naming
from memdiag_operator.decide.attribution import attribute
from memdiag_operator.decide.node_result import node_result, report
from memdiag_operator.decide.objects import Node, Pod
from memdiag_operator.decide.results import receive
from memdiag_operator.decide.runner_pod import runner_pod
from memdiag_operator.decide.runner_state import Broken, Finished, RunnerState, Starting, Working, runner_state
from memdiag_operator.decide.sanitize import clip
from memdiag_operator.decide.slots import Slot, allot
from memdiag_operator.decide.snapshot import PodRemoval, Snapshot
from memdiag_operator.decide.target import unsupported_node

UNSETTLED = frozenset({Reason.PENDING, Reason.RUNNING})
MESSAGE_LIMIT = 1024
STOP_DEADLINE_SECONDS = 1
"""A runner pod's deadline once it is asked to stop: the kubelet then ends it, and keeps its log and last words."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one node adds to a plan."""

    result: NodeResult
    launch: dict[str, Any] | None = None
    stop: PodRemoval | None = None
    report: dict[str, Any] | None = None

    @property
    def is_settled(self) -> bool:
        """Whether this node's part of the run is over."""
        return self.result.reason not in UNSETTLED


@dataclass(frozen=True, slots=True)
class NodeRun:
    """A run on one of its nodes."""

    snapshot: Snapshot
    spec: MemoryDiagnosisSpec
    node_name: str

    @property
    def run_id(self) -> str:
        """The run's ID."""
        return self.snapshot.diagnosis.status.run_id or ""

    @property
    def pod_name(self) -> str:
        """The name that the runner pod has, or would have."""
        meta = self.snapshot.diagnosis.metadata
        return naming.child_name(meta.name, meta.uid, self.run_id, self.node_name)

    @property
    def pod(self) -> Pod | None:
        """The runner pod."""
        return next((pod for pod in self.snapshot.pods if pod.metadata.name == self.pod_name), None)

    @property
    def node(self) -> Node | None:
        """The node; None when it does not exist."""
        return self.snapshot.nodes.get(self.node_name)

    @property
    def stored(self) -> NodeResult:
        """What the status already says about this node."""
        results = self.snapshot.diagnosis.status.results
        pending = NodeResult(node_name=self.node_name, reason=Reason.PENDING)
        return next((result for result in results if result.node_name == self.node_name), pending)

    @property
    def is_settled(self) -> bool:
        """Whether the stored status has this node's result."""
        return self.stored.reason not in UNSETTLED

    def waits_for_slot(self) -> bool:
        """Whether only a slot is missing."""
        return self.stored.reason == Reason.PENDING and self.pod is None and self.node is not None

    def state(self, config: OperatorConfig, now: datetime) -> RunnerState | None:
        """How the runner pod stands; None without one."""
        if self.pod is None:
            return None
        seconds = parse_duration_seconds(self.spec.duration)
        return runner_state(
            self.pod, self.node, node_name=self.node_name, duration_seconds=seconds, now=now, grace=config.grace
        )

    def step(self, config: OperatorConfig, now: datetime) -> Step:
        """What is to be done on this node at `now`."""
        if self.is_settled:
            return Step(self.stored)
        match self.state(config, now):
            case None:
                return self._without_pod(config, now)
            case Broken(reason, message):
                return self._ended(reason, message)
            case Finished():
                waiting = Working(f"the runner on node {self.node_name} has ended: waiting for its log")
                return self._received(config, now) or self._still_at_it(waiting, now)
            case Starting() | Working() as state:
                return self._still_at_it(state, now)

    def _ended(self, reason: Reason, message: str) -> Step:
        return Step(self._result(reason, message))

    def _result(self, reason: Reason, message: str) -> NodeResult:
        return NodeResult(
            node_name=self.node_name, pod_name=self.pod_name, reason=reason, message=clip(message, MESSAGE_LIMIT)
        )

    def _still_at_it(self, state: Starting | Working, now: datetime) -> Step:
        if self._remaining_seconds(now) <= 0:
            return self._deadline_exceeded(state.message)
        if isinstance(state, Starting):
            if self.spec.terminate:
                return self._ended(Reason.TERMINATED, "ended by spec.terminate before the runner was at work")
            return Step(self._result(Reason.PENDING, state.message))
        running = self._result(Reason.RUNNING, state.message)
        if self.spec.terminate and self.pod and self.pod.spec.active_deadline_seconds != STOP_DEADLINE_SECONDS:
            return Step(running, stop=PodRemoval(self.pod_name, self.pod.metadata.uid))
        return Step(running)

    def _without_pod(self, config: OperatorConfig, now: datetime) -> Step:
        if self.stored.reason == Reason.RUNNING:
            return self._vanished()
        if self.spec.terminate:
            return self._ended(Reason.TERMINATED, "ended by spec.terminate before a runner was started")
        if self.node is None:
            text = f"there is no node {self.node_name}: `kubectl get nodes` lists those that there are"
            return self._ended(Reason.NODE_NOT_FOUND, text)
        if unsupported := unsupported_node(self.node):
            return self._ended(Reason.NODE_UNSUPPORTED, unsupported)
        return self._launch_or_wait(self.node, config, now)

    def _vanished(self) -> Step:
        if self.node is None:
            return self._ended(Reason.NODE_LOST, f"node {self.node_name} was removed while its runner was there")
        text = f"runner pod {self.pod_name} is gone: someone else than the operator deleted it"
        return self._ended(Reason.RUNNER_EVICTED, text)

    def _launch_or_wait(self, node: Node, config: OperatorConfig, now: datetime) -> Step:
        meta, fleet = self.snapshot.diagnosis.metadata, self.snapshot.fleet
        if refusal := self.snapshot.refusals.get(self.pod_name):
            return self._ended(Reason.ADMISSION_DENIED, f"the API server refuses the runner pod: {refusal}")
        seconds = self._remaining_seconds(now)
        if seconds <= 0:
            return self._deadline_exceeded(self.stored.message)
        if fleet is None:
            return Step(self._result(Reason.PENDING, self.stored.message))
        slot = Slot(meta.uid, self.node_name)
        allotment = allot(fleet, config.max_concurrent_runners, now)
        if slot not in allotment.admitted:
            why = allotment.waiting.get(slot, "this run is not in the queue yet")
            return Step(self._result(Reason.PENDING, f"waiting for a slot: {why}"))
        manifest = runner_pod(meta, self.spec, run=self.run_id, node=node, config=config, deadline_seconds=seconds)
        return Step(self._result(Reason.PENDING, f"runner pod {self.pod_name} is created"), launch=manifest)

    def _received(self, config: OperatorConfig, now: datetime) -> Step | None:
        """The result that the finished runner delivered; None while its log cannot be read yet."""
        output = self.snapshot.outputs.get(self.pod_name)
        if self.pod is None or output is None:
            return None
        delivery = receive(self.pod, output, run=self.run_id, node_name=self.node_name, now=now, grace=config.grace)
        if delivery is None:
            return None
        reason, message = delivery.reason, delivery.message
        if self.spec.terminate and reason in (Reason.DEADLINE_EXCEEDED, Reason.RUNNER_FAILED):
            reason, message = Reason.TERMINATED, clip(f"ended by spec.terminate: {message}", MESSAGE_LIMIT)
        if delivery.evidence is None:
            return self._ended(reason, message)
        attribution = attribute(output.node_pods)
        result = node_result(
            delivery.evidence,
            attribution,
            node_name=self.node_name,
            pod_name=self.pod_name,
            top_n=self.spec.top_n,
            reason=reason,
            message=message,
        )
        manifest = report(
            delivery.evidence,
            attribution,
            diagnosis=self.snapshot.diagnosis.metadata,
            run=self.run_id,
            node_name=self.node_name,
            suspect=result.suspect,
        )
        return Step(result, report=manifest)

    def _deadline_exceeded(self, last_message: str) -> Step:
        seconds = self.spec.active_deadline_seconds
        text = f"no result within spec.activeDeadlineSeconds ({seconds} s); last seen: {last_message or 'nothing'}"
        return self._ended(Reason.DEADLINE_EXCEEDED, text)

    def _remaining_seconds(self, now: datetime) -> int:
        started = self.snapshot.diagnosis.status.start_time or now
        deadline = started + timedelta(seconds=self.spec.active_deadline_seconds)
        return int((deadline - now).total_seconds())
