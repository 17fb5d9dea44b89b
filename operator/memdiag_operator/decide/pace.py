"""Which diagnoses need no quick look: those whose place in the queue is all that can change."""

from datetime import datetime

from memdiag_operator.decide.slots import allot
from memdiag_operator.decide.snapshot import Fleet


def only_waiting(fleet: Fleet, limit: int, now: datetime) -> frozenset[str]:
    """UIDs of the diagnoses that have no runner pod and get no slot at `now`.

    A free slot wakes the one that gets it. The others would all write how the queue has moved: with every run that
    ends, as many writes as diagnoses wait.
    """
    allotment = allot(fleet, limit, now)
    admitted = {slot.diagnosis_uid for slot in allotment.admitted}
    with_pods = {owner.uid for pod in fleet.pods for owner in pod.metadata.owner_references}
    return frozenset(slot.diagnosis_uid for slot in allotment.waiting) - admitted - with_pods
