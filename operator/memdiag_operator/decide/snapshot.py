"""What a decision sees, and what it still needs to see."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from memdiag_api.diagnosis import MemoryDiagnosisStatus, Target
from memdiag_api.history import RunSummary
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.slots import Allotment
from memdiag_operator.kube.objects import Diagnosis, Event, Node, Pod
from memdiag_operator.results.receive import RunnerOutput


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the nodes of a run that starts are chosen from."""

    nodes: tuple[Node, ...] = ()
    """Every node that has the labels of spec.target.nodeSelector."""
    pod: Pod | None = None
    """The pod of spec.target.podRef, if any."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One diagnosis and what is known of everything that affects it. Each decision may request more, see `Needs`."""

    diagnosis: Diagnosis
    pods: tuple[Pod, ...] = ()
    """The runner pods that this diagnosis owns, of this run and of former ones."""
    absent_pods: frozenset[str] = frozenset()
    """Names of runner pods that do not exist according to the API server: a watch may only be behind."""
    stored: MemoryDiagnosisStatus | None = None
    """The stored status, if that of `diagnosis` is decided and not written yet."""
    start_plan: Plan | None = None
    """The plan that starts the run, if it is decided and not carried out yet; `diagnosis` has its status."""
    limit_reached: str | None = None
    """Why its run may not start yet; empty if it may, None if that was not requested."""
    candidates: Candidates | None = None
    """Read only when a run starts."""
    nodes: Mapping[str, Node | None] = field(default_factory=dict)
    """By name, those of the run's nodes that were looked up; None: the node does not exist."""
    fresh_nodes: frozenset[str] = frozenset()
    """Names of the nodes that were read after the diagnosis was."""
    histories: Mapping[str, tuple[RunSummary, ...]] = field(default_factory=dict)
    """By node name, its earlier runs; nothing for a node without them, or if they could not be read."""
    outputs: Mapping[str, RunnerOutput] | None = None
    """By pod name, what finished runners left, perhaps not of all of them; None if that was not requested."""
    events: Mapping[str, tuple[Event, ...]] | None = None
    """By pod name, of those that are slow to start; None if that was not requested."""
    report_room_bytes: int = sys.maxsize
    """How much of the budget for stored reports is left for those of this run; read with `outputs`."""
    allotment: Allotment | None = None
    """Without an allotment nothing is launched."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """By pod name: why it was not created, or not as it was sent."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be read before anything can be decided; everything else is not needed, or known."""

    snapshot: Snapshot
    """What is known: the answers are added to it."""
    permission: bool = False
    """Whether the limits allow the run to start: `Snapshot.limit_reached`."""
    candidates: Target | None = None
    """The target of the run that starts: `Snapshot.candidates`."""
    pods: tuple[str, ...] = ()
    """Names of runner pods that should exist: `Snapshot.pods` or `Snapshot.absent_pods`."""
    nodes: Mapping[str, float] = field(default_factory=dict)
    """By name, how old a reading may be, in seconds: `Snapshot.nodes`."""
    fresh_nodes: tuple[str, ...] = ()
    """Names of nodes that must be read after the diagnosis was: `Snapshot.nodes` and `Snapshot.fresh_nodes`."""
    histories: tuple[str, ...] = ()
    """Names of nodes that get a runner now: `Snapshot.histories`."""
    outputs: tuple[Pod, ...] = ()
    """Ended runners: `Snapshot.outputs` of some of them; the others wait for the next decision."""
    events: tuple[Pod, ...] = ()
    """Runner pods that are slow to start: `Snapshot.events`."""
    allotment: bool = False
    """Who gets a slot: `Snapshot.allotment`. Until the plan is carried out, no other diagnosis may get one."""
