"""Conditions of a MemoryDiagnosis: their types, and every reason that they can have.

Source: Kubernetes API conventions, "Typical status properties"; docs/conditions.md explains each reason to users.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from memdiag_api.model import ApiModel


class ConditionType(StrEnum):
    """ConditionType is the type of a condition."""

    SUCCEEDED = "Succeeded"
    LEAK_DETECTED = "LeakDetected"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class ConditionStatus(StrEnum):
    """ConditionStatus is the status of a condition, one of True, False and Unknown."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Reason is the reason for the status of a condition."""

    # Succeeded
    LIMIT_REACHED = "LimitReached"
    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETED = "Completed"
    LEAK_FOUND = "LeakFound"
    ADMISSION_DENIED = "AdmissionDenied"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePull"
    KERNEL_UNSUPPORTED = "KernelUnsupported"
    NODE_NOT_FOUND = "NodeNotFound"
    NODE_UNSUPPORTED = "NodeUnsupported"
    NODE_NOT_ALLOWED = "NodeNotAllowed"
    NODE_LOST = "NodeLost"
    POD_NOT_FOUND = "PodNotFound"
    POD_NOT_RUNNING = "PodNotRunning"
    RUNNER_OOM_KILLED = "RunnerOOMKilled"
    RUNNER_FAILED = "RunnerFailed"
    RUNNER_EVICTED = "RunnerEvicted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    PARTIAL_RESULTS = "PartialResults"
    RESULT_INVALID = "ResultInvalid"
    SUSPENDED = "Suspended"
    TERMINATED = "Terminated"
    INVALID_SPEC = "InvalidSpec"
    # LeakDetected: the kind of the verdict
    PINNED_BY_UNREAD_SOCKET = "PinnedByUnreadSocket"
    GROWING_KERNEL_ALLOCATION = "GrowingKernelAllocation"
    LEAKED_MEMORY = "LeakedMemory"
    LARGE_BUT_UNEXPLAINED = "LargeButUnexplained"
    SUSPICIOUS_MEMORY = "SuspiciousMemory"
    NO_LEAK = "NoLeak"
    INCONCLUSIVE = "Inconclusive"
    NO_RESULT = "NoResult"


class Condition(ApiModel):
    """Condition describes one aspect of the current state. Its schema is that of metav1.Condition."""

    type: ConditionType
    status: ConditionStatus
    reason: Reason
    message: Annotated[str, StringConstraints(max_length=32768)] = Field(
        default="", description="Human-readable details about the transition."
    )
    last_transition_time: datetime = Field(description="Last time at which the status changed.")
    observed_generation: int = Field(ge=-1, description="Generation of the spec that the condition is based on.")
