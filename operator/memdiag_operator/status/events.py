"""Kubernetes events of a diagnosis: which events a new status emits."""

from dataclasses import dataclass
from typing import Literal

from memdiag_api.conditions import ConditionStatus, ConditionType, Reason
from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_operator.kube.objects import Diagnosis
from memdiag_operator.status.trim import most_relevant


@dataclass(frozen=True, slots=True)
class Announcement:
    """One event on the diagnosis."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def announcements(diagnosis: Diagnosis, new: MemoryDiagnosisStatus) -> tuple[Announcement, ...]:
    """Events for what is new in `new`: the start of a run, its first running pod, its end, what to do about a leak."""
    before = diagnosis.status
    started = new.run_id != before.run_id
    ended = new.completion_time is not None and (started or not diagnosis.is_finished)
    if not started and not ended:
        return () if diagnosis.is_finished else _first_running(before, new)
    conditions_now = {one.type: one for one in new.conditions}
    succeeded, leak = conditions_now[ConditionType.SUCCEEDED], conditions_now[ConditionType.LEAK_DETECTED]
    if started and not ended:
        return (Announcement("Normal", "Started", f"Run {new.run_id}: {succeeded.message}"),)
    ended_well = succeeded.status is ConditionStatus.TRUE
    reported = [Announcement("Normal" if ended_well else "Warning", succeeded.reason, succeeded.message)]
    if leak.status is ConditionStatus.TRUE:
        what = new.suspect or leak.message
        reported.append(Announcement("Warning", leak.reason, f"{what.rstrip('.')}. {_advice(new)}".strip()))
    return tuple(reported)


def _first_running(before: MemoryDiagnosisStatus, new: MemoryDiagnosisStatus) -> tuple[Announcement, ...]:
    """One event per run, however many nodes it has."""
    if any(one.reason != Reason.PENDING for one in before.results):
        return ()
    return tuple(
        Announcement("Normal", Reason.RUNNING, f"Runner pod {one.pod_name} is running on node {one.node_name}.")
        for one in new.results
        if one.reason == Reason.RUNNING
    )[:1]


def _advice(status: MemoryDiagnosisStatus) -> str:
    relevant = [one.verdict.advice for one in most_relevant(status.results) if one.verdict]
    return relevant[0] if relevant else ""
