"""A run on one of its nodes: from waiting for a slot to a stored result."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import MemoryDiagnosisSpec, NodeResult, NodeState
from memdiag_api.limits import MAX_SENTENCE
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.deadline import (
    remaining_seconds,
    run_deadline_seconds,
    shortest_launch_seconds,
    shortfall,
    window_seconds,
)
from memdiag_operator.decide.lifecycle import starts_run
from memdiag_operator.decide.plan import PodRemoval
from memdiag_operator.decide.runner_pod import STOP_DEADLINE_SECONDS, runner_pod
from memdiag_operator.decide.runner_state import Broken, Finished, RunnerState, Starting, Window, Working, runner_state
from memdiag_operator.decide.slots import Allotment, Slot
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.decide.target import node_objection
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import InvalidSpec, Node, Pod
from memdiag_operator.results.attribution import attribute
from memdiag_operator.results.node_result import node_result
from memdiag_operator.results.receive import receive
from memdiag_operator.results.report import report
from memdiag_operator.results.sanitize import clean_text, clip
from memdiag_operator.status.progress import COLLECTING, DONE, WAITING, Progress, tick_seconds
from memdiag_operator.status.states import UNSETTLED, run_states


@dataclass(frozen=True, slots=True)
class Step:
    """What one node adds to a plan."""

    state: NodeState
    result: NodeResult | None
    """None: it has ended, and the status has kept only the reason."""
    progress: Progress = DONE
    launch: dict[str, Any] | None = None
    stop: PodRemoval | None = None
    report: dict[str, Any] | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the run has ended on this node."""
        return self.state.reason not in UNSETTLED


@dataclass(frozen=True, slots=True)
class NodeRun:
    """A run on one of its nodes."""

    snapshot: Snapshot
    spec: MemoryDiagnosisSpec
    state: NodeState
    """Its state according to the status."""
    stored: NodeResult | None
    """Its result in the status, if any."""
    pod: Pod | None
    nodes_total: int

    @property
    def node_name(self) -> str:
        """The node's name."""
        return self.state.node_name

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
    def node(self) -> Node | None:
        """The node; None when it does not exist, or was not looked up."""
        return self.snapshot.nodes.get(self.node_name)

    @property
    def is_looked_up(self) -> bool:
        """Whether `node` shows if the node exists."""
        return self.node_name in self.snapshot.nodes

    @property
    def is_settled(self) -> bool:
        """Whether the stored status has this node's result."""
        return self.state.reason not in UNSETTLED

    @property
    def waits_for_slot(self) -> bool:
        """Whether only a slot is missing."""
        is_missing = self.is_looked_up and self.node is None
        return self.state.reason == Reason.PENDING and self.pod is None and not is_missing

    def runner_state(self, config: OperatorConfig, now: datetime) -> RunnerState | None:
        """The state of the runner pod; None without one, or if its node was not looked up."""
        if self.pod is None or not self.is_looked_up:
            return None
        seconds = window_seconds(self.spec)
        window = Window(seconds, tick_seconds(seconds, self.nodes_total))
        return runner_state(
            self.pod,
            self.node,
            node_name=self.node_name,
            window=window,
            now=now,
            grace=config.grace,
            events=(self.snapshot.events or {}).get(self.pod_name, ()),
        )

    def step(self, config: OperatorConfig, now: datetime, allotment: Allotment | None) -> Step:
        """What to do on this node at `now`. Without an `allotment` nothing is launched."""
        if self.is_settled:
            return Step(self.state, self.stored)
        if refusal := self.snapshot.refusals.get(self.pod_name):
            return self._ended(Reason.ADMISSION_DENIED, refusal)
        match self.runner_state(config, now):
            case None:
                return self._without_pod(config, now, allotment) if self.pod is None else self._unchanged()
            case Broken(reason, message):
                return self._ended(reason, message)
            case Finished():
                waiting = Working(f"the runner on node {self.node_name} finished; waiting for its log")
                return self._received(config, now) or self._still_at_it(config, waiting, now)
            case Starting() | Working() as state:
                return self._still_at_it(config, state, now)

    @property
    def _last_message(self) -> str:
        return self.stored.message if self.stored else ""

    def _ended(self, reason: Reason, message: str) -> Step:
        return self._with_result(
            NodeResult(node_name=self.node_name, pod_name=self.pod_name, reason=reason, message=_one_line(message))
        )

    def _with_result(self, result: NodeResult, report: dict[str, Any] | None = None) -> Step:
        answer = {"verdict": result.verdict.kind, "leak_detected": result.leak_detected} if result.verdict else {}
        state = NodeState(node_name=self.node_name, reason=result.reason, **answer)
        return Step(state, result, report=report)

    def _under_way(
        self,
        reason: Reason,
        message: str,
        progress: Progress,
        *,
        launch: dict[str, Any] | None = None,
        stop: PodRemoval | None = None,
    ) -> Step:
        result = NodeResult(
            node_name=self.node_name,
            pod_name=self.pod_name,
            reason=reason,
            message=_one_line(message),
            step=progress.step,
            progress_percent=progress.percent,
        )
        return Step(NodeState(node_name=self.node_name, reason=reason), result, progress, launch=launch, stop=stop)

    def _unchanged(self) -> Step:
        stored = self.stored
        if stored and stored.step and stored.progress_percent is not None:
            return Step(self.state, stored, Progress(stored.step, stored.progress_percent))
        return self._under_way(Reason(self.state.reason), self._last_message, WAITING)

    def _still_at_it(self, config: OperatorConfig, state: Starting | Working, now: datetime) -> Step:
        if isinstance(state, Starting):
            if self._remaining_seconds(now) <= 0:
                return self._deadline_exceeded(config, state.message)
            if self.spec.terminate:
                return self._ended(Reason.TERMINATED, "terminated (spec.terminate) before the runner started measuring")
            return self._under_way(Reason.PENDING, state.message, state.progress)
        overdue_seconds = -self._remaining_seconds(now)
        if overdue_seconds < 0:
            stop = self._stop() if self.spec.terminate else None
            return self._under_way(Reason.RUNNING, state.message, state.progress, stop=stop)
        if overdue_seconds > config.runner.termination_grace_seconds + config.grace.log_seconds:
            return self._deadline_exceeded(config, state.message)
        message = (
            f"activeDeadlineSeconds ({self._deadline_seconds} s) exceeded; waiting for what the runner has measured"
        )
        return self._under_way(Reason.RUNNING, message, COLLECTING, stop=self._stop())

    def _stop(self) -> PodRemoval | None:
        """The request that the runner stops and delivers what it has; None if that was done or it has ended."""
        if self.pod is None or self.pod.is_terminal or self.pod.spec.active_deadline_seconds == STOP_DEADLINE_SECONDS:
            return None
        return PodRemoval(self.pod_name, self.pod.metadata.uid)

    def _without_pod(self, config: OperatorConfig, now: datetime, allotment: Allotment | None) -> Step:
        if self.state.reason == Reason.RUNNING:
            return self._vanished() if self.is_looked_up else self._unchanged()
        if self.spec.terminate:
            return self._ended(Reason.TERMINATED, "terminated (spec.terminate) before a runner was started")
        if self.is_looked_up and self.node is None:
            return self._no_such_node()
        if self.node and (objection := node_objection(self.node, config.allowed_nodes)):
            return self._ended(*objection)
        return self._launch_or_wait(config, now, allotment)

    def _no_such_node(self) -> Step:
        if self.spec.target.node_name is None:  # it existed when the run started
            text = f"node {self.node_name} was removed from the cluster before its runner was started"
            return self._ended(Reason.NODE_LOST, text)
        text = f"there is no node {self.node_name}: run `kubectl get nodes` to list existing nodes"
        return self._ended(Reason.NODE_NOT_FOUND, text)

    def _vanished(self) -> Step:
        if self.node is None:
            return self._ended(
                Reason.NODE_LOST, f"node {self.node_name} was removed from the cluster while its runner pod was on it"
            )
        text = f"runner pod {self.pod_name} was deleted by someone other than the operator"
        return self._ended(Reason.RUNNER_EVICTED, text)

    def _launch_or_wait(self, config: OperatorConfig, now: datetime, allotment: Allotment | None) -> Step:
        meta = self.snapshot.diagnosis.metadata
        seconds = self._remaining_seconds(now)
        if seconds <= 0:
            return self._deadline_exceeded(config, self._last_message)
        if seconds < shortest_launch_seconds(self.spec):
            return self._too_late(config, seconds)
        slot = Slot(meta.uid, self.node_name)
        if allotment is None or (slot in allotment.admitted and self.node is None):
            return self._under_way(Reason.PENDING, self._last_message, WAITING)
        if slot not in allotment.admitted or self.node is None:
            return self._under_way(Reason.PENDING, f"waiting for a slot: {allotment.why_not(slot)}", WAITING)
        manifest = runner_pod(
            meta,
            self.spec,
            run=self.run_id,
            node=self.node,
            config=config,
            deadline_seconds=seconds,
            history=self.snapshot.histories.get(self.node_name, ()),
        )
        message = f"creating runner pod {self.pod_name}"
        return self._under_way(Reason.PENDING, message, WAITING, launch=manifest)

    def _received(self, config: OperatorConfig, now: datetime) -> Step | None:
        """The result that the finished runner delivered; None while its log cannot be read yet."""
        output = (self.snapshot.outputs or {}).get(self.pod_name)
        if self.pod is None or output is None:
            return None
        delivery = receive(self.pod, output, run=self.run_id, node_name=self.node_name, now=now, grace=config.grace)
        if delivery is None:
            return None
        reason, message = delivery.reason, delivery.message
        if self.spec.terminate and reason in (Reason.DEADLINE_EXCEEDED, Reason.RUNNER_FAILED):
            reason, message = Reason.TERMINATED, clip(f"terminated (spec.terminate): {message}", MAX_SENTENCE)
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
            highlighted=self.spec.target.pod_ref,
        )
        manifest = report(
            delivery.evidence,
            attribution,
            diagnosis=self.snapshot.diagnosis.metadata,
            run=self.run_id,
            node_name=self.node_name,
            suspect=result.suspect,
        )
        return self._with_result(result, manifest)

    def _deadline_exceeded(self, config: OperatorConfig, last_message: str) -> Step:
        text = f"no result within activeDeadlineSeconds ({self._deadline_seconds} s); last seen: "
        return self._ended_late(config, text + (last_message or "nothing"))

    def _too_late(self, config: OperatorConfig, seconds: int) -> Step:
        needed = shortest_launch_seconds(self.spec)
        text = (
            f"no runner was started: only {seconds} s are left of activeDeadlineSeconds ({self._deadline_seconds} s), "
            f"and a runner needs at least {needed} s; last seen: {self._last_message or 'nothing'}"
        )
        return self._ended_late(config, text)

    def _ended_late(self, config: OperatorConfig, text: str) -> Step:
        why = shortfall(self.spec, self.nodes_total, config, self._deadline_seconds)
        return self._ended(Reason.DEADLINE_EXCEEDED, f"{text}. {why}" if why else text)

    @property
    def _deadline_seconds(self) -> int:
        return run_deadline_seconds(self.snapshot.diagnosis)

    def _remaining_seconds(self, now: datetime) -> int:
        return remaining_seconds(self.snapshot.diagnosis, now)


def node_runs(snapshot: Snapshot) -> list[NodeRun]:
    """The run on each of its nodes, in their order; empty if no run is in progress."""
    diagnosis, spec = snapshot.diagnosis, snapshot.diagnosis.spec
    idle = diagnosis.is_finished or starts_run(diagnosis) or diagnosis.metadata.deletion_timestamp
    if idle or isinstance(spec, InvalidSpec):
        return []
    meta, run = diagnosis.metadata, diagnosis.status.run_id or ""
    states = run_states(diagnosis)
    stored = {result.node_name: result for result in diagnosis.status.results}
    pods = {pod.metadata.name: pod for pod in snapshot.pods}
    return [
        NodeRun(
            snapshot=snapshot,
            spec=spec,
            state=state,
            stored=stored.get(name),
            pod=pods.get(naming.child_name(meta.name, meta.uid, run, name)),
            nodes_total=len(states),
        )
        for name, state in states.items()
    ]


def _one_line(message: str) -> str:
    """`message` made safe to publish: kubelets write parts of what the API server reports about pods and nodes."""
    return clip(clean_text(" ".join(message.split())), MAX_SENTENCE)
