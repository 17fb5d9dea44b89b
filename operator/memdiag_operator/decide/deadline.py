"""How long a run may take, and how much of that a node needs."""

from datetime import datetime, timedelta

from memdiag_api.diagnosis import DEFAULT_DEADLINE_SECONDS, MAX_DEADLINE_SECONDS, MemoryDiagnosisSpec
from memdiag_api.evidence import Check
from memdiag_api.units import parse_duration_seconds
from memdiag_operator.config import OperatorConfig
from memdiag_operator.kube.objects import Diagnosis, InvalidSpec

START_SECONDS = 15
"""In addition to its window, a runner needs at least this long to start and to deliver."""
NODE_SECONDS = 30
"""In addition to its window, a node usually takes this long, from the launch of its runner to the removal."""
# A queue behind others, slow images, slow nodes.
_DEFAULT_MARGIN = 2
# Checks that measure twice, with spec.duration in between.
_WAITING_CHECKS = frozenset({Check.ALLOC_PAGE_TRACE, Check.SOCKET_QUEUES})


def window_seconds(spec: MemoryDiagnosisSpec) -> int:
    """How long a runner measures; 0 if its checks measure once and do not wait."""
    return parse_duration_seconds(spec.duration) if any(one in _WAITING_CHECKS for one in spec.checks) else 0


def shortest_launch_seconds(spec: MemoryDiagnosisSpec) -> int:
    """With less time left than this, a runner cannot measure its whole window and deliver."""
    return window_seconds(spec) + START_SECONDS


def needed_seconds(spec: MemoryDiagnosisSpec, nodes: int, config: OperatorConfig) -> int:
    """The time that a run on this number of nodes takes if it has all slots for itself."""
    rounds = -(-nodes // config.max_concurrent_runners)
    return rounds * (window_seconds(spec) + NODE_SECONDS)


def deadline_seconds(spec: MemoryDiagnosisSpec, nodes: int, config: OperatorConfig) -> int:
    """The deadline of a run that starts now. The default, too short for many nodes, grows with their number."""
    if spec.active_deadline_seconds != DEFAULT_DEADLINE_SECONDS:
        return spec.active_deadline_seconds
    ample = _DEFAULT_MARGIN * needed_seconds(spec, nodes, config)
    return min(MAX_DEADLINE_SECONDS, max(DEFAULT_DEADLINE_SECONDS, ample))


def run_deadline_seconds(diagnosis: Diagnosis) -> int:
    """The deadline of the current run of `diagnosis`. memdiag 0.1.0 did not store it in the status."""
    spec, kept = diagnosis.spec, diagnosis.status.active_deadline_seconds
    if kept is not None:
        return kept
    return DEFAULT_DEADLINE_SECONDS if isinstance(spec, InvalidSpec) else spec.active_deadline_seconds


def remaining_seconds(diagnosis: Diagnosis, now: datetime) -> int:
    """The time left for the run, negative after its deadline."""
    started = diagnosis.status.start_time or now
    deadline = started + timedelta(seconds=run_deadline_seconds(diagnosis))
    return int((deadline - now).total_seconds())


def shortfall(spec: MemoryDiagnosisSpec, nodes: int, config: OperatorConfig, seconds: int) -> str:
    """Why a deadline of `seconds` cannot be met, with the value to use; empty if it can."""
    needed = needed_seconds(spec, nodes, config)
    if nodes == 1 or seconds >= needed:
        return ""
    return (
        f"activeDeadlineSeconds ({seconds} s) is too short for {nodes} nodes with {config.max_concurrent_runners} "
        f"runners at a time: allow at least {needed} s"
    )
