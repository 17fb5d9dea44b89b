"""The parts of Kubernetes objects that decisions read, parsed straight from the API server's JSON; the rest is ignored.

Source: Kubernetes API reference, core/v1 Pod and Node, meta/v1 ObjectMeta.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from memdiag_api.diagnosis import GROUP, REQUESTED_AT_ANNOTATION, MemoryDiagnosisSpec, MemoryDiagnosisStatus
from memdiag_api.limits import MAX_SHORT_TEXT
from memdiag_api.model import ApiModel


class KubernetesPart(ApiModel):
    """A part of an object, with the fields that matter here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class OwnerReference(KubernetesPart):
    """metav1.OwnerReference."""

    uid: str


class ObjectMeta(KubernetesPart):
    """metav1.ObjectMeta."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()

    def is_owned_by(self, uid: str) -> bool:
        """Whether the object with `uid` is an owner."""
        return any(owner.uid == uid for owner in self.owner_references)


class WaitingState(KubernetesPart):
    """ContainerStateWaiting."""

    reason: str = ""
    message: str = ""


class RunningState(KubernetesPart):
    """ContainerStateRunning."""

    started_at: datetime | None = None


class TerminatedState(KubernetesPart):
    """ContainerStateTerminated; `message` is what the container wrote to its termination log."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ContainerState(KubernetesPart):
    """At most one of the three."""

    waiting: WaitingState | None = None
    running: RunningState | None = None
    terminated: TerminatedState | None = None


class ContainerStatus(KubernetesPart):
    """ContainerStatus; the format of the container id is `containerd://0123...`."""

    name: str
    container_id: str = ""
    state: ContainerState = ContainerState()


class ObjectCondition(KubernetesPart):
    """PodCondition or NodeCondition."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class PodPhase(StrEnum):
    """A pod's phase."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class PodStatus(KubernetesPart):
    """PodStatus."""

    phase: PodPhase = PodPhase.PENDING
    reason: str = ""
    message: str = ""
    conditions: tuple[ObjectCondition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    ephemeral_container_statuses: tuple[ContainerStatus, ...] = ()


class PodSpec(KubernetesPart):
    """PodSpec."""

    node_name: str = ""
    active_deadline_seconds: int | None = None
    termination_grace_period_seconds: int = 30


class Pod(KubernetesPart):
    """A pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    def condition(self, kind: str) -> ObjectCondition | None:
        """The condition of that type."""
        return _condition(self.status.conditions, kind)

    @property
    def main_container(self) -> ContainerStatus | None:
        """The only container of a runner pod; None before the kubelet has reported on it."""
        return self.status.container_statuses[0] if self.status.container_statuses else None

    @property
    def is_terminal(self) -> bool:
        """Whether it will never run again."""
        return self.status.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)


class Event(KubernetesPart):
    """core/v1 Event about a pod; those of newer APIs have `event_time` alone."""

    type: str = ""
    reason: str = ""
    message: str = ""
    last_timestamp: datetime | None = None
    event_time: datetime | None = None

    @property
    def seen_at(self) -> datetime | None:
        """When the event was last seen."""
        return self.last_timestamp or self.event_time


class NodeSystemInfo(KubernetesPart):
    """NodeSystemInfo."""

    boot_id: str = ""
    operating_system: str = ""


class NodeStatus(KubernetesPart):
    """NodeStatus; `capacity` holds quantities as Kubernetes writes them."""

    capacity: dict[str, str] = Field(default_factory=dict)
    conditions: tuple[ObjectCondition, ...] = ()
    node_info: NodeSystemInfo = NodeSystemInfo()


class Node(KubernetesPart):
    """A node."""

    metadata: ObjectMeta
    status: NodeStatus = NodeStatus()

    @property
    def ready(self) -> ObjectCondition | None:
        """The condition Ready; None before the node has ever reported."""
        return _condition(self.status.conditions, "Ready")


class InvalidSpec(KubernetesPart):
    """A spec that is invalid in this version: stored under an older or newer schema."""

    message: str


def _spec_or_fault(value: Any) -> Any:
    if isinstance(value, MemoryDiagnosisSpec | InvalidSpec):
        return value
    try:
        return MemoryDiagnosisSpec.model_validate(value)
    except ValidationError as error:
        faults = [f"spec.{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        return InvalidSpec(message="; ".join(faults))


def _without_others_marks(meta: ObjectMeta) -> ObjectMeta:
    """`meta` without foreign labels and annotations: they may be large, and thousands of diagnoses are cached."""
    own = {key: value for key, value in meta.annotations.items() if key.startswith(f"{GROUP}/")}
    return meta.model_copy(update={"labels": {}, "annotations": own})


class Diagnosis(KubernetesPart):
    """A stored MemoryDiagnosis."""

    metadata: Annotated[ObjectMeta, AfterValidator(_without_others_marks)]
    spec: Annotated[MemoryDiagnosisSpec | InvalidSpec, BeforeValidator(_spec_or_fault)]
    status: MemoryDiagnosisStatus = Field(default_factory=MemoryDiagnosisStatus)

    @property
    def requested_at(self) -> str:
        """The rerun annotation's value, cut to the maximum length in the status; empty without one."""
        return self.metadata.annotations.get(REQUESTED_AT_ANNOTATION, "")[:MAX_SHORT_TEXT]

    @property
    def is_finished(self) -> bool:
        """Whether the latest run has ended."""
        return self.status.completion_time is not None


def _condition(conditions: tuple[ObjectCondition, ...], kind: str) -> ObjectCondition | None:
    return next((condition for condition in conditions if condition.type == kind), None)
