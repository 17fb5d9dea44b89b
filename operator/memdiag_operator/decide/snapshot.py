"""What a decision sees, and what it answers."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_operator.decide.slots import Allotment
from memdiag_operator.kube.objects import Diagnosis, Event, Node, Pod


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    """What a finished runner left, and the pods of its node, to whom the ids in it may belong."""

    log: bytes | None
    log_error: str = ""
    node_pods: tuple[Pod, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One diagnosis and all that bears on it, read at one time."""

    diagnosis: Diagnosis
    stored: MemoryDiagnosisStatus | None = None
    """The status as it is stored, where that of `diagnosis` is decided and not written yet."""
    limit_reached: str = ""
    """Why its run may not begin yet."""
    nodes: Mapping[str, Node | None] = field(default_factory=dict)
    """By name, those of the run's nodes that were looked up (`nodes_to_read`); None: it does not exist."""
    selected: tuple[Node, ...] = ()
    """Every node that has the labels of spec.target.nodeSelector; read only when a run begins."""
    target_pod: Pod | None = None
    """The pod of spec.target.podRef; read only when a run begins."""
    pods: tuple[Pod, ...] = ()
    """The runner pods that this diagnosis owns, of this run and of former ones."""
    outputs: Mapping[str, RunnerOutput] = field(default_factory=dict)
    """By pod name, for the pods that `runners_to_read` names."""
    events: Mapping[str, tuple[Event, ...]] = field(default_factory=dict)
    """By pod name, for the pods that `slow_starters` names."""
    report_room_bytes: int = sys.maxsize
    """How much the budget for stored reports has left for those of this run."""
    allotment: Allotment | None = None
    """Made only when `wants_slot` says so; without it nothing is launched."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """By pod name: why it was not created, or not as it was sent."""


@dataclass(frozen=True, slots=True)
class PodRemoval:
    """A runner pod to be deleted."""

    name: str
    uid: str
    force: bool = False
    """Without waiting for its kubelet, which is gone."""


@dataclass(frozen=True, slots=True)
class ReportCleanup:
    """Reports of a diagnosis's former runs that are to go: all but those of `kept_runs`."""

    diagnosis_uid: str
    kept_runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announcement:
    """One event on the diagnosis."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in the order of the fields: results are stored before the status says that they are."""

    reports: tuple[dict[str, Any], ...] = ()
    status: MemoryDiagnosisStatus | None = None
    """The status to be stored; None when it is as it should be, or may be written later."""
    confirm: bool = False
    """Whether the API server must say first that the diagnosis is still as it was read: no status is written."""
    launches: tuple[dict[str, Any], ...] = ()
    """Manifests of runner pods."""
    stops: tuple[PodRemoval, ...] = ()
    """Runners that shall end now and leave what they have measured."""
    removals: tuple[PodRemoval, ...] = ()
    report_cleanup: ReportCleanup | None = None
    announcements: tuple[Announcement, ...] = ()
    delete_diagnosis: bool = False

    def then(self, later: "Plan") -> "Plan":
        """This plan and a later one, made for the status that this one stores, as one: its status is written once."""
        return Plan(
            reports=self.reports + later.reports,
            status=later.status or self.status,
            confirm=self.confirm or later.confirm,
            launches=self.launches + later.launches,
            stops=self.stops + later.stops,
            removals=tuple(dict.fromkeys(self.removals + later.removals)),
            report_cleanup=later.report_cleanup or self.report_cleanup,
            announcements=self.announcements + later.announcements,
            delete_diagnosis=self.delete_diagnosis or later.delete_diagnosis,
        )
