"""What may wait: a reconcile that can only change a place in the queue, and a status update with only progress."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_operator.decide.fleet import Fleet
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.slots import Allotment
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, Pod
from memdiag_operator.status.states import UNSETTLED

LARGE_STATUS_BYTES = 16 * 1024
"""Smaller ones are written as soon as they change."""
BYTES_PER_SECOND = 4 * 1024
SLOWER_AFTER = timedelta(hours=1)
PAUSE_WITH_SLOT_SECONDS = 15.0


def due(fleet: Fleet, held_back: Collection[str]) -> tuple[str, ...]:
    """Names of the diagnoses that a sweep reconciles.

    Those that may not start (`held_back`), and say so, wait for the sweep in which they may.
    """
    silent = {claim.name for claim in fleet.claims if claim.name in held_back and claim.says_limit_reached}
    return tuple(name for name in fleet.unsettled_names if name not in silent)


def only_waiting(fleet: Fleet, allotment: Allotment) -> frozenset[str]:
    """UIDs of the diagnoses that have no runner pod and get no slot.

    A free slot wakes the one that gets it. The others would only write their new place in the queue: one write for each
    waiting diagnosis with every run that ends.
    """
    admitted = {slot.diagnosis_uid for slot in allotment.admitted}
    return allotment.waiting - admitted - fleet.owners


def paced(
    plan: Plan,
    before: Diagnosis,
    snapshot: Snapshot,
    *,
    since_write_seconds: float,
    progress_seconds: float,
    now: datetime,
) -> Plan:
    """`plan`, made for `snapshot`, with its status as a draft if it may be written later.

    `before`: the diagnosis as it was read, perhaps with the draft of an earlier plan, which is written when it is due.
    Progress alone is written `progress_seconds` after the latest write, by another plan.
    """
    if is_only_progress(before, plan) and since_write_seconds < progress_seconds:
        return Plan()
    decided = plan.status or (before.status if snapshot.stored else None)
    if decided is None or snapshot.start_plan or not _may_wait(snapshot, decided, since_write_seconds, now):
        return replace(plan, status=decided)
    return replace(plan, status=None, draft=plan.status, confirm=bool(plan.launches))


def is_only_progress(diagnosis: Diagnosis, plan: Plan) -> bool:
    """Whether `plan` only reports progress of the run of `diagnosis`: nothing depends on when it does."""
    if plan.status is None or not plan.is_status_alone:
        return False
    before, after = diagnosis.status, plan.status
    return _milestones(before) == _milestones(after) and _answers(before) == _answers(after)


def _may_wait(snapshot: Snapshot, decided: MemoryDiagnosisStatus, since_write_seconds: float, now: datetime) -> bool:
    """Whether the status `decided` may be written later: a large one costs etcd and all watchers too much.

    Only the state of single nodes stays unwritten. If the operator restarts, it is decided again from their pods.
    """
    stored = snapshot.stored or snapshot.diagnosis.status
    if _milestones(stored) != _milestones(decided):
        return False
    seconds = pause_seconds(size_bytes(decided), now - (stored.start_time or now))
    if _keeps_slots(snapshot.pods, stored, decided):
        seconds = min(seconds, PAUSE_WITH_SLOT_SECONDS)
    return since_write_seconds < seconds


def pause_seconds(status_bytes: int, run_age: timedelta) -> float:
    """Minimum time between two writes of a status of this size.

    The writes amount to BYTES_PER_SECOND at first, and to ever less in a run that takes hours: 30 MiB in eight hours.
    """
    if status_bytes < LARGE_STATUS_BYTES:
        return 0.0
    return status_bytes / BYTES_PER_SECOND * (1 + run_age / SLOWER_AFTER)


def size_bytes(status: MemoryDiagnosisStatus) -> int:
    """Approximate size in etcd: that of its JSON."""
    return len(status.model_dump_json(by_alias=True, exclude_none=True, exclude_unset=True).encode())


def _keeps_slots(pods: Iterable[Pod], stored: MemoryDiagnosisStatus, decided: MemoryDiagnosisStatus) -> bool:
    """Whether a runner that will deliver nothing holds a slot until the write: it is removed afterwards."""
    known = {state.node_name: state.reason for state in stored.node_states}
    settled = {
        state.node_name
        for state in decided.node_states
        if state.reason not in UNSETTLED and known.get(state.node_name) in UNSETTLED
    }
    return any(not pod.is_terminal and pod.metadata.annotations.get(naming.NODE_ANNOTATION) in settled for pod in pods)


def _milestones(status: MemoryDiagnosisStatus) -> tuple[object, ...]:
    """What a client may wait for in the status of a run."""
    return (
        status.observed_generation,
        status.run_id,
        status.last_handled_request,
        status.start_time,
        status.completion_time,
        {condition.type: condition.status for condition in status.conditions},
    )


def _answers(status: MemoryDiagnosisStatus) -> tuple[object, ...]:
    """The results of single nodes."""
    counts = status.nodes
    return status.report_refs, (counts.succeeded, counts.failed) if counts else None
