"""Who may start a runner now: one on a node, a limited number in the cluster, the longest waiting first.

Diagnoses of many nodes do not keep others waiting: before one gets a second slot, all others have had a first.
"""

import heapq
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from memdiag_operator.decide.fleet import Claim, Fleet
from memdiag_operator.decide.runner_pod import STOP_DEADLINE_SECONDS
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Pod

MAX_PLACES = 16
"""Number of waiting nodes of a diagnosis whose place in the queue is shown: its status has no room for more."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One requested runner."""

    diagnosis_uid: str
    node_name: str


@dataclass(frozen=True)
class _Line:
    """The nodes of one diagnosis that wait for a runner, in their order."""

    claim: Claim
    held: int
    """The number of slots that it has."""
    launched: Collection[str] = ()
    """Nodes that have a runner pod that its status does not show yet."""

    def __len__(self) -> int:
        return len(self.claim.pending) - len(self._launched_places)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.claim.pending if name not in self.launched)

    @cached_property
    def _launched_places(self) -> list[int]:
        return sorted(self.claim.pending[name] for name in self.launched if name in self.claim.pending)

    def place(self, node_name: str) -> int | None:
        """How many nodes of the same diagnosis come before; None if the node does not wait for a runner."""
        place = self.claim.pending.get(node_name)
        if place is None or node_name in self.launched:
            return None
        return place - bisect_left(self._launched_places, place)


@dataclass(frozen=True)
class Allotment:
    """Who may start a runner, and why the others may not yet."""

    admitted: frozenset[Slot]
    limit: int
    slots_used: int
    _lines: dict[str, _Line]
    """By the diagnosis's UID; the longest waiting first."""
    _busy_nodes: frozenset[str]

    @cached_property
    def waiting(self) -> frozenset[str]:
        """UIDs of the diagnoses that wait, including those with an admitted runner."""
        return frozenset(uid for uid, line in self._lines.items() if len(line))

    @cached_property
    def queue_length(self) -> int:
        """Node runs that have no runner yet."""
        return sum(map(len, self._lines.values()))

    def nodes_of(self, diagnosis_uid: str) -> frozenset[str]:
        """The nodes on which this diagnosis may start a runner now."""
        return frozenset(slot.node_name for slot in self.admitted if slot.diagnosis_uid == diagnosis_uid)

    def why_not(self, slot: Slot) -> str:
        """Why the runner `slot`, which is not admitted, has to wait."""
        line = self._lines.get(slot.diagnosis_uid)
        place = line.place(slot.node_name) if line else None
        if line is None or place is None:
            return "this run is not in the queue yet"
        if slot.node_name in self._busy_nodes:
            return f"another runner is running on node {slot.node_name}"
        if place >= MAX_PLACES:
            return f"all {self.limit} runner slots are in use; other nodes of this run come first"
        ahead = _rounded(self._ahead(line, place))
        return f"all {self.limit} runner slots are in use; {ahead} ahead in the queue"

    def _ahead(self, line: _Line, place: int) -> int:
        """How many come before the node at `place` of `line`; nodes that are busy or admitted do not count."""
        turn = self._turns[line.claim.uid] + place - bisect_left(self._busy_places[line.claim.uid], place)
        ahead, is_older = 0, True
        for uid, other in self._lines.items():
            if other is line:
                is_older = False
            left = len(other) - len(self._busy_places[uid])
            ahead += min(max(0, turn - self._turns[uid] + is_older), left)
        return ahead

    @cached_property
    def _turns(self) -> dict[str, int]:
        """How many slots each diagnosis has, including those that it gets now."""
        admitted = Counter(slot.diagnosis_uid for slot in self.admitted)
        return {uid: line.held + admitted[uid] for uid, line in self._lines.items()}

    @cached_property
    def _busy_places(self) -> dict[str, list[int]]:
        return {
            uid: sorted(place for name in self._busy_nodes if (place := line.place(name)) is not None)
            for uid, line in self._lines.items()
        }


def allot(fleet: Fleet, limit: int, now: datetime) -> Allotment:
    """Assign the free slots of `limit` to waiting nodes: diagnoses with the fewest slots first, then the oldest run.

    The cost is proportional to the diagnoses and the slots; a node that waits costs almost nothing.
    """
    holders = [pod for pod in fleet.pods if holds_slot(pod, now)]
    busy_nodes = {pod.metadata.annotations.get(naming.NODE_ANNOTATION, pod.spec.node_name) for pod in holders}
    lines = _lines(fleet, holders)
    # Equal ages are ordered by name: the order must always be the same.
    queue = [(line.held, rank, uid, iter(line)) for rank, (uid, line) in enumerate(lines.items())]
    heapq.heapify(queue)
    free = limit - len(holders)
    admitted: set[Slot] = set()
    while queue and free > 0:
        turn, rank, uid, nodes = queue[0]
        # A node that is busy now is busy for every diagnosis: it is not checked twice.
        name = next((name for name in nodes if name not in busy_nodes), None)
        if name is None:
            heapq.heappop(queue)
            continue
        heapq.heapreplace(queue, (turn + 1, rank, uid, nodes))
        admitted.add(Slot(uid, name))
        busy_nodes.add(name)
        free -= 1
    return Allotment(
        admitted=frozenset(admitted),
        limit=limit,
        slots_used=len(holders),
        _lines=lines,
        _busy_nodes=frozenset(busy_nodes),
    )


def holds_slot(pod: Pod, now: datetime) -> bool:
    """Whether a runner pod is running, or about to.

    A pod that cannot be scheduled is not, nor one that has outlived its deadline and grace period, or its deletion: its
    node has no kubelet that ends it. A pod that was asked to stop may be detaching its programs, until its run ends.
    """
    gone_at = pod.metadata.deletion_timestamp  # the API server adds the grace period
    if pod.is_terminal or (gone_at and now > gone_at):
        return False
    scheduled = pod.condition("PodScheduled")
    if scheduled and scheduled.status == "False":
        return False
    created, deadline_seconds = pod.metadata.creation_timestamp, pod.spec.active_deadline_seconds
    if created is None or deadline_seconds is None or deadline_seconds == STOP_DEADLINE_SECONDS:
        return True
    return now <= created + timedelta(seconds=deadline_seconds + pod.spec.termination_grace_period_seconds)


def _rounded(ahead: int) -> str:
    """A place in the queue, rounded up to a power of two: else each step would write the status of all that wait."""
    if ahead <= 1:
        return "1 node run" if ahead else "0 node runs"
    return f"at most {1 << (ahead - 1).bit_length()} node runs"


def _lines(fleet: Fleet, holders: list[Pod]) -> dict[str, _Line]:
    held = Counter(pod.metadata.labels.get(naming.DIAGNOSIS_UID_LABEL, "") for pod in holders)
    launched: defaultdict[str, set[str]] = defaultdict(set)
    waiting = [(since, claim.name, claim) for claim in fleet.claims if claim.pending and (since := claim.waiting_since)]
    by_uid = {claim.uid: claim for *_, claim in waiting}
    for meta in (pod.metadata for pod in fleet.pods):
        claim = by_uid.get(meta.labels.get(naming.DIAGNOSIS_UID_LABEL, ""))
        node_name = meta.annotations.get(naming.NODE_ANNOTATION, "")
        # Anyone may set annotations: the name proves which run and node the pod is for.
        if claim and meta.name == naming.child_name(claim.name, claim.uid, claim.run_id, node_name):
            launched[claim.uid].add(node_name)
    return {
        claim.uid: _Line(claim, held[claim.uid], frozenset(launched[claim.uid]))
        for *_, claim in sorted(waiting, key=lambda one: one[:2])
    }
