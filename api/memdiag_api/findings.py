"""A finding: one statement about where memory is, who has it, and whether that is a leak (docs/findings.md)."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import Sentence, ShortText
from memdiag_api.owners import MemoryOwner
from memdiag_api.record import ByteCount, Count, Name, Record


class FindingKind(StrEnum):
    """FindingKind is the kind of a finding. docs/findings.md describes the rule for each of them."""

    UNREAD_SOCKET = "UnreadSocket"
    SLOW_READER = "SlowReader"
    UNSENT_DATA = "UnsentData"
    PACKETS_OUTSIDE_SOCKETS = "PacketsOutsideSockets"
    LOST_PACKETS = "LostPackets"
    LARGE_HOLDER = "LargeHolder"
    ZOMBIE_NAMESPACE = "ZombieNamespace"
    GROWING_ALLOCATION = "GrowingAllocation"
    GROWING_CLASS = "GrowingClass"
    LARGE_CLASS = "LargeClass"
    REMOVED_CGROUPS = "RemovedCgroups"
    UNUSED_HUGE_PAGES = "UnusedHugePages"
    BALLOON = "Balloon"
    RESERVED_MEMORY = "ReservedMemory"
    PROCESS_MEMORY = "ProcessMemory"
    SHARED_MEMORY = "SharedMemory"
    FILE_CACHE = "FileCache"
    RECLAIMABLE_SLAB = "ReclaimableSlab"
    CONTAINER_NEAR_LIMIT = "ContainerNearLimit"
    OOM_KILL = "OomKill"
    HUGE_PAGE_WASTE = "HugePageWaste"
    FRAGMENTATION = "Fragmentation"
    UNEXPLAINED = "Unexplained"
    GROWTH_SINCE_RUN = "GrowthSinceRun"


class LeakAnswer(StrEnum):
    """LeakAnswer says whether memory is leaked: Yes, No, or Unknown if the measurement cannot decide it."""

    YES = "Yes"
    NO = "No"
    UNKNOWN = "Unknown"


class Confidence(StrEnum):
    """Confidence is the confidence in a statement."""

    HIGH = "High"
    MEDIUM = "Medium"
    LOW = "Low"


class FindingTrend(Record):
    """FindingTrend is how fast the memory of a finding grows."""

    bytes_per_second: float = Field(allow_inf_nan=False, description="Growth rate. Negative if it shrinks.")
    error_bytes_per_second: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="Standard error of the growth rate."
    )
    over_seconds: float = Field(ge=0, allow_inf_nan=False, description="Time over which the rate was measured.")
    exhausts_node_in_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Time until the node has no free and no reclaimable memory left at this rate. Null if it does not "
        "grow.",
    )


class FreedBy(Record):
    """FreedBy is what frees the memory of a finding."""

    action: Sentence = Field(description="What frees it: what to end, restart, close, delete, unmount or set.")
    size_bytes: ByteCount | None = Field(
        default=None,
        description="Bytes that this would bring back. Each block counts once, and memory that others share does not "
        "count. Null if that is not known.",
    )


class FindingEvidence(Record):
    """FindingEvidence refers to the parts of the document that a finding is based on."""

    holders: Annotated[list[Count], Field(max_length=limits.MAX_FINDING_REFERENCES)] = Field(
        default_factory=list, description="Indexes in holders."
    )
    stacks: Annotated[list[Count], Field(max_length=limits.MAX_FINDING_REFERENCES)] = Field(
        default_factory=list, description="Indexes in stacks."
    )
    sections: Annotated[list[ShortText], Field(max_length=limits.MAX_FINDING_REFERENCES)] = Field(
        default_factory=list, description="Names of other parts of the document, such as breakdown or census.slab."
    )


class Finding(Record):
    """Finding is one statement about where memory is."""

    kind: FindingKind
    memory_class: Name = Field(
        default="", description="Class of the breakdown that most of the memory belongs to. Empty if it is of several."
    )
    size_bytes: ByteCount = Field(description="Bytes that the finding is about.")
    counted_bytes: ByteCount = Field(
        default=0,
        description="Part of sizeBytes that no earlier finding counts. The sum over all findings is at most the memory "
        "of the node.",
    )
    owner: MemoryOwner | None = Field(default=None, description="Who has it. Null if that is not known.")
    trend: FindingTrend | None = Field(default=None, description="Growth. Null if it was not measured.")
    leak: LeakAnswer = Field(description="Whether this memory is leaked.")
    reclaimable: bool = Field(default=False, description="If true, the kernel frees it when memory is needed.")
    freed_by: FreedBy | None = Field(default=None, description="What frees it. Null if nothing is known that does.")
    confidence: Confidence = Field(description="Confidence in the finding.")
    sentence: Sentence = Field(description="The finding in one sentence.")
    reasons: Annotated[list[Sentence], Field(max_length=limits.MAX_REASONS)] = Field(
        default_factory=list, description="Figures and thresholds that the finding is based on."
    )
    advice: Sentence = Field(default="", description="Recommended next step.")
    evidence: FindingEvidence = Field(default_factory=FindingEvidence, description="What it is based on.")
