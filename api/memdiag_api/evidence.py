"""The evidence document: everything that one node runner found, as it hands it over.

One document is the single source of the CLI report, of the MemoryDiagnosisReport and of the diagnosis's status.
It travels through a container log, so a reader must take every field as chosen by someone who may be hostile:
strings and lists are bounded here, unknown fields are refused, and no field holds a kernel address.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from memdiag_api import limits
from memdiag_api.memory_classes import ClassName
from memdiag_api.model import ApiModel, Sentence, ShortText

SCHEMA_VERSION: Literal[1] = 1

Name = Annotated[str, StringConstraints(max_length=253)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
ByteCount = Annotated[int, Field(ge=0, le=2**63 - 1, description="in bytes")]
SignedByteCount = Annotated[int, Field(ge=-(2**63), le=2**63 - 1, description="in bytes, negative when it shrank")]
Share = Annotated[float, Field(ge=0, le=1, description="a share, 0 to 1", allow_inf_nan=False)]


class Record(ApiModel):
    """A part of the document: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(StrEnum):
    """What a diagnosis looks at."""

    BREAKDOWN = "Breakdown"
    ALLOC_PAGE_TRACE = "AllocPageTrace"
    SOCKET_QUEUES = "SocketQueues"


class NeedState(StrEnum):
    """Whether something that a check needs is there."""

    MET = "Met"
    DEGRADED = "Degraded"
    MISSING = "Missing"


class Need(Record):
    """One thing that the runner needs from the host, and what its absence costs."""

    name: Name = Field(description="what is needed")
    state: NeedState
    checks: Annotated[list[Check], Field(max_length=limits.MAX_CHECKS)] = Field(description="the checks that need it")
    detail: Sentence = Field(default="", description="what was found")
    remedy: Sentence = Field(default="", description="how to mend it")


class Host(Record):
    """The machine that was measured, as it describes itself."""

    node_name: Name = Field(description="the node that was measured, as it was told its name")
    kernel_release: ShortText = Field(description="uname -r")
    architecture: ShortText = Field(description="uname -m")
    cpus: Count = Field(description="online CPUs")
    mem_total_bytes: ByteCount
    page_size_bytes: ByteCount
    boot_id: ShortText = Field(description="changes with every boot")


class Window(Record):
    """The time that was measured."""

    start_time: datetime = Field(description="by the host's clock")
    end_time: datetime = Field(description="by the host's clock")
    requested_seconds: float = Field(ge=0, allow_inf_nan=False, description="how long it was to be")
    traced_seconds: float = Field(ge=0, allow_inf_nan=False, description="0 when nothing was traced")
    interrupted: bool = Field(
        default=False, description="ended early by a signal: the figures cover what was traced until then"
    )


class Owner(Record):
    """A process as its node knows it; container and pod ids come from its cgroup, names from the API server."""

    pid: Count = Field(description="in the host's PID namespace")
    comm: ShortText = Field(description="the process's name, which it chooses itself")
    command_line: Sentence = Field(
        default="", description="its executable; with its arguments only where the operator's configuration says so"
    )
    uid: Count = Field(default=0, description="its user")
    container_id: ShortText = Field(default="", description="from its cgroup's path")
    pod_uid: ShortText = Field(default="", description="from its cgroup's path")
    fds: Annotated[list[Count], Field(max_length=limits.MAX_FDS)] = Field(
        default_factory=list, description="every fd of this process that holds it"
    )


class MemoryClass(Record):
    """One line of the breakdown."""

    name: Name = Field(description="a name of the kernel's: AnonPages, SUnreclaim, ..., or AllocPage")
    group: Literal["Application", "Kernel", "Free"] = Field(description="whose memory it is")
    size_bytes: ByteCount


class Breakdown(Record):
    """Where the node's memory is. The classes add up to `mem_total_bytes`."""

    mem_total_bytes: ByteCount
    classes: Annotated[list[MemoryClass], Field(max_length=limits.MAX_CLASSES)] = Field(
        description="largest first in each group"
    )
    alloc_page_bytes: ByteCount = Field(description="pages that kernel code took straight from the buddy allocator")
    alloc_page_error_bytes: ByteCount = Field(
        description="half the spread of the readings that the median was taken of"
    )
    alloc_page_change_bytes: SignedByteCount = Field(default=0, description="from the window's start to its end")


class Context(StrEnum):
    """In which context allocations of a stack happened; only Process names a process."""

    PROCESS = "Process"
    SOFTIRQ = "SoftIRQ"
    INTERRUPT = "Interrupt"
    MIXED = "Mixed"


class Trend(StrEnum):
    """What the birth times of a stack's outstanding blocks say."""

    GROWING = "Growing"
    PINNED = "Pinned"
    CHURN = "Churn"
    UNCLEAR = "Unclear"


class AllocatingProcess(Record):
    """One process that allocated through a stack, as it was when it did."""

    pid: Count = Field(description="in the host's PID namespace")
    comm: ShortText = Field(description="the process's name")
    container_id: ShortText = Field(default="", description="from its cgroup's path")
    pod_uid: ShortText = Field(default="", description="from its cgroup's path")
    outstanding_bytes: ByteCount


class HeldBy(Record):
    """A part of a stack's outstanding blocks that was found in one holder."""

    holder: Count = Field(description="index in `holders`")
    size_bytes: ByteCount
    share: Share = Field(description="of the stack's outstanding bytes")


class FilledBy(Record):
    """A part of a holder's pinned blocks that was allocated by one traced stack."""

    stack: Count = Field(description="index in `stacks`")
    size_bytes: ByteCount
    share: Share = Field(description="of the holder's pinned bytes")


class Stack(Record):
    """Allocations of one kernel call stack that were not freed while the trace ran."""

    frames: Annotated[list[ShortText], Field(max_length=limits.MAX_FRAMES)] = Field(
        description="innermost first, symbol+offset, [module] where it is one"
    )
    context: Context
    memory_class: Name = Field(
        default=ClassName.ALLOC_PAGE.value,
        description="the breakdown's class that the memory belongs to, told by its stack",
    )
    outstanding_bytes: ByteCount
    outstanding_blocks: Count = Field(description="allocated in the window and not freed")
    outstanding_by_order: dict[str, Count] = Field(
        default_factory=dict, max_length=limits.MAX_ORDERS, description="blocks by order (0, 1, 2, ...)"
    )
    births_bytes: Annotated[list[ByteCount], Field(max_length=limits.MAX_SLICES)] = Field(
        default_factory=list, description="outstanding bytes by time of birth, the window cut in equal slices"
    )
    allocated_bytes: ByteCount = Field(default=0, description="all that this stack allocated in the window")
    freed_bytes: ByteCount = 0
    growth_bytes_per_second: float = Field(default=0, allow_inf_nan=False, description="slope of the outstanding bytes")
    growth_error_bytes_per_second: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="standard error of the slope"
    )
    median_life_seconds: float | None = Field(
        default=None, description="of what was freed; null when nothing was", allow_inf_nan=False
    )
    trend: Trend = Trend.UNCLEAR
    sampled_share: Share = Field(
        default=1, description="of this stack's events that were recorded; figures are scaled by it"
    )
    error_bytes: ByteCount = Field(default=0, description="standard error of the scaled outstanding bytes")
    processes: Annotated[list[AllocatingProcess], Field(max_length=limits.MAX_PROCESSES)] = Field(
        default_factory=list, description="largest outstanding first"
    )
    held_by: Annotated[list[HeldBy], Field(max_length=limits.MAX_JOINED)] = Field(
        default_factory=list, description="largest share first"
    )
    explained_bytes: ByteCount = Field(default=0, description="outstanding bytes that were found in any holder")


class TraceCounters(Record):
    """What the trace saw and what it missed. Nonzero losses are shown to the user."""

    events_seen: Count = Field(default=0, description="page allocations and frees")
    events_filtered: Count = Field(
        default=0, description="user memory (movable), set aside before anything is recorded"
    )
    events_sampled_out: Count = Field(default=0, description="left out to keep the trace's CPU budget")
    lost_stacks: Count = Field(default=0, description="blocks whose stack could not be stored")
    lost_records: Count = Field(default=0, description="blocks that found a table full")
    lost_record_bytes: ByteCount = 0
    large_sampled_out: Count = Field(
        default=0, description="of those, blocks of more than one page; left out only far above the budget"
    )
    unnamed_blocks: Count = Field(
        default=0, description="blocks recorded with their stack but without their process: no class was left for it"
    )
    lost_cgroups: Count = Field(
        default=0, description="times that a memory cgroup's name found a table full: its processes name no container"
    )
    missed_runs: Count = Field(default=0, description="program runs that the kernel skipped (recursion)")
    untraced_bytes: SignedByteCount = Field(
        default=0, description="growth of allocpage in the window that no traced event explains"
    )
    movable_outstanding_bytes: SignedByteCount = Field(
        default=0, description="net bytes that the movable filter set aside in the window"
    )
    set_aside_bytes: dict[str, ByteCount] = Field(
        default_factory=dict,
        max_length=limits.MAX_SET_ASIDE,
        description="outstanding, but no allocpage: Slab, PageTables, UserMemory, ...",
    )
    program_seconds: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="CPU time that the traced programs took"
    )
    sampled_share: Share = 1
    table_bytes: ByteCount = Field(default=0, description="memory of the trace's own tables")


class ContainerShare(Record):
    """What of a sum belongs to one container."""

    container_id: ShortText = Field(description="the container's id, from its cgroup")
    pod_uid: ShortText = Field(default="", description="its pod's uid, from its cgroup")
    size_bytes: ByteCount = Field(description="bytes of it")


class Trace(Record):
    """The page-allocation trace, apart from its stacks."""

    outstanding_bytes: ByteCount = Field(description="allocpage allocated in the window and not freed")
    outstanding_blocks: Count = Field(description="blocks of it")
    slice_seconds: float = Field(ge=0, allow_inf_nan=False, description="length of one slice of a stack's births")
    charges: Annotated[list[ContainerShare], Field(max_length=limits.MAX_CHARGES)] = Field(
        default_factory=list,
        description="outstanding blocks that the kernel charges to a container; the rest is charged to nobody known",
    )
    counters: TraceCounters


class HolderKind(StrEnum):
    """What pins blocks."""

    SOCKET = "Socket"
    PIPE = "Pipe"
    PAGE_POOL = "PagePool"
    PACKET_RING = "PacketRing"
    RING_BUFFER = "RingBuffer"


class Queue(Record):
    """One queue of a socket, walked to its end."""

    name: Literal["receive", "reader", "outOfOrder", "backlog", "write", "retransmit", "error"] = Field(
        description="which of the socket's queues"
    )
    packets: Count = Field(description="in it")
    unread_bytes: ByteCount = Field(description="bytes of payload in it")
    charge_bytes: ByteCount = Field(description="truesize of its packets, as the kernel accounts them")
    pinned_bytes: ByteCount = Field(description="blocks that its fragments keep, each counted once")
    head_bytes: ByteCount = Field(
        default=0, description="linear heads: slab memory, shared, never part of pinned_bytes"
    )
    user_bytes: ByteCount = Field(
        default=0, description="pages of processes or of the page cache that it refers to: no allocpage"
    )
    complete: bool = Field(
        default=True, description="false when the queue changed under the walk every time, or could not be read"
    )
    missing: ShortText = Field(default="", description="what an incomplete walk lacks")


class Socket(Record):
    """What a holder of kind Socket is."""

    family: ShortText = Field(description="IPv4, IPv6, UNIX, ...")
    protocol: ShortText = Field(description="TCP, UDP, ...")
    state: ShortText = Field(default="", description="of a connection")
    inode: Count = Field(default=0, description="as in /proc/PID/fd")
    network_namespace: Count = Field(default=0, description="its inode number, as in /proc/PID/ns/net")
    local_address: ShortText = Field(default="", description="this end")
    remote_address: ShortText = Field(default="", description="the other end")
    backlog: Count | None = Field(default=None, description="connections that a listener has not accepted")
    queues: Annotated[list[Queue], Field(max_length=limits.MAX_QUEUES)] = Field(
        default_factory=list, description="each walked to its end"
    )


class Holder(Record):
    """Something that keeps blocks from being freed, and whose it is."""

    kind: HolderKind
    description: Sentence = Field(default="", description="one line for people")
    owners: Annotated[list[Owner], Field(max_length=limits.MAX_OWNERS)] = Field(
        default_factory=list, description="empty when no process holds it"
    )
    owners_total: Count = Field(default=0, description="processes that hold it, also those beyond the listed")
    summed: Count = Field(
        default=1, description="holders that this one sums up: a process's sockets beyond the largest of the node"
    )
    unowned_reason: ShortText = Field(
        default="", description="why no process holds it: not yet accepted, orphaned, in flight, kernel"
    )
    unread_bytes: ByteCount = 0
    unread_packets: Count = Field(default=0, description="packets that nobody has read yet")
    charge_bytes: ByteCount = 0
    pinned_bytes: ByteCount = Field(
        description="bytes of the blocks that would be freed if it let go, each block counted once"
    )
    pinned_blocks: Count = Field(default=0, description="blocks of pinned_bytes")
    stuck_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="unread for at least this long with nothing read; null when it moved or is empty",
    )
    socket: Socket | None = None
    filled_by: Annotated[list[FilledBy], Field(max_length=limits.MAX_JOINED)] = Field(
        default_factory=list, description="largest share first"
    )


class ScanCoverage(Record):
    """What the scan of the holders saw and what it could not see."""

    sockets: Count = Field(default=0, description="sockets that were looked at")
    queues: Count = Field(default=0, description="queues that were not empty")
    packets: Count = Field(default=0, description="packets in them")
    incomplete_queues: Count = Field(default=0, description="queues that could not be walked to their end")
    is_compared: bool = Field(
        default=True, description="false: there was no earlier look to compare with, so no socket was found stuck"
    )
    lists_every_fd: bool = Field(
        default=True, description="false: time or room did not suffice to list every fd and every socket without one"
    )
    sockets_not_reached: Count = Field(default=0, description="sockets that the scan's time did not reach")
    queues_not_reached: Count = Field(default=0, description="queues that the scan's time did not reach")
    blocks_not_kept: Count = Field(default=0, description="blocks of sockets beyond those that a scan may keep")
    sees_linear_heads: bool = Field(
        default=True, description="false: packets' linear heads that are pages of their own count as slab heads"
    )
    socket_tables_complete: bool = Field(
        default=True, description="false: a part of the kernel's tables of sockets changed or was not reached"
    )
    processes_unreadable: Count = Field(default=0, description="processes that refused even to be looked at")
    scan_seconds: float = Field(default=0, ge=0, allow_inf_nan=False, description="time that the scan took")
    pinned_bytes: ByteCount = Field(default=0, description="by all sockets, each block of the node counted once")
    not_seen: Annotated[list[ShortText], Field(max_length=limits.MAX_NOT_SEEN)] = Field(
        default_factory=list, description="kinds of sockets that this kernel does not let us see"
    )


class LedgerLine(Record):
    """A share of allocpage and what is known to hold it."""

    name: Name = Field(description="what holds it")
    size_bytes: ByteCount


class Ledger(Record):
    """Allocpage, split into what is known to hold it: the lines and `unexplained_bytes` add up to it exactly."""

    alloc_page_bytes: ByteCount
    lines: Annotated[list[LedgerLine], Field(max_length=limits.MAX_LEDGER_LINES)] = Field(
        description="what holders of a kind pin of it, each block once, and what was traced and is in no holder; "
        "largest first"
    )
    unexplained_bytes: SignedByteCount = Field(
        description="the rest; below zero when the lines come to more, since they are not read at the same moment"
    )
    containers: Annotated[list[ContainerShare], Field(max_length=limits.MAX_CONTAINERS)] = Field(
        default_factory=list, description="what the holders of each container pin of it, each block once; largest first"
    )


class CompoundBlocks(Record):
    """Blocks of one order that kernel code allocated as a whole."""

    order: Annotated[int, Field(ge=0, le=32)] = Field(description="each block is 2^order page frames")
    blocks: Count = Field(description="how many there are")
    size_bytes: ByteCount
    held_bytes: ByteCount | None = Field(
        default=None, description="of them, in known holders; null where the trace does not tell the frames' places"
    )


class CensusShare(Record):
    """Kernel page frames that are charged to one container."""

    container_id: ShortText = Field(description="from its memory cgroup's path; empty: cgroups of no known container")
    pod_uid: ShortText = Field(default="", description="from its memory cgroup's path")
    single_bytes: ByteCount = Field(description="frames that are no compound block: pipes, and also kernel stacks")
    compound_bytes: ByteCount = Field(description="frames of compound blocks")
    held_bytes: ByteCount | None = Field(default=None, description="of both, in known holders")


class Census(Record):
    """Page frames that no flag says to be anything else than kernel memory, where something tells them apart.

    What is in compound blocks or charged to a container is an upper bound of allocpage there: large kmalloc is compound
    as well, and kernel stacks and vmalloc are charged as well. Frames that are neither are not counted.
    """

    compound: Annotated[list[CompoundBlocks], Field(max_length=limits.MAX_CENSUS_ORDERS)] = Field(
        description="by order; none left out"
    )
    charged: Annotated[list[CensusShare], Field(max_length=limits.MAX_CENSUS_SHARES)] | None = Field(
        default=None, description="by container, largest first; null where /proc/kpagecgroup cannot be read"
    )
    scanned_share: Share = Field(default=1, description="of all page frames; below 1 when the time ran out")
    scan_seconds: float = Field(default=0, ge=0, allow_inf_nan=False, description="time that it took")


class VerdictKind(StrEnum):
    """The answer in one word. docs/verdicts.md has the rule of each."""

    PINNED_BY_UNREAD_SOCKET = "PinnedByUnreadSocket"
    GROWING_KERNEL_ALLOCATION = "GrowingKernelAllocation"
    LARGE_BUT_UNEXPLAINED = "LargeButUnexplained"
    NO_LEAK = "NoLeak"
    INCONCLUSIVE = "Inconclusive"


class Confidence(StrEnum):
    """How much the verdict's figures bear."""

    HIGH = "High"
    MEDIUM = "Medium"
    LOW = "Low"


class SuspectScope(StrEnum):
    """Whose stuck sockets a suspect is."""

    PROCESS = "Process"
    CONTAINER = "Container"
    POD = "Pod"
    NODE = "Node"


class Verdict(Record):
    """The answer, what it rests on, and what a person can do next."""

    kind: VerdictKind
    confidence: Confidence
    sentence: Sentence = Field(description="the answer in one sentence")
    reasons: Annotated[list[Sentence], Field(max_length=limits.MAX_REASONS)] = Field(
        default_factory=list, description="figures and thresholds that it rests on"
    )
    advice: Sentence = Field(default="", description="what a person can do next")
    holder: Count | None = Field(default=None, description="index of the prime suspect in `holders`")
    stack: Count | None = Field(default=None, description="index of the prime suspect in `stacks`")
    suspect_bytes: ByteCount = 0
    suspect_unread_bytes: ByteCount = Field(default=0, description="unread in all stuck sockets of the suspect")
    scope: SuspectScope | None = Field(
        default=None,
        description="whose stuck sockets the suspect's figures sum up, `holder` among them; "
        "null: the verdict is not about stuck sockets, or is of version 0.1.0, which means Process",
    )


class Evidence(Record):
    """The whole document."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="of this document")
    run_id: Name = Field(description="the run that it belongs to")
    host: Host
    window: Window
    checks: Annotated[list[Check], Field(max_length=limits.MAX_CHECKS)] = Field(description="the checks that were made")
    needs: Annotated[list[Need], Field(max_length=limits.MAX_NEEDS)] = Field(
        default_factory=list, description="what the checks need of the host, and whether it is there"
    )
    breakdown: Breakdown | None = None
    trace: Trace | None = None
    stacks: Annotated[list[Stack], Field(max_length=limits.MAX_STACKS)] = Field(
        default_factory=list, description="largest outstanding first"
    )
    coverage: ScanCoverage | None = None
    holders: Annotated[list[Holder], Field(max_length=limits.MAX_HOLDERS)] = Field(
        default_factory=list, description="largest pinned first"
    )
    ledger: Ledger | None = None
    census: Census | None = Field(default=None, description="null where /proc/kpageflags cannot be read")
    verdict: Verdict
    truncated: bool = Field(
        default=False, description="stacks or holders were left off to keep the document within its bound"
    )
    notes: Annotated[list[Sentence], Field(max_length=limits.MAX_NOTES)] = Field(
        default_factory=list, description="what the reader must know: narrower checks, losses"
    )


class RunnerError(StrEnum):
    """Why a runner could not deliver evidence."""

    KERNEL_UNSUPPORTED = "KernelUnsupported"
    INTERNAL = "RunnerFailed"


class TerminationMessage(Record):
    """The small message that survives the container log: what was sent, and the essence in case it is lost."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: Name
    length_bytes: Annotated[int, Field(ge=0, le=limits.MAX_DOCUMENT_BYTES)] = Field(
        default=0, description="of the document's JSON text in UTF-8; 0 when there is none"
    )
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""
    error: RunnerError | None = None
    error_message: Sentence = ""
    verdict: VerdictKind | None = None
    suspect: ShortText = ""
