"""The one place that decides what happens to a diagnosis: every event and every sweep ends here.

A decision that lacks something returns what it needs (`Needs`). The caller reads that and asks again, until the answer
is a plan.
"""

from collections.abc import Mapping
from datetime import datetime
from math import inf

from memdiag_api.conditions import Reason
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.changes import run_starts
from memdiag_operator.decide.claims import claim_of
from memdiag_operator.decide.lifecycle import is_suspended, starts_run
from memdiag_operator.decide.node_run import NodeRun, node_runs
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.reconcile import reconcile
from memdiag_operator.decide.runner_state import Finished, starts_slowly
from memdiag_operator.decide.snapshot import Needs, Snapshot
from memdiag_operator.decide.target import spec_fault
from memdiag_operator.kube.objects import InvalidSpec, Pod


def decide(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> Plan | Needs:
    """What to do for the diagnosis of `snapshot` at `now`, or what must be known to decide that.

    An empty plan means nothing, for now. A run that starts takes its first step at once, so that both are one write.
    """
    diagnosis = snapshot.diagnosis
    if diagnosis.metadata.deletion_timestamp:
        return Plan()  # owner references take everything along
    if needs := _needs_to_start(snapshot) if starts_run(diagnosis) else _needs_to_go_on(snapshot, config, now):
        return needs
    plan = reconcile(snapshot, config, now)
    if run_starts(diagnosis, plan):
        started = diagnosis.model_copy(update={"status": plan.status})
        return decide(
            Snapshot(diagnosis=started, pods=snapshot.pods, refusals=snapshot.refusals, start_plan=plan), config, now
        )
    return snapshot.start_plan.then(plan) if snapshot.start_plan else plan


def _needs_to_start(snapshot: Snapshot) -> Needs | None:
    spec = snapshot.diagnosis.spec
    if snapshot.limit_reached is None and claim_of(snapshot.diagnosis).wants_to_start:
        return Needs(snapshot, permission=True)
    if snapshot.limit_reached or snapshot.candidates or isinstance(spec, InvalidSpec) or spec_fault(spec):
        return None
    is_choice = spec.target.node_selector or spec.target.pod_ref
    return Needs(snapshot, candidates=spec.target) if is_choice else None


def _needs_to_go_on(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> Needs | None:
    if is_suspended(snapshot.diagnosis):
        return None
    runs = [node_run for node_run in node_runs(snapshot) if not node_run.is_settled]
    if pods := _missing_pods(runs, snapshot):
        return Needs(snapshot, pods=pods)
    if nodes := {name: age for name, age in _node_ages(runs, config).items() if name not in snapshot.nodes}:
        return Needs(snapshot, nodes=nodes)
    if snapshot.outputs is None and snapshot.events is None:
        ended, slow = _ended(runs, config, now), _slow_to_start(runs, config, now)
        if ended or slow:
            return Needs(snapshot, outputs=ended, events=slow)
    return _needs_to_launch(snapshot) if _wants_slot(runs, snapshot) else None


def _needs_to_launch(snapshot: Snapshot) -> Needs | None:
    """A pod is annotated with the UID and boot ID of its node, which must be the current ones, and gets its history."""
    if snapshot.allotment is None:
        return Needs(snapshot, allotment=True)
    launching = snapshot.allotment.nodes_of(snapshot.diagnosis.metadata.uid)
    unread = tuple(sorted(launching - snapshot.fresh_nodes))
    return Needs(snapshot, fresh_nodes=unread, histories=unread) if unread else None


def _missing_pods(runs: list[NodeRun], snapshot: Snapshot) -> tuple[str, ...]:
    """Runner pods that the status expects. A run ends if its pod has vanished, but a watch may only be behind."""
    return tuple(
        run.pod_name
        for run in runs
        if run.state.reason == Reason.RUNNING and run.pod is None and run.pod_name not in snapshot.absent_pods
    )


def _node_ages(runs: list[NodeRun], config: OperatorConfig) -> Mapping[str, float]:
    """How old a reading may be of the nodes that matter now: with a runner, or among the first in line for one.

    The other nodes of a large run are not read until it is their turn.
    """
    with_runner: dict[str, float] = {}
    in_line: list[str] = []
    for run in runs:
        if run.pod is None and run.state.reason == Reason.PENDING:
            in_line.append(run.node_name)
        else:
            with_runner[run.node_name] = _max_age_seconds(run.pod, config)
    return with_runner | dict.fromkeys(in_line[: config.max_concurrent_runners], inf)


def _max_age_seconds(pod: Pod | None, config: OperatorConfig) -> float:
    """How old a reading of the runner's node may be.

    If a runner ended without a message, its node is read again: it may just have rebooted. If it left one, nothing
    depends on the node's current state, and it may be one of a hundred nodes to be read.
    """
    if pod is None:
        return inf
    if not pod.is_terminal:
        return config.sweep.idle_seconds
    terminated = pod.main_container and pod.main_container.state.terminated
    return inf if terminated and terminated.message else 0


def _ended(runs: list[NodeRun], config: OperatorConfig, now: datetime) -> tuple[Pod, ...]:
    """Runners that have ended and whose result is not stored yet."""
    return tuple(run.pod for run in runs if run.pod and isinstance(run.runner_state(config, now), Finished))


def _slow_to_start(runs: list[NodeRun], config: OperatorConfig, now: datetime) -> tuple[Pod, ...]:
    """Runners that a kubelet should have started by now: their events say what is wrong."""
    return tuple(run.pod for run in runs if run.pod and starts_slowly(run.pod, now, config.grace))


def _wants_slot(runs: list[NodeRun], snapshot: Snapshot) -> bool:
    """Whether a runner should be launched as soon as there is a slot for it."""
    spec = snapshot.diagnosis.spec
    stopped = isinstance(spec, InvalidSpec) or spec.suspend or spec.terminate
    return not stopped and not snapshot.refusals and any(run.waits_for_slot for run in runs)
