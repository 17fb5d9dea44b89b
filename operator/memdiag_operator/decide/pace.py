"""What may wait: a look at a diagnosis whose place in the queue is all that can change, a telling of mere progress."""

from datetime import datetime

from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_operator.decide.objects import Diagnosis
from memdiag_operator.decide.slots import allot
from memdiag_operator.decide.snapshot import Fleet, Plan


def only_waiting(fleet: Fleet, limit: int, now: datetime) -> frozenset[str]:
    """UIDs of the diagnoses that have no runner pod and get no slot at `now`.

    A free slot wakes the one that gets it. The others would all write how the queue has moved: with every run that
    ends, as many writes as diagnoses wait.
    """
    allotment = allot(fleet, limit, now)
    admitted = {slot.diagnosis_uid for slot in allotment.admitted}
    with_pods = {owner.uid for pod in fleet.pods for owner in pod.metadata.owner_references}
    return frozenset(slot.diagnosis_uid for slot in allotment.waiting) - admitted - with_pods


def is_only_progress(diagnosis: Diagnosis, plan: Plan) -> bool:
    """Whether all that `plan` does is to tell how far the run of `diagnosis` is: nothing depends on when it is told."""
    if plan.status is None or plan != Plan(status=plan.status):
        return False
    return _milestones(diagnosis.status) == _milestones(plan.status)


def _milestones(status: MemoryDiagnosisStatus) -> tuple[object, ...]:
    """What of a status someone may wait for."""
    counts = status.nodes
    return (
        status.observed_generation,
        status.run_id,
        status.last_handled_request,
        status.start_time,
        status.completion_time,
        status.report_refs,
        (counts.succeeded, counts.failed) if counts else None,
        {condition.type: condition.status for condition in status.conditions},
    )
