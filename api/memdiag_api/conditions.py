"""Conditions of a MemoryDiagnosis: their types, and every reason that they can carry.

Source: Kubernetes API conventions, "Typical status properties"; docs/conditions.md explains each reason to users.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from memdiag_api.model import ApiModel


class ConditionType(StrEnum):
    """What a condition is about."""

    SUCCEEDED = "Succeeded"
    LEAK_DETECTED = "LeakDetected"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class ConditionStatus(StrEnum):
    """Kubernetes' three values."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Why a condition has its status."""

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
    # LeakDetected: the verdict's kind
    PINNED_BY_UNREAD_SOCKET = "PinnedByUnreadSocket"
    GROWING_KERNEL_ALLOCATION = "GrowingKernelAllocation"
    LARGE_BUT_UNEXPLAINED = "LargeButUnexplained"
    NO_LEAK = "NoLeak"
    INCONCLUSIVE = "Inconclusive"
    NO_RESULT = "NoResult"


class Condition(ApiModel):
    """One condition, shaped as metav1.Condition."""

    type: ConditionType
    status: ConditionStatus
    reason: Reason
    message: Annotated[str, StringConstraints(max_length=32768)] = Field(default="", description="for a person")
    last_transition_time: datetime = Field(description="when the status last changed")
    observed_generation: int = Field(ge=-1, description="the generation of the spec that it is about")
