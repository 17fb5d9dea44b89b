"""The MemoryDiagnosis custom resource: what a user asks for, and the answer in its status."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict, JsonValue

from memdiag_api import limits
from memdiag_api.conditions import Condition
from memdiag_api.evidence import (
    ByteCount,
    Check,
    Confidence,
    Context,
    Count,
    HolderKind,
    MemoryClass,
    Share,
    SignedByteCount,
    Trend,
    VerdictKind,
)
from memdiag_api.model import ApiModel, Sentence, ShortText

GROUP = "memdiag.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

REQUESTED_AT_ANNOTATION = f"{GROUP}/requestedAt"
"""Set to a new value (a time, say) to run a finished diagnosis again."""

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
"""Of a label's key (Kubernetes: apimachinery, pkg/util/validation)."""
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=rf"^({_LABEL_NAME})?$")]


def cel(rule: str, message: str) -> JsonValue:
    """One validation rule in the Common Expression Language (Kubernetes: `x-kubernetes-validations`)."""
    return {"rule": rule, "message": message}


def immutable(field: str) -> JsonDict:
    """Schema extras that keep a field as it was created."""
    return {"x-kubernetes-validations": [cel("self == oldSelf", f"{field} cannot be changed: {_RERUN_HINT}")]}


class FailOn(StrEnum):
    """What makes a finished diagnosis count as failed."""

    NEVER = "Never"
    LEAK_DETECTED = "LeakDetected"


class NodeSelector(ApiModel):
    """Nodes by their labels."""

    match_labels: dict[str, LabelValue] = Field(
        min_length=1,
        max_length=16,
        description="labels that a node must have, all of them",
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
    """A pod, whose node is diagnosed."""

    namespace: DnsLabel = Field(description="the pod's namespace")
    name: DnsSubdomain = Field(description="the pod's name")


class Target(ApiModel):
    """Which nodes to look at: exactly one of nodeName, nodeSelector and podRef. Chosen once, as the run begins."""

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

    node_name: DnsSubdomain | None = Field(default=None, description="The node's name, as kubectl get nodes shows it.")
    node_selector: NodeSelector | None = Field(
        default=None, description="Nodes by their labels, those that are Ready first, then by name; needs maxNodes."
    )
    max_nodes: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="At most this many of the selected nodes."
    )
    pod_ref: PodReference | None = Field(
        default=None,
        description="The node that this pod runs on as the run begins; results say what the pod itself pins.",
    )


class MemoryDiagnosisSpec(ApiModel):
    """What to measure, where and for how long. Only suspend, terminate and ttlSecondsAfterFinished may change later."""

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
        max_length=3,
        description=(
            "What to look at. Breakdown: where the node's memory is. AllocPageTrace: call stacks whose pages "
            "are not freed. SocketQueues: sockets whose unread data pins memory."
        ),
        json_schema_extra={"x-kubernetes-list-type": "set", **immutable("checks")},
    )
    duration: Annotated[
        str, StringConstraints(min_length=2, max_length=8, pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$")
    ] = Field(
        default="60s",
        description="How long to trace, 5s to 30m, written as 90s, 10m or 1m30s. Slow leaks need long windows.",
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
        default=10, description="How many stacks and holders to list at most.", json_schema_extra=immutable("topN")
    )
    cpu_budget_percent: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5,
        description="Of each CPU's time, what recording allocations may take; above it the trace thins out.",
        json_schema_extra=immutable("cpuBudgetPercent"),
    )
    active_deadline_seconds: Annotated[int, Field(ge=30, le=MAX_DEADLINE_SECONDS)] = Field(
        default=DEFAULT_DEADLINE_SECONDS,
        description="After this many seconds, waiting included, nothing more is started, runners are asked to end, and "
        "the run ends as DeadlineExceeded with what they have measured. The default grows with the number of nodes: "
        "see status.activeDeadlineSeconds.",
        json_schema_extra=immutable("activeDeadlineSeconds"),
    )
    fail_on: FailOn = Field(
        default=FailOn.NEVER,
        description="LeakDetected makes a found leak end in Succeeded=False, so that a pipeline stops there.",
        json_schema_extra=immutable("failOn"),
    )
    suspend: bool = Field(default=False, description="Do not start a runner while true; a running one is ended.")
    terminate: bool = Field(
        default=False, description="End the run now; what was measured until then is kept where it can be."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31536000)] | None = Field(
        default=None,
        description="Delete the diagnosis this long after it finished. Leave unset under GitOps: what deletes itself "
        "is created anew for ever.",
    )


class NodeCounts(ApiModel):
    """How many of the run's nodes are where."""

    total: Count = Field(default=0, description="nodes that the run is about")
    pending: Count = Field(default=0, description="nodes whose runner is not at work yet")
    running: Count = Field(default=0, description="nodes that are being measured")
    succeeded: Count = Field(default=0, description="nodes that have delivered a whole result")
    failed: Count = Field(default=0, description="nodes that have not, and will not")


class RunStep(StrEnum):
    """How far a run is on one node."""

    WAITING = "Waiting"
    STARTING = "Starting"
    TRACING = "Tracing"
    COLLECTING = "Collecting"
    DONE = "Done"


Percent = Annotated[int, Field(ge=0, le=100)]


class VerdictSummary(ApiModel):
    """The answer for one node."""

    kind: VerdictKind
    confidence: Confidence
    sentence: Sentence = Field(description="the answer in one sentence")
    advice: Sentence = Field(default="", description="what a person can do next")


class StackHolder(ApiModel):
    """A holder in which a stack's outstanding blocks were found."""

    holder: ShortText = Field(description="the holder's line in topHolders, or its description")
    size_bytes: ByteCount
    share: Share


class StackSummary(ApiModel):
    """A call stack whose allocations were not given back."""

    frames: list[ShortText] = Field(max_length=limits.MAX_TOP_FRAMES, description="innermost first")
    context: Context
    trend: Trend
    outstanding_bytes: ByteCount
    outstanding_blocks: Count = Field(description="blocks allocated in the window and not freed")
    growth_bytes_per_second: float = Field(default=0, description="how fast the outstanding bytes grow")
    processes: list[ShortText] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP_PROCESSES,
        description="comm[pid] of those that allocated, largest first",
    )
    held_by: list[StackHolder] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP_HELD_BY,
        description="where those blocks were found, largest share first",
    )


class HolderSummary(ApiModel):
    """What pins memory, and whose it is. Pod and container names are the API server's, never the node's word."""

    kind: HolderKind
    namespace: ShortText = Field(default="", description="of the pod")
    pod: ShortText = Field(default="", description="whose process it is; empty when no pod of the node is it")
    container: ShortText = Field(default="", description="in that pod")
    pid: Count = Field(default=0, description="the process, as its node counts; 0 when no process holds it")
    comm: ShortText = Field(default="", description="the process's name")
    fds: list[Count] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP_FDS,
        description="the file descriptors by which the process holds it",
    )
    unowned_reason: ShortText = Field(default="", description="why it has no process, or the process no pod")
    protocol: ShortText = Field(default="", description="of a socket")
    state: ShortText = Field(default="", description="of a connection")
    local_address: ShortText = Field(default="", description="this end of a connection")
    remote_address: ShortText = Field(default="", description="the other end")
    unread_bytes: ByteCount = 0
    charge_bytes: ByteCount = 0
    pinned_bytes: ByteCount = 0
    stuck_seconds: float | None = Field(
        default=None, description="unread for at least this long, with nothing read; absent when it moves"
    )


class PodShare(ApiModel):
    """What the holders of one container pin."""

    namespace: ShortText = Field(
        default="", description="its pod's namespace; empty when the API server has no such pod"
    )
    pod: ShortText = Field(default="", description="its pod")
    container: ShortText = Field(default="", description="its name in the pod")
    pinned_bytes: ByteCount = Field(description="bytes of the blocks that its sockets, pipes and so on keep")


class TargetPod(ApiModel):
    """What the pod that target.podRef names pins on its node."""

    namespace: ShortText = Field(description="the pod's namespace")
    name: ShortText = Field(description="the pod's name")
    message: Sentence = Field(description="what it pins, in one sentence")
    unread_bytes: ByteCount = Field(default=0, description="in those of its holders that the report lists")
    pinned_bytes: ByteCount = Field(default=0, description="by all its holders, each block counted once")


class NodeResult(ApiModel):
    """What one node's runner found: the top of it; the MemoryDiagnosisReport has all."""

    node_name: DnsSubdomain = Field(description="the node, by the API server's word")
    pod_name: ShortText = Field(default="", description="the runner pod, which is removed once its result is stored")
    reason: ShortText = Field(default="", description="how this node's run ended: Completed, or why it failed")
    message: Sentence = Field(default="", description="how far it is, or what went wrong and how to mend it")
    step: RunStep | None = Field(default=None, description="how far it is; absent when it has ended")
    progress_percent: Percent | None = Field(default=None, description="how far it is; absent when it has ended")
    verdict: VerdictSummary | None = None
    suspect: ShortText = Field(default="", description="the prime suspect in one short line")
    target_pod: TargetPod | None = Field(
        default=None, description="of the pod that target.podRef names; its holders are the first of topHolders"
    )
    mem_total_bytes: ByteCount = 0
    alloc_page: ShortText = Field(default="", description="allocPageBytes as people read it")
    alloc_page_bytes: ByteCount | None = Field(
        default=None, description="pages that kernel code took straight from the buddy allocator"
    )
    alloc_page_change_bytes: SignedByteCount = Field(default=0, description="over the trace window")
    outstanding_bytes: ByteCount = Field(default=0, description="traced in the window and not freed")
    explained_bytes: ByteCount = Field(default=0, description="of outstandingBytes: found, page by page, in holders")
    pinned_bytes: ByteCount = Field(default=0, description="by all holders, each block counted once")
    breakdown: list[MemoryClass] = Field(
        default_factory=list,
        max_length=limits.MAX_CLASSES,
        description="where the node's memory is: the classes add up to memTotalBytes",
    )
    top_stacks: list[StackSummary] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP,
        description="call stacks whose pages were not freed, largest first",
    )
    top_holders: list[HolderSummary] = Field(
        default_factory=list, max_length=limits.MAX_TOP, description="what pins memory, largest first"
    )
    pinned_by_pod: list[PodShare] = Field(
        default_factory=list,
        max_length=limits.MAX_TOP,
        description="what the holders of each container pin, largest first",
    )
    coverage: list[Sentence] = Field(
        default_factory=list,
        max_length=limits.MAX_COVERAGE,
        description="what this result does not cover, and what was lost",
    )


class NodeState(ApiModel):
    """How the run stands on one node, in the fewest words: a run may have a thousand of them."""

    node_name: DnsSubdomain = Field(description="the node")
    reason: ShortText = Field(description="Pending, Running, Completed, or why it failed")
    verdict: VerdictKind | None = Field(default=None, description="the answer, where there is one")


class LastRun(ApiModel):
    """How the run before this one ended."""

    run_id: ShortText = Field(description="the run; its reports bear it as the label memdiag.dev/run-id")
    start_time: datetime | None = Field(default=None, description="when it began")
    completion_time: datetime | None = Field(default=None, description="when it ended")
    reason: ShortText = Field(default="", description="of its condition Succeeded")
    leak_detected: ShortText = Field(default="", description="its condition LeakDetected: True, False or Unknown")
    verdict: ShortText = Field(default="", description="of its condition LeakDetected")
    suspect: ShortText | None = Field(default=None, description="its prime suspect")
    summary: Sentence | None = Field(default=None, description="its answer in one sentence")


class ReportReference(ApiModel):
    """A MemoryDiagnosisReport of this run."""

    name: ShortText = Field(description="the report's name")
    node_name: ShortText = Field(description="the node that it is about")


class MemoryDiagnosisStatus(ApiModel):
    """The answer, and how the run goes."""

    observed_generation: int = Field(
        default=-1,
        description="the generation of the spec that this status is about; -1 before an operator has seen it",
    )
    run_id: ShortText | None = Field(default=None, description="the run; every rerun has another")
    last_handled_request: ShortText | None = Field(
        default=None,
        description=f"The value of the annotation {REQUESTED_AT_ANNOTATION} that this run answers.",
    )
    handled_requests: list[ShortText] = Field(
        default_factory=list,
        max_length=limits.MAX_HANDLED_REQUESTS,
        description="Values of that annotation that had their run, the latest first: none of them begins another.",
    )
    start_time: datetime | None = Field(default=None, description="when the run began; absent while suspended")
    active_deadline_seconds: Count | None = Field(
        default=None, description="how long this run may take from startTime on, computed when it began"
    )
    completion_time: datetime | None = Field(default=None, description="when the run ended, in whatever way")
    target: ShortText | None = Field(default=None, description="What the run is about, as people read it.")
    nodes: NodeCounts | None = None
    progress_percent: Percent | None = Field(default=None, description="How far the run is; 100 when it has ended.")
    progress: ShortText | None = Field(default=None, description="progressPercent as people read it, with the step")
    node_states: list[NodeState] = Field(
        default_factory=list,
        max_length=limits.MAX_NODES,
        description="every node of the run, as chosen when it began; results has more about the most telling of them",
    )
    summary: Sentence | None = Field(default=None, description="The answer in one sentence.")
    suspect: ShortText | None = Field(default=None, description="The prime suspect in one short line.")
    results: list[NodeResult] = Field(
        default_factory=list,
        max_length=limits.MAX_RESULTS,
        description="by node: the top of what its runner found, or how far it is; of many nodes the most telling first",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["nodeName"]},
    )
    report_refs: list[ReportReference] = Field(
        default_factory=list,
        max_length=limits.MAX_NODES,
        description="the reports with the whole evidence, of the nodes in results; the label memdiag.dev/run-id finds "
        "those of all nodes",
    )
    last_run: LastRun | None = Field(default=None, description="how the run before this one ended")
    previous_run_ids: list[ShortText] = Field(
        default_factory=list,
        max_length=limits.MAX_PREVIOUS_RUNS,
        description="ended runs whose reports are kept, the latest first",
    )
    truncated: bool = Field(default=False, description="The status leaves off what its reports have.")
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=limits.MAX_CONDITIONS,
        description="Succeeded, LeakDetected, Reconciling and Stalled, each with its reason",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class MemoryDiagnosis(ApiModel):
    """Asks where a node's memory went; the answer comes in the status."""

    KIND: ClassVar[str] = "MemoryDiagnosis"
    PLURAL: ClassVar[str] = "memorydiagnoses"
    SINGULAR: ClassVar[str] = "memorydiagnosis"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("memdiag",)

    spec: MemoryDiagnosisSpec
    status: MemoryDiagnosisStatus | None = Field(
        default=None, json_schema_extra={"default": {"observedGeneration": -1}}
    )
