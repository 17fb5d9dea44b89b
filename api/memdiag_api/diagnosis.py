"""The MemoryDiagnosis custom resource: a request in its spec, the answer in its status."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict, JsonValue

from memdiag_api import limits
from memdiag_api.conditions import Condition
from memdiag_api.containers import ContainerAccount
from memdiag_api.evidence import (
    Check,
    Context,
    HolderKind,
    LeakDetected,
    MemoryClass,
    Trend,
    VerdictKind,
)
from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.model import ApiModel, Sentence, ShortText
from memdiag_api.owners import OwnerKind
from memdiag_api.record import ByteCount, Count, Share, SignedByteCount

GROUP = "memdiag.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

REQUESTED_AT_ANNOTATION = f"{GROUP}/requestedAt"
"""Set it to a new value, such as the current time, to run a finished diagnosis again."""

DEFAULT_DEADLINE_SECONDS = 900
MAX_DEADLINE_SECONDS = 86400

_RERUN_HINT = f"create a new MemoryDiagnosis, or set the annotation {REQUESTED_AT_ANNOTATION} to run this one again"

_DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DnsSubdomain = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=rf"^{_DNS_LABEL}(\.{_DNS_LABEL})*$")
]
DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=rf"^{_DNS_LABEL}$")]
_LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
MAX_LABEL_KEY_LENGTH = 253 + 1 + 63
LABEL_KEY_PATTERN = rf"^({_DNS_LABEL}(\.{_DNS_LABEL})*/)?{_LABEL_NAME}$"
"""Pattern of a label's key (Kubernetes: apimachinery, pkg/util/validation)."""
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=rf"^({_LABEL_NAME})?$")]


def cel(rule: str, message: str) -> JsonValue:
    """One validation rule in the Common Expression Language (Kubernetes: `x-kubernetes-validations`)."""
    return {"rule": rule, "message": message}


def immutable(field: str) -> JsonDict:
    """Schema extras that keep a field as it was created."""
    return {"x-kubernetes-validations": [cel("self == oldSelf", f"{field} cannot be changed: {_RERUN_HINT}")]}


class FailOn(StrEnum):
    """FailOn specifies which results make a finished diagnosis count as failed."""

    NEVER = "Never"
    LEAK_DETECTED = "LeakDetected"
    NOT_PROVEN_CLEAN = "NotProvenClean"


class NodeSelector(ApiModel):
    """NodeSelector selects nodes by their labels."""

    match_labels: dict[str, LabelValue] = Field(
        min_length=1,
        max_length=16,
        description="Labels that a node must have. All of them must match.",
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    f"self.all(key, size(key) <= {MAX_LABEL_KEY_LENGTH} && key.matches(r'{LABEL_KEY_PATTERN}'))",
                    "matchLabels has a key that no label can have: write it as pool or example.com/pool",
                )
            ]
        },
    )


class PodReference(ApiModel):
    """PodReference identifies a pod. The node that it runs on is diagnosed."""

    namespace: DnsLabel = Field(description="Namespace of the pod.")
    name: DnsSubdomain = Field(description="Name of the pod.")


class Target(ApiModel):
    """Target specifies the nodes to diagnose: exactly one of nodeName, nodeSelector and podRef must be set.

    The nodes are chosen once, when the run starts.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(has(self.nodeName) ? 1 : 0) + (has(self.nodeSelector) ? 1 : 0) + (has(self.podRef) ? 1 : 0) == 1",
                    "target takes exactly one of nodeName, nodeSelector and podRef",
                ),
                cel(
                    "has(self.nodeSelector) == has(self.maxNodes)",
                    "target.maxNodes goes with nodeSelector, and nodeSelector needs it",
                ),
            ]
        }
    )

    node_name: DnsSubdomain | None = Field(default=None, description="Name of the node, as in `kubectl get nodes`.")
    node_selector: NodeSelector | None = Field(
        default=None,
        description="Selects nodes by their labels. Ready nodes are chosen first, then by name. Requires maxNodes.",
    )
    max_nodes: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Maximum number of selected nodes to diagnose."
    )
    pod_ref: PodReference | None = Field(
        default=None,
        description="Selects the node that this pod runs on when the run starts. "
        "The results also report what the pod itself pins.",
    )


class MemoryDiagnosisSpec(ApiModel):
    """MemoryDiagnosisSpec specifies what to measure, on which nodes and for how long.

    Only suspend, terminate and ttlSecondsAfterFinished can be changed after creation.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "duration(self.duration).getSeconds() < self.activeDeadlineSeconds",
                    "activeDeadlineSeconds must be longer than duration: the runner needs time to start and to report",
                )
            ]
        }
    )

    target: Target = Field(json_schema_extra=immutable("target"))
    checks: list[Check] = Field(
        default=[Check.BREAKDOWN, Check.ALLOC_PAGE_TRACE, Check.SOCKET_QUEUES],
        min_length=1,
        max_length=len(Check),
        description=(
            "Checks to run. Breakdown: memory usage of the node by class. AllocPageTrace: call stacks whose pages "
            "are not freed. SocketQueues: sockets whose unread data pins memory. KernelObjects: slab memory by "
            "cache, and the packets, sockets, network namespaces and files of the node, found in their slabs. "
            "Owners: the processes, containers, mounts and files that have each class of memory, with the memory of "
            "every process; it includes Breakdown and Containers. Containers: the memory account of every container, "
            "and removed memory cgroups. If the first three are requested, all checks are run."
        ),
        json_schema_extra={"x-kubernetes-list-type": "set", **immutable("checks")},
    )
    duration: Annotated[
        str, StringConstraints(min_length=2, max_length=8, pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$")
    ] = Field(
        default="60s",
        description="Duration of the trace, from 5s to 30m, such as 90s, 10m or 1m30s. "
        "Slow leaks need a long duration.",
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "duration(self) >= duration('5s') && duration(self) <= duration('30m')",
                    "duration must be from 5s to 30m",
                ),
                cel("self == oldSelf", f"duration cannot be changed: {_RERUN_HINT}"),
            ]
        },
    )
    top_n: Annotated[int, Field(ge=1, le=20)] = Field(
        default=10, description="Maximum number of stacks and of holders to list.", json_schema_extra=immutable("topN")
    )
    cpu_budget_percent: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5,
        description="Percentage of each CPU's time that recording allocations may take. "
        "Above it, the trace records only a sample of the allocations.",
        json_schema_extra=immutable("cpuBudgetPercent"),
    )
    active_deadline_seconds: Annotated[int, Field(ge=30, le=MAX_DEADLINE_SECONDS)] = Field(
        default=DEFAULT_DEADLINE_SECONDS,
        description="Maximum duration of the run in seconds, including the time spent waiting. After that, no more "
        "runners are started, running ones are asked to stop, and the run ends with reason DeadlineExceeded and the "
        "results measured so far. The default grows with the number of nodes: see status.activeDeadlineSeconds.",
        json_schema_extra=immutable("activeDeadlineSeconds"),
    )
    fail_on: FailOn = Field(
        default=FailOn.NEVER,
        description="Results with which the run ends with Succeeded=False, which stops a pipeline that waits for it. "
        "LeakDetected: a leak was found. NotProvenClean: a leak was found or cannot be excluded, so the condition "
        "LeakDetected is not False. Never: neither makes the run fail.",
        json_schema_extra=immutable("failOn"),
    )
    suspend: bool = Field(default=False, description="If true, no runner is started and running ones are stopped.")
    terminate: bool = Field(
        default=False, description="If true, the run is ended now. Results measured so far are kept if possible."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31536000)] | None = Field(
        default=None,
        description="Number of seconds after which a finished diagnosis is deleted. If unset, it is not deleted. "
        "Leave it unset under GitOps: the object would be recreated in a loop.",
    )


class NodeCounts(ApiModel):
    """NodeCounts contains node counts by state."""

    total: Count = Field(default=0, description="Number of nodes of the run.")
    pending: Count = Field(default=0, description="Number of nodes whose runner has not started measuring.")
    running: Count = Field(default=0, description="Number of nodes that are being measured.")
    succeeded: Count = Field(default=0, description="Number of nodes with a complete result.")
    failed: Count = Field(default=0, description="Number of nodes that failed.")


class RunStep(StrEnum):
    """RunStep is the current step of a run on one node."""

    WAITING = "Waiting"
    STARTING = "Starting"
    TRACING = "Tracing"
    COLLECTING = "Collecting"
    DONE = "Done"


Percent = Annotated[int, Field(ge=0, le=100)]


class VerdictSummary(ApiModel):
    """VerdictSummary is the answer for one node."""

    kind: VerdictKind
    confidence: Confidence
    sentence: Sentence = Field(description="The answer in one sentence.")
    advice: Sentence = Field(default="", description="Recommended next step.")


class StackHolder(ApiModel):
    """StackHolder is a holder that contains outstanding blocks of a stack."""

    holder: ShortText = Field(description="The holder, as shown in topHolders, or its description.")
    size_bytes: ByteCount
    share: Share


class StackSummary(ApiModel):
    """StackSummary describes a call stack whose allocations were not freed."""

    frames: list[ShortText] = Field(
        max_length=limits.MAX_TOP_FRAMES, description="Functions of the stack, innermost first."
    )
    context: Context
    trend: Trend
    outstanding_bytes: ByteCount
    outstanding_blocks: Count = Field(
        description="Number of blocks, or of objects, allocated in the window and not freed."
    )
    memory_class: ShortText = Field(
        default=ClassName.ALLOC_PAGE.value, description="Class of the memory: AllocPage, Slab, Vmalloc, ..."
    )
    slab_cache: ShortText = Field(default="", description="Slab cache of the memory if memoryClass is Slab.")
    growth_bytes_per_second: float = Field(default=0, description="Growth rate of the outstanding bytes.")
    processes: list[ShortText] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP_PROCESSES,
        description="Processes that allocated, as comm[pid], largest first.",
    )
    held_by: list[StackHolder] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP_HELD_BY,
        description="Holders that contain those blocks, largest share first.",
    )


class HolderSummary(ApiModel):
    """HolderSummary describes an object that pins memory, and the process, container and pod that own it.

    Names of pods and containers come from the API server, never from the node.
    """

    kind: HolderKind
    namespace: ShortText = Field(default="", description="Namespace of the pod.")
    pod: ShortText = Field(
        default="",
        description="Name of the pod that owns the process. Empty if it belongs to no pod on the node.",
    )
    container: ShortText = Field(default="", description="Name of the container in the pod.")
    pid: Count = Field(default=0, description="Process ID in the PID namespace of the node. 0 if no process holds it.")
    comm: ShortText = Field(default="", description="Name of the process.")
    fds: list[Count] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP_FDS,
        description="File descriptors through which the process holds it.",
    )
    unowned_reason: ShortText = Field(default="", description="Reason why there is no process, or no pod.")
    protocol: ShortText = Field(default="", description="Protocol of the socket.")
    state: ShortText = Field(default="", description="State of the connection.")
    local_address: ShortText = Field(default="", description="Local address of the connection.")
    remote_address: ShortText = Field(default="", description="Remote address of the connection.")
    unread_bytes: ByteCount = 0
    charge_bytes: ByteCount = 0
    pinned_bytes: ByteCount = 0
    head_bytes: ByteCount = Field(
        default=0, description="Bytes of linear heads of its packets: slab memory, in addition to pinnedBytes."
    )
    memory_class: ShortText = Field(
        default=ClassName.ALLOC_PAGE.value, description="Class of the breakdown that pinnedBytes belong to, or Unknown."
    )
    stuck_seconds: float | None = Field(
        default=None,
        description="Minimum time in seconds for which data was unread and nothing was read. Absent if data is read.",
    )


class PodShare(ApiModel):
    """PodShare is the memory that the holders of one container pin."""

    namespace: ShortText = Field(
        default="", description="Namespace of the pod. Empty if the API server has no such pod."
    )
    pod: ShortText = Field(default="", description="Name of the pod.")
    container: ShortText = Field(default="", description="Name of the container in the pod.")
    pinned_bytes: ByteCount = Field(description="Bytes of the blocks pinned by its sockets, pipes and other holders.")


class TargetPod(ApiModel):
    """TargetPod is the memory that the pod in target.podRef pins on its node."""

    namespace: ShortText = Field(description="Namespace of the pod.")
    name: ShortText = Field(description="Name of the pod.")
    message: Sentence = Field(description="What the pod pins, in one sentence.")
    unread_bytes: ByteCount = Field(
        default=0, description="Unread bytes in those of its holders that are listed in the report."
    )
    pinned_bytes: ByteCount = Field(
        default=0, description="Bytes pinned by all its holders. Each block is counted once."
    )
    account: ContainerAccount | None = Field(
        default=None,
        description="What the pod's memory cgroup is charged for, and its limit. Absent if it could not be read.",
    )


class FindingSummary(ApiModel):
    """FindingSummary is one statement about where memory is. docs/findings.md describes each kind.

    Names of pods and containers come from the API server, never from the node.
    """

    kind: FindingKind
    memory_class: ShortText = Field(
        default="", description="Class of the breakdown that most of the memory belongs to. Empty if it is of several."
    )
    size_bytes: ByteCount
    size: ShortText = Field(default="", description="The value of sizeBytes in readable form.")
    leak: LeakAnswer = Field(description="Whether this memory is leaked.")
    reclaimable: bool = Field(default=False, description="If true, the kernel frees it when memory is needed.")
    growth_bytes_per_second: float | None = Field(default=None, description="Growth rate. Absent if not measured.")
    confidence: Confidence = Field(description="Confidence in the finding.")
    owner_kind: OwnerKind | None = Field(default=None, description="Kind of the owner. Absent if it is not known.")
    namespace: ShortText = Field(default="", description="Namespace of the pod that has the memory.")
    pod: ShortText = Field(
        default="", description="Name of the pod that has the memory. Empty if it belongs to no pod on the node."
    )
    container: ShortText = Field(default="", description="Name of the container in the pod.")
    pid: Count = Field(default=0, description="Process ID in the PID namespace of the node. 0 if it is not a process.")
    comm: ShortText = Field(default="", description="Name of the process, which the process itself can choose.")
    fds: list[Count] = Field(
        default_factory=list,
        max_length=limits.MAX_OWNER_FDS,
        description="File descriptors through which the process holds the memory.",
    )
    name: ShortText = Field(
        default="",
        description="Name of another owner, as the node reports it: a slab cache, a function, a device. In quotes if "
        "it has unusual characters, as paths have.",
    )
    freed_by: Sentence = Field(default="", description="What frees it, in the words of the node's runner.")
    freed_bytes: ByteCount | None = Field(
        default=None, description="Bytes that this would bring back. Absent if that is not known."
    )
    sentence: Sentence = Field(description="The finding in one sentence, in the words of the node's runner.")
    advice: Sentence = Field(default="", description="Recommended next step.")


class NodeResult(ApiModel):
    """NodeResult contains the main findings for one node. The MemoryDiagnosisReport contains all of them."""

    node_name: DnsSubdomain = Field(description="Name of the node, as reported by the API server.")
    pod_name: ShortText = Field(
        default="", description="Name of the runner pod. The pod is deleted after its result is stored."
    )
    reason: ShortText = Field(
        default="", description="How the run ended on this node: Completed, or the reason of the failure."
    )
    message: Sentence = Field(default="", description="Current progress, or what went wrong and how to fix it.")
    step: RunStep | None = Field(default=None, description="Current step. Absent when the run on this node has ended.")
    progress_percent: Percent | None = Field(
        default=None, description="Progress in percent. Absent when the run on this node has ended."
    )
    verdict: VerdictSummary | None = None
    leak_detected: LeakDetected | None = Field(
        default=None, description="Whether this node has a leak. Absent in results of version 0.1.0."
    )
    suspect: ShortText = Field(default="", description="The first finding, in one short line.")
    findings: list[FindingSummary] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP_FINDINGS,
        description="The first findings, most important first. The report has all of them.",
    )
    target_pod: TargetPod | None = Field(
        default=None,
        description="Memory pinned by the pod in target.podRef. Its holders are listed first in topHolders.",
    )
    mem_total_bytes: ByteCount = 0
    explained_memory_bytes: ByteCount | None = Field(
        default=None,
        description="The part of memTotalBytes that is free or that a finding or a known owner explains. Absent in "
        "results of version 0.1.0.",
    )
    alloc_page: ShortText = Field(default="", description="The value of allocPageBytes in readable form.")
    alloc_page_bytes: ByteCount | None = Field(
        default=None, description="Bytes that kernel code allocated directly from the buddy allocator."
    )
    alloc_page_change_bytes: SignedByteCount = Field(
        default=0, description="Change of allocPageBytes over the trace window."
    )
    outstanding_bytes: ByteCount = Field(default=0, description="Bytes traced in the window and not freed.")
    explained_bytes: ByteCount = Field(
        default=0, description="The part of outstandingBytes whose pages were found in holders."
    )
    pinned_bytes: ByteCount = Field(default=0, description="Bytes pinned by all holders. Each block is counted once.")
    breakdown: list[MemoryClass] = Field(
        default_factory=list,
        max_length=limits.MAX_CLASSES,
        description="Memory usage of the node by class. The classes add up to memTotalBytes.",
    )
    top_stacks: list[StackSummary] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP,
        description="Call stacks whose memory was not freed, largest first.",
    )
    top_holders: list[HolderSummary] = Field(
        default_factory=list, max_length=limits.MAX_TOP, description="Objects that pin memory, largest first."
    )
    pinned_by_pod: list[PodShare] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP,
        description="Memory pinned by the holders of each container, largest first.",
    )
    coverage: list[Sentence] = Field(
        default_factory=list,
        max_length=limits.MAX_COVERAGE,
        description="What this result does not cover, and what was lost.",
    )


class NodeState(ApiModel):
    """NodeState is the state of the run on one node. It is kept short: a run may have a thousand of them."""

    node_name: DnsSubdomain = Field(description="Name of the node.")
    reason: ShortText = Field(description="Pending, Running, Completed, or the reason of the failure.")
    verdict: VerdictKind | None = Field(default=None, description="The answer, if any.")
    leak_detected: LeakDetected | None = Field(
        default=None,
        description="Whether this node has a leak. Absent without an answer, and in statuses of version 0.1.0.",
    )


class LastRun(ApiModel):
    """LastRun describes how the previous run ended."""

    run_id: ShortText = Field(description="ID of the run. Its reports have it as the label memdiag.dev/run-id.")
    start_time: datetime | None = Field(default=None, description="Time at which the run started.")
    completion_time: datetime | None = Field(default=None, description="Time at which the run ended.")
    reason: ShortText = Field(default="", description="Reason of its condition Succeeded.")
    leak_detected: ShortText = Field(
        default="", description="Status of its condition LeakDetected: True, False or Unknown."
    )
    verdict: ShortText = Field(default="", description="Reason of its condition LeakDetected.")
    suspect: ShortText | None = Field(default=None, description="Its first finding.")
    summary: Sentence | None = Field(default=None, description="Its answer in one sentence.")


class ReportReference(ApiModel):
    """ReportReference identifies a MemoryDiagnosisReport of this run."""

    name: ShortText = Field(description="Name of the report.")
    node_name: ShortText = Field(description="Name of the node that was measured.")


class MemoryDiagnosisStatus(ApiModel):
    """MemoryDiagnosisStatus contains the state of the run and its results."""

    observed_generation: int = Field(
        default=-1,
        description="Generation of the spec that this status is based on. -1 until the operator has seen the object.",
    )
    run_id: ShortText | None = Field(default=None, description="ID of the run. Every rerun has a new one.")
    last_handled_request: ShortText | None = Field(
        default=None,
        description=f"Value of the annotation {REQUESTED_AT_ANNOTATION} that requested this run.",
    )
    handled_requests: list[ShortText] = Field(
        default_factory=list,
        max_length=limits.MAX_HANDLED_REQUESTS,
        description="Values of that annotation that already had a run, latest first. They do not start another.",
    )
    start_time: datetime | None = Field(
        default=None, description="Time at which the run started. Absent while suspended."
    )
    active_deadline_seconds: Count | None = Field(
        default=None, description="Maximum duration of this run, counted from startTime. Computed when the run started."
    )
    completion_time: datetime | None = Field(
        default=None, description="Time at which the run ended, successfully or not."
    )
    target: ShortText | None = Field(default=None, description="The diagnosed nodes, in readable form.")
    nodes: NodeCounts | None = None
    progress_percent: Percent | None = Field(
        default=None, description="Progress of the run in percent. 100 when it has ended."
    )
    progress: ShortText | None = Field(
        default=None, description="The value of progressPercent in readable form, with the current step."
    )
    node_states: list[NodeState] = Field(
        default_factory=list,
        max_length=limits.MAX_NODES,
        description="All nodes of the run, as chosen when it started. See results for the most relevant ones.",
    )
    summary: Sentence | None = Field(default=None, description="The answer in one sentence.")
    suspect: ShortText | None = Field(default=None, description="The first finding in one short line.")
    results: list[NodeResult] = Field(
        default_factory=list,
        max_length=limits.MAX_RESULTS,
        description="Results by node: the main findings, or the progress so far. If there are many nodes, "
        "the most relevant come first.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["nodeName"]},
    )
    report_refs: list[ReportReference] = Field(
        default_factory=list,
        max_length=limits.MAX_NODES,
        description="Reports with the complete evidence of the nodes in results. Select by the label "
        "memdiag.dev/run-id to find the reports of all nodes.",
    )
    last_run: LastRun | None = Field(default=None, description="How the previous run ended.")
    previous_run_ids: list[ShortText] = Field(
        default_factory=list,
        max_length=limits.MAX_PREVIOUS_RUNS,
        description="IDs of ended runs whose reports are kept, latest first.",
    )
    truncated: bool = Field(default=False, description="If true, the status omits findings that the reports contain.")
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=limits.MAX_CONDITIONS,
        description="Conditions of the diagnosis: Succeeded, LeakDetected, Reconciling and Stalled.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class MemoryDiagnosis(ApiModel):
    """MemoryDiagnosis requests a diagnosis of where a node's memory went. The status contains the answer."""

    KIND: ClassVar[str] = "MemoryDiagnosis"
    PLURAL: ClassVar[str] = "memorydiagnoses"
    SINGULAR: ClassVar[str] = "memorydiagnosis"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("memdiag",)

    spec: MemoryDiagnosisSpec
    status: MemoryDiagnosisStatus | None = Field(
        default=None, json_schema_extra={"default": {"observedGeneration": -1}}
    )
