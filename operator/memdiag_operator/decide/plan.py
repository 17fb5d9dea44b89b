"""What to do for a diagnosis."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from memdiag_api.conditions import ConditionType
from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_operator.kube.objects import Diagnosis
from memdiag_operator.status.conditions import Finding, conditions
from memdiag_operator.status.events import Announcement, announcements


@dataclass(frozen=True, slots=True)
class PodRemoval:
    """A runner pod to be deleted."""

    name: str
    uid: str
    force: bool = False
    """Do not wait for its kubelet, which no longer exists."""


@dataclass(frozen=True, slots=True)
class ReportCleanup:
    """Reports of a diagnosis to delete: those of all runs except `kept_runs`."""

    diagnosis_uid: str
    kept_runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in the order of the fields: results are stored before the status says that they are."""

    reports: tuple[dict[str, Any], ...] = ()
    status: MemoryDiagnosisStatus | None = None
    """The status to store; None if it is unchanged or may be written later."""
    confirm: bool = False
    """Whether the API server must first confirm that the diagnosis is unchanged, because no status write does that."""
    launches: tuple[dict[str, Any], ...] = ()
    """Manifests of runner pods."""
    stops: tuple[PodRemoval, ...] = ()
    """Runners to stop now, which then deliver what they have measured."""
    removals: tuple[PodRemoval, ...] = ()
    report_cleanup: ReportCleanup | None = None
    announcements: tuple[Announcement, ...] = ()
    delete_diagnosis: bool = False
    draft: MemoryDiagnosisStatus | None = None
    """The status that was decided and is written later: until then the operator continues from it."""

    @property
    def decided(self) -> MemoryDiagnosisStatus | None:
        """The status that was decided, whether it is written now or later."""
        return self.status or self.draft

    @property
    def is_status_alone(self) -> bool:
        """Whether the plan only writes a status."""
        return self == Plan(status=self.status)

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
            draft=later.draft or self.draft,
        )


def status_plan(
    diagnosis: Diagnosis, status: MemoryDiagnosisStatus, findings: dict[ConditionType, Finding], now: datetime
) -> Plan:
    """Store `status` with `findings` as its conditions, and announce what is new; empty if nothing changes."""
    before, generation = diagnosis.status, diagnosis.metadata.generation
    new = status.model_copy(
        update={
            "observed_generation": generation,
            "conditions": conditions(before.conditions, findings, generation, now),
        }
    )
    if new.to_json_object() == before.to_json_object():
        return Plan()
    return Plan(status=new, announcements=announcements(diagnosis, new))
