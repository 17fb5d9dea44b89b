"""What a plan changes in a run, for metrics and the log: its start, its end, each node's next state."""

from dataclasses import dataclass
from typing import Literal

from memdiag_api.conditions import ConditionStatus, ConditionType
from memdiag_operator.decide.plan import Plan
from memdiag_operator.kube.objects import Diagnosis
from memdiag_operator.status.states import run_states


@dataclass(frozen=True, slots=True)
class NodeStep:
    """A node has reached another state of its run."""

    node_name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class RunEnd:
    """A run has ended."""

    result: Literal["succeeded", "failed"]
    reason: str
    """The reason of Succeeded."""
    verdict: str
    """The reason of LeakDetected."""
    duration_seconds: float
    node_reasons: tuple[str, ...]
    """How each node's part ended."""


def run_starts(diagnosis: Diagnosis, plan: Plan) -> bool:
    """Whether `plan`, made for `diagnosis`, starts a run."""
    return plan.decided is not None and plan.decided.run_id != diagnosis.status.run_id


def node_steps(diagnosis: Diagnosis, plan: Plan) -> list[NodeStep]:
    """Nodes whose state `plan`, made for `diagnosis`, changes; progress within a state does not count."""
    status = plan.decided
    if status is None:
        return []
    known = {} if run_starts(diagnosis, plan) else run_states(diagnosis)
    messages = {one.node_name: one.message for one in status.results}
    return [
        NodeStep(one.node_name, one.reason, messages.get(one.node_name, ""))
        for one in status.node_states
        if one.node_name not in known or one.reason != known[one.node_name].reason
    ]


def run_end(diagnosis: Diagnosis, plan: Plan) -> RunEnd | None:
    """The end of a run, if `plan`, made for `diagnosis`, ends one."""
    status = plan.decided
    if status is None or status.completion_time is None:
        return None
    if diagnosis.is_finished and not run_starts(diagnosis, plan):
        return None
    found = {one.type: one for one in status.conditions}
    succeeded, leak = found[ConditionType.SUCCEEDED], found[ConditionType.LEAK_DETECTED]
    started = status.start_time or status.completion_time
    return RunEnd(
        result="succeeded" if succeeded.status is ConditionStatus.TRUE else "failed",
        reason=succeeded.reason,
        verdict=leak.reason,
        duration_seconds=(status.completion_time - started).total_seconds(),
        node_reasons=tuple(one.reason for one in status.node_states),
    )
