"""The state of a run on each of its nodes, as stored in a status."""

from collections import Counter
from collections.abc import Collection

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import NodeCounts, NodeState
from memdiag_operator.kube.objects import Diagnosis, InvalidSpec

UNSETTLED = frozenset({Reason.PENDING, Reason.RUNNING})
"""Reasons of a node whose part of the run has not ended."""


def run_states(diagnosis: Diagnosis) -> dict[str, NodeState]:
    """The state of the run on each of its nodes, by name, in their order.

    memdiag 0.1.0 wrote it only to `results`, and had only one node.
    """
    status, spec = diagnosis.status, diagnosis.spec
    states = status.node_states or [
        NodeState(
            node_name=result.node_name,
            reason=result.reason,
            verdict=result.verdict.kind if result.verdict else None,
            leak_detected=result.leak_detected,
        )
        for result in status.results
    ]
    if not states and not isinstance(spec, InvalidSpec) and spec.target.node_name:
        states = [NodeState(node_name=spec.target.node_name, reason=Reason.PENDING)]
    return {state.node_name: state for state in states}


def node_counts(states: Collection[NodeState]) -> NodeCounts:
    """Node counts by state."""
    by_reason = Counter(state.reason for state in states)
    pending, running = by_reason[Reason.PENDING], by_reason[Reason.RUNNING]
    succeeded = by_reason[Reason.COMPLETED]
    return NodeCounts(
        total=len(states),
        pending=pending,
        running=running,
        succeeded=succeeded,
        failed=len(states) - pending - running - succeeded,
    )
