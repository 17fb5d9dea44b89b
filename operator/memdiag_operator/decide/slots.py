"""Who may start a runner now: one on a node, a limited number in the cluster, the longest waiting first.

Diagnoses of many nodes do not keep others waiting: before one gets its second slot, everyone has had a first.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from memdiag_api.conditions import Reason
from memdiag_operator.decide import naming
from memdiag_operator.decide.objects import Diagnosis, InvalidSpec, Pod
from memdiag_operator.decide.snapshot import Fleet
from memdiag_operator.decide.target import run_states


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
    """Give the free ones of `limit` slots to the waiting: who holds the fewest comes first, then the oldest run."""
    holders = [pod for pod in fleet.pods if holds_slot(pod, now)]
    busy_nodes = {pod.metadata.annotations.get(naming.NODE_ANNOTATION, pod.spec.node_name) for pod in holders}
    free = limit - len(holders)
    ahead = 0
    admitted: set[Slot] = set()
    waiting: dict[Slot, str] = {}
    for slot in _queue(fleet, holders):
        if slot.node_name in busy_nodes:
            waiting[slot] = f"another runner is at work on node {slot.node_name}"
        elif free <= 0:
            waiting[slot] = f"all {limit} runner slots of the cluster are taken, {_told(ahead)} ahead in the queue"
            ahead += 1
        else:
            admitted.add(slot)
            busy_nodes.add(slot.node_name)
            free -= 1
    return Allotment(frozenset(admitted), waiting)


def holds_slot(pod: Pod, now: datetime) -> bool:
    """Whether a runner pod is at work, or about to be.

    One that cannot be scheduled is not, nor one that has outlived its deadline or its deletion: no kubelet is there to
    end it.
    """
    gone_at = pod.metadata.deletion_timestamp  # the API server adds the grace period
    if pod.is_terminal or (gone_at and now > gone_at):
        return False
    scheduled = pod.condition("PodScheduled")
    if scheduled and scheduled.status == "False":
        return False
    created, deadline_seconds = pod.metadata.creation_timestamp, pod.spec.active_deadline_seconds
    return created is None or deadline_seconds is None or now <= created + timedelta(seconds=deadline_seconds)


def _told(ahead: int) -> str:
    """A place in the queue, rounded up to a power of two: else each step would write the status of all who wait."""
    return str(ahead) if ahead < 2 else f"at most {1 << (ahead - 1).bit_length()}"  # noqa: PLR2004 - 0 and 1 are exact


def _queue(fleet: Fleet, holders: list[Pod]) -> Iterator[Slot]:
    held = Counter(pod.metadata.labels.get(naming.DIAGNOSIS_UID_LABEL, "") for pod in holders)
    launched = {pod.metadata.name for pod in fleet.pods}
    waiting: list[tuple[int, datetime, str, Slot]] = []
    for diagnosis in fleet.diagnoses:
        if started := _waiting_since(diagnosis):
            meta = diagnosis.metadata
            for place, slot in enumerate(_wanted(diagnosis, launched), start=held[meta.uid]):
                # Equal ages go by name: everyone who looks must see the same order.
                waiting.append((place, started, meta.name, slot))
    for *_, slot in sorted(waiting, key=lambda entry: entry[:3]):
        yield slot


def _wanted(diagnosis: Diagnosis, launched: set[str]) -> Iterator[Slot]:
    meta, run = diagnosis.metadata, diagnosis.status.run_id or ""
    for node_name, state in run_states(diagnosis).items():
        if state.reason == Reason.PENDING and naming.child_name(meta.name, meta.uid, run, node_name) not in launched:
            yield Slot(meta.uid, node_name)


def _waiting_since(diagnosis: Diagnosis) -> datetime | None:
    spec = diagnosis.spec
    stopped = isinstance(spec, InvalidSpec) or spec.suspend or spec.terminate
    if stopped or diagnosis.is_finished or diagnosis.metadata.deletion_timestamp:
        return None
    return diagnosis.status.start_time
