"""Who may start a runner now: one on a node, a limited number in the cluster, the longest waiting first."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from memdiag_api.conditions import Reason
from memdiag_operator.decide import naming
from memdiag_operator.decide.objects import Diagnosis, InvalidSpec, Pod
from memdiag_operator.decide.snapshot import Fleet
from memdiag_operator.decide.target import target_nodes


@dataclass(frozen=True, slots=True)
class Slot:
    """One runner that is wanted."""

    diagnosis_uid: str
    node_name: str


@dataclass(frozen=True, slots=True)
class Allotment:
    """Who may start, and for the others why not yet."""

    admitted: frozenset[Slot]
    waiting: dict[Slot, str]


def allot(fleet: Fleet, limit: int, now: datetime) -> Allotment:
    """Give the free ones of `limit` slots to the waiting, the oldest run first."""
    holders = [pod for pod in fleet.pods if holds_slot(pod, now)]
    busy_nodes = {pod.metadata.annotations.get(naming.NODE_ANNOTATION, pod.spec.node_name) for pod in holders}
    free = limit - len(holders)
    ahead = 0
    admitted: set[Slot] = set()
    waiting: dict[Slot, str] = {}
    for slot in _queue(fleet):
        if slot.node_name in busy_nodes:
            waiting[slot] = f"another runner is at work on node {slot.node_name}"
        elif free <= 0:
            waiting[slot] = f"all {limit} runner slots of the cluster are taken, {ahead} ahead in the queue"
            ahead += 1
        else:
            admitted.add(slot)
            busy_nodes.add(slot.node_name)
            free -= 1
    return Allotment(frozenset(admitted), waiting)


def holds_slot(pod: Pod, now: datetime) -> bool:
    """Whether a runner pod is at work, or about to be.

    One that cannot be scheduled is not, nor one that has outlived its own deadline: no kubelet is there to end it.
    """
    if pod.is_terminal:
        return False
    scheduled = pod.condition("PodScheduled")
    if scheduled and scheduled.status == "False":
        return False
    created, deadline_seconds = pod.metadata.creation_timestamp, pod.spec.active_deadline_seconds
    return created is None or deadline_seconds is None or now <= created + timedelta(seconds=deadline_seconds)


def _queue(fleet: Fleet) -> Iterator[Slot]:
    launched = {pod.metadata.name for pod in fleet.pods}
    waiting = [(started, one) for one in fleet.diagnoses if (started := _waiting_since(one))]
    # Equal ages go by name: everyone who looks must see the same order.
    for _, diagnosis in sorted(waiting, key=lambda entry: (entry[0], entry[1].metadata.name)):
        meta, status = diagnosis.metadata, diagnosis.status
        settled = {result.node_name for result in status.results if result.reason != Reason.PENDING}
        for node_name in target_nodes(diagnosis.spec):
            name = naming.child_name(meta.name, meta.uid, status.run_id or "", node_name)
            if node_name not in settled and name not in launched:
                yield Slot(meta.uid, node_name)


def _waiting_since(diagnosis: Diagnosis) -> datetime | None:
    spec = diagnosis.spec
    stopped = isinstance(spec, InvalidSpec) or spec.suspend or spec.terminate
    if stopped or diagnosis.is_finished or diagnosis.metadata.deletion_timestamp:
        return None
    return diagnosis.status.start_time
