"""The evidence document: everything that one node runner found, in the form in which it is delivered.

One document is the single source of the CLI report, of the MemoryDiagnosisReport and of the diagnosis's status.
It is delivered through a container log, so a reader must not trust any field: the writer may be hostile. Strings and
lists are bounded here, unknown fields are rejected, and no field contains a kernel address.
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from memdiag_api import limits
from memdiag_api.census.clues import Clues
from memdiag_api.census.dentries import DentryCensus
from memdiag_api.census.files import FileCensus
from memdiag_api.census.namespaces import NetworkNamespaces
from memdiag_api.census.packets import PacketCensus, PacketPlace
from memdiag_api.census.slab import SlabCaches
from memdiag_api.containers import ContainerAccount, OomKill, RemovedCgroups
from memdiag_api.findings import Confidence, Finding
from memdiag_api.history import RunSummary
from memdiag_api.machine import Machine
from memdiag_api.memory_classes import ClassName
from memdiag_api.model import Sentence, ShortText
from memdiag_api.owners import ClassOwners
from memdiag_api.record import ByteCount, Count, Name, Record, Share, SignedByteCount

SCHEMA_VERSION: Literal[1] = 1


class Check(StrEnum):
    """Check is one of the checks that a diagnosis can run."""

    BREAKDOWN = "Breakdown"
    ALLOC_PAGE_TRACE = "AllocPageTrace"
    SOCKET_QUEUES = "SocketQueues"
    KERNEL_OBJECTS = "KernelObjects"
    OWNERS = "Owners"
    CONTAINERS = "Containers"


LEAK_CHECKS = (Check.BREAKDOWN, Check.ALLOC_PAGE_TRACE, Check.SOCKET_QUEUES)
"""The checks of version 0.1.0. Without one of them, no run of any version can say that there is no leak."""
_IMPLIED = {Check.OWNERS: (Check.BREAKDOWN, Check.CONTAINERS)}
"""Owners are those of the classes of the breakdown, and the memory cgroups show which containers are charged."""


def with_implied(checks: Iterable[Check]) -> list[Check]:
    """Return the checks to run if these are requested: each once, and those whose results they use."""
    return list(dict.fromkeys(one for check in checks for one in (check, *_IMPLIED.get(check, ()))))


class NeedState(StrEnum):
    """NeedState is the state of a prerequisite: met, missing, or absent with a degraded result."""

    MET = "Met"
    DEGRADED = "Degraded"
    MISSING = "Missing"


class Need(Record):
    """Need is a prerequisite of checks on the host, and the effect of its absence."""

    name: Name = Field(description="Name of the prerequisite.")
    state: NeedState
    checks: Annotated[list[Check], Field(max_length=limits.MAX_CHECKS)] = Field(description="Checks that need it.")
    detail: Sentence = Field(default="", description="What was found.")
    remedy: Sentence = Field(default="", description="How to fix it.")


class Host(Record):
    """Host describes the measured machine, as reported by itself."""

    node_name: Name = Field(description="Name of the node, as passed to the runner.")
    kernel_release: ShortText = Field(description="Kernel release, as in `uname -r`.")
    architecture: ShortText = Field(description="Machine architecture, as in `uname -m`.")
    cpus: Count = Field(description="Number of online CPUs.")
    mem_total_bytes: ByteCount
    page_size_bytes: ByteCount
    boot_id: ShortText = Field(description="Random ID that the kernel generates at each boot.")


class Window(Record):
    """Window is the time window of the measurement."""

    start_time: datetime = Field(description="Start of the window, by the clock of the host.")
    end_time: datetime = Field(description="End of the window, by the clock of the host.")
    requested_seconds: float = Field(ge=0, allow_inf_nan=False, description="Requested duration in seconds.")
    traced_seconds: float = Field(
        ge=0, allow_inf_nan=False, description="Traced duration in seconds. 0 if nothing was traced."
    )
    interrupted: bool = Field(
        default=False,
        description="If true, a signal ended the window early. The figures cover what was traced until then.",
    )


class Owner(Record):
    """Owner is a process on the node. IDs of its container and pod come from its cgroup."""

    pid: Count = Field(description="Process ID in the PID namespace of the host.")
    comm: ShortText = Field(description="Name of the process, which the process itself can choose.")
    command_line: Sentence = Field(
        default="",
        description="Path of the executable. Arguments are included only if the operator is configured to report them.",
    )
    uid: Count = Field(default=0, description="User ID of the process.")
    container_id: ShortText = Field(default="", description="ID of the container, from the path of the cgroup.")
    pod_uid: ShortText = Field(default="", description="UID of the pod, from the path of the cgroup.")
    fds: Annotated[list[Count], Field(max_length=limits.MAX_FDS)] = Field(
        default_factory=list, description="File descriptors through which this process holds it."
    )


class MemoryClass(Record):
    """MemoryClass is one line of the breakdown."""

    name: Name = Field(description="Name that the kernel uses, such as AnonPages or SUnreclaim, or AllocPage.")
    group: Literal["Application", "Kernel", "Free"] = Field(
        description="Use of the memory: by applications, by the kernel, or free."
    )
    size_bytes: ByteCount
    change_bytes: SignedByteCount | None = Field(
        default=None, description="Change over the window. Null if the start of the window was not read."
    )


class Breakdown(Record):
    """Breakdown is the memory usage of the node by class. The classes add up to memTotalBytes."""

    mem_total_bytes: ByteCount
    classes: Annotated[list[MemoryClass], Field(max_length=limits.MAX_CLASSES)] = Field(
        description="Classes of memory by group, largest first in each group."
    )
    alloc_page_bytes: ByteCount = Field(
        description="Bytes that kernel code allocated directly from the buddy allocator."
    )
    alloc_page_error_bytes: ByteCount = Field(
        description="Estimated error of allocPageBytes: half the spread of the readings from which a typical one "
        "was chosen, plus the error of estimated terms."
    )
    alloc_page_change_bytes: SignedByteCount = Field(
        default=0, description="Change from the start of the window to its end."
    )


class Context(StrEnum):
    """Context is the kernel context of a stack's allocations. Only Process can be attributed to a process."""

    PROCESS = "Process"
    SOFTIRQ = "SoftIRQ"
    INTERRUPT = "Interrupt"
    MIXED = "Mixed"


class Trend(StrEnum):
    """Trend is derived from the allocation times of a stack's outstanding blocks."""

    GROWING = "Growing"
    PINNED = "Pinned"
    CHURN = "Churn"
    UNCLEAR = "Unclear"


class AllocationUnit(StrEnum):
    """AllocationUnit is what was traced: pages, or the objects in them."""

    PAGES = "Pages"
    OBJECTS = "Objects"


class AllocatingProcess(Record):
    """AllocatingProcess is a process that allocated through a stack, as it was at that time."""

    pid: Count = Field(description="Process ID in the PID namespace of the host.")
    comm: ShortText = Field(description="Name of the process.")
    container_id: ShortText = Field(default="", description="ID of the container, from the path of the cgroup.")
    pod_uid: ShortText = Field(default="", description="UID of the pod, from the path of the cgroup.")
    outstanding_bytes: ByteCount


class HeldBy(Record):
    """HeldBy is the part of a stack's outstanding blocks that was found in one holder."""

    holder: Count = Field(description="Index in holders.")
    size_bytes: ByteCount
    share: Share = Field(description="Share of the outstanding bytes of the stack.")


class FilledBy(Record):
    """FilledBy is the part of a holder's pinned blocks that was allocated through one traced stack."""

    stack: Count = Field(description="Index in stacks.")
    size_bytes: ByteCount
    share: Share = Field(description="Share of the pinned bytes of the holder.")


class Stack(Record):
    """Stack describes allocations of one kernel call stack that were not freed while the trace ran."""

    frames: Annotated[list[ShortText], Field(max_length=limits.MAX_FRAMES)] = Field(
        description="Functions of the stack, innermost first, as symbol+offset, with [module] if it is in a module."
    )
    context: Context
    memory_class: Name = Field(
        default=ClassName.ALLOC_PAGE.value,
        description="Class of the memory: AllocPage, Slab, Vmalloc, Percpu, KernelStack, PageTables, Zsmalloc or "
        "Balloon. Slab is SUnreclaim or SReclaimable of the breakdown: reclaimable says which.",
    )
    unit: AllocationUnit = Field(
        default=AllocationUnit.PAGES,
        description="What was allocated. Pages: blocks of the page allocator. Objects: slab objects, vmalloc areas or "
        "per-CPU allocations. The memory of a class in objectClasses of the trace is in stacks of both units.",
    )
    slab_cache: ShortText = Field(
        default="",
        description="Slab cache of the objects or pages if memoryClass is Slab. Empty for kmalloc blocks too large for "
        "a cache, and if it is not known.",
    )
    reclaimable: bool = Field(
        default=False,
        description="If true, the kernel frees this memory when it is needed: its slab cache is reclaimable.",
    )
    outstanding_bytes: ByteCount
    outstanding_blocks: Count = Field(
        description="Number of blocks, or of objects if unit is Objects, allocated in the window and not freed."
    )
    outstanding_by_order: dict[str, Count] = Field(
        default_factory=dict,
        max_length=limits.MAX_ORDERS,
        description="Number of outstanding blocks by order (0, 1, 2, ...). Empty if unit is Objects.",
    )
    births_bytes: Annotated[list[ByteCount], Field(max_length=limits.MAX_SLICES)] = Field(
        default_factory=list,
        description="Outstanding bytes by time of allocation. The window is divided into equal slices.",
    )
    allocated_bytes: ByteCount = Field(default=0, description="Bytes that this stack allocated in the window.")
    freed_bytes: ByteCount = 0
    growth_bytes_per_second: float = Field(
        default=0, allow_inf_nan=False, description="Growth rate of the outstanding bytes."
    )
    growth_error_bytes_per_second: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Standard error of the growth rate, with that of the sampling.",
    )
    median_life_seconds: float | None = Field(
        default=None, description="Median lifetime of the freed blocks. Null if none were freed.", allow_inf_nan=False
    )
    trend: Trend = Trend.UNCLEAR
    sampled_share: Share = Field(
        default=1,
        description="Share of this stack's allocations that were recorded. The figures are scaled accordingly. Of slab "
        "objects, at most one in 16 is recorded, large ones more often.",
    )
    error_bytes: ByteCount = Field(
        default=0, description="Standard error of outstandingBytes, which are scaled if not all were recorded."
    )
    processes: Annotated[list[AllocatingProcess], Field(max_length=limits.MAX_PROCESSES)] = Field(
        default_factory=list, description="Processes that allocated, largest outstanding bytes first."
    )
    held_by: Annotated[list[HeldBy], Field(max_length=limits.MAX_JOINED)] = Field(
        default_factory=list, description="Holders that contain outstanding blocks, largest share first."
    )
    explained_bytes: ByteCount = Field(default=0, description="Outstanding bytes that were found in any holder.")


class TraceCounters(Record):
    """TraceCounters counts what the trace saw and what it missed. Nonzero losses are shown to the user."""

    events_seen: Count = Field(default=0, description="Number of page allocations.")
    events_filtered: Count = Field(
        default=0, description="Allocations of user memory (movable), filtered before anything is recorded."
    )
    events_sampled_out: Count = Field(
        default=0, description="Allocations that were not recorded, to stay within the CPU budget."
    )
    lost_stacks: Count = Field(default=0, description="Number of blocks whose stack could not be stored.")
    lost_records: Count = Field(
        default=0, description="Number of blocks that were not recorded because a table was full."
    )
    lost_record_bytes: ByteCount = 0
    large_sampled_out: Count = Field(
        default=0,
        description="Of eventsSampledOut, blocks of more than one page, which are skipped only far above the budget.",
    )
    unnamed_blocks: Count = Field(
        default=0,
        description="Blocks recorded with their stack but without their process, because no class was left for it.",
    )
    lost_cgroups: Count = Field(
        default=0,
        description="Number of times that a memory cgroup could not be stored because a table was full. "
        "The container of its processes is not known.",
    )
    missed_runs: Count = Field(default=0, description="Number of program runs that the kernel skipped (recursion).")
    untraced_bytes: SignedByteCount = Field(
        default=0,
        description="Pages that the allocator allocated in the window by its own counters, and that no traced event "
        "explains, freed or not.",
    )
    movable_outstanding_bytes: SignedByteCount = Field(
        default=0, description="Net bytes that the movable filter excluded in the window."
    )
    set_aside_bytes: dict[str, ByteCount] = Field(
        default_factory=dict,
        max_length=limits.MAX_SET_ASIDE,
        description="Outstanding bytes that do not count as allocpage, by use: Slab, PageTables, UserMemory, ...",
    )
    program_seconds: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="CPU time used by the programs of the page trace, in seconds."
    )
    sampled_share: Share = 1
    table_bytes: ByteCount = Field(default=0, description="Memory used by the tables of the trace.")
    recorded_objects: Count = Field(
        default=0, description="Number of slab objects, vmalloc areas and per-CPU allocations that were recorded."
    )
    lost_objects: Count = Field(
        default=0, description="Number of objects that were not recorded because a table was full."
    )
    missed_object_runs: Count = Field(
        default=0,
        description="Number of runs of the programs for objects that the kernel skipped (recursion). At least one in "
        "16 would have recorded an object, or its free.",
    )
    unresolved_objects: Count = Field(
        default=0,
        description="Recorded slab objects, not seen to be freed, that are in no slab that could be read at the end of "
        "the window. They are in no stack.",
    )
    unseen_frees: Count = Field(
        default=0,
        description="Recorded slab objects that were free at the end of the window although no trace point showed it: "
        "they were freed in bulk, or with their slab. They are in no stack.",
    )
    object_program_seconds: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="CPU time used by the programs of the object trace, in seconds.",
    )


class ContainerShare(Record):
    """ContainerShare is the part of a sum that belongs to one container."""

    container_id: ShortText = Field(description="ID of the container, from its cgroup.")
    pod_uid: ShortText = Field(default="", description="UID of the pod, from its cgroup.")
    size_bytes: ByteCount = Field(description="Bytes that belong to the container.")


class Trace(Record):
    """Trace is the summary of the traces of page allocations and of objects. Their stacks are in stacks."""

    outstanding_bytes: ByteCount = Field(description="Bytes of allocpage allocated in the window and not freed.")
    outstanding_blocks: Count = Field(description="Number of blocks of outstandingBytes.")
    slice_seconds: float = Field(
        ge=0, allow_inf_nan=False, description="Length in seconds of one slice of birthsBytes."
    )
    charges: Annotated[list[ContainerShare], Field(max_length=limits.MAX_CHARGES)] = Field(
        default_factory=list,
        description="Outstanding bytes that the kernel charges to each container. "
        "The rest is charged to no known container.",
    )
    object_classes: Annotated[list[Name], Field(max_length=limits.MAX_OBJECT_CLASSES)] = Field(
        default_factory=list,
        description="Classes of which objects were traced: of Slab, Vmalloc and Percpu. Their stacks of unit Objects "
        "are judged, and those of unit Pages are the same memory.",
    )
    counters: TraceCounters


class HolderKind(StrEnum):
    """HolderKind is the kind of an object that keeps kernel memory."""

    SOCKET = "Socket"
    PIPE = "Pipe"
    PAGE_POOL = "PagePool"
    PACKET_RING = "PacketRing"
    RING_BUFFER = "RingBuffer"
    TUN_QUEUE = "TunQueue"
    PACKET_QUEUE = "PacketQueue"
    IO_URING = "IoUring"
    FTRACE_BUFFER = "FtraceBuffer"
    BPF_MAP = "BpfMap"
    BPF_PROGRAM = "BpfProgram"
    XDP_SOCKET = "XdpSocket"
    EVENT_QUEUE = "EventQueue"
    DRM_BUFFER = "DrmBuffer"


class Queue(Record):
    """Queue describes one queue of a socket."""

    name: Literal["receive", "reader", "outOfOrder", "backlog", "write", "retransmit", "error"] = Field(
        description="Name of the queue."
    )
    packets: Count = Field(description="Number of packets in the queue.")
    unread_bytes: ByteCount = Field(description="Bytes of payload in the queue.")
    charge_bytes: ByteCount = Field(description="Sum of the truesize of its packets, as the kernel accounts them.")
    pinned_bytes: ByteCount = Field(
        description="Bytes of the blocks that its fragments pin. Each block is counted once."
    )
    head_bytes: ByteCount = Field(
        default=0, description="Bytes of linear heads: shared slab memory, not part of pinnedBytes."
    )
    user_bytes: ByteCount = Field(
        default=0,
        description="Bytes of referenced pages of processes or of the page cache. They do not count as allocpage.",
    )
    complete: bool = Field(
        default=True, description="False if the queue changed during every attempt to walk it, or could not be read."
    )
    missing: ShortText = Field(default="", description="What is missing from an incomplete walk.")


class Socket(Record):
    """Socket describes a holder of kind Socket."""

    family: ShortText = Field(description="Address family: IPv4, IPv6, UNIX, ...")
    protocol: ShortText = Field(description="Protocol: TCP, UDP, ...")
    state: ShortText = Field(default="", description="State of the connection.")
    inode: Count = Field(default=0, description="Inode number, as in /proc/PID/fd.")
    network_namespace: Count = Field(
        default=0, description="Inode number of the network namespace, as in /proc/PID/ns/net."
    )
    local_address: ShortText = Field(default="", description="Local address of the connection.")
    remote_address: ShortText = Field(default="", description="Remote address of the connection.")
    backlog: Count | None = Field(
        default=None, description="Number of connections of a listener that are not accepted."
    )
    queues: Annotated[list[Queue], Field(max_length=limits.MAX_QUEUES)] = Field(
        default_factory=list, description="Queues of the socket. Each was walked to its end, unless complete is false."
    )
    read_bytes_per_second: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Bytes that its process read per second in the window. Null if nothing was unread at its start or "
        "its end, or if reads are not counted.",
    )
    arrived_bytes_per_second: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Bytes that arrived per second in the window. Null if readBytesPerSecond is.",
    )
    acked_bytes_per_second: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Bytes that the peer of a TCP connection acknowledged per second in the window. Null if nothing "
        "waited to be sent or acknowledged at its start or its end.",
    )
    send_stalled_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Minimum time in seconds for which data waited to be sent or acknowledged and the peer "
        "acknowledged nothing. Null if it did, or if nothing waited.",
    )
    peer_window_closed: bool | None = Field(
        default=None,
        description="If true, the peer of a TCP connection accepts nothing more: it has not read what it received. "
        "Null if nothing waits to be sent.",
    )


class Pace(StrEnum):
    """Pace is how fast a socket's backlog is read or sent.

    Stuck: nothing of it was. Slow: it would take longer than the slow drain time. Steady: all others.
    """

    STUCK = "Stuck"
    SLOW = "Slow"
    STEADY = "Steady"


class Peer(Record):
    """Peer is the remote end of connections with unsent data."""

    address: ShortText = Field(description="Address and port, or only the address if the ports differ.")
    connections: Count = Field(description="Number of connections with it.")
    size_bytes: ByteCount = Field(description="Bytes that the queues of data to be sent to it keep.")


class SummedSockets(Record):
    """SummedSockets is what the sockets of one entry have in common, and their sums."""

    reading: Pace = Field(description="How fast the data that each of them received is read.")
    sending: Pace = Field(description="How fast the data that each of them has to send is sent.")
    read_bytes_per_second: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Sum of those of the sockets. Null if none is known."
    )
    arrived_bytes_per_second: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Sum of those of the sockets. Null if none is known."
    )
    acked_bytes_per_second: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Sum of those of the sockets. Null if none is known."
    )
    send_stalled_seconds: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Minimum for all of them. Null if sending is not Stuck."
    )
    unsent_bytes: ByteCount = Field(default=0, description="Payload that waits to be sent or acknowledged.")
    unsent_kept_bytes: ByteCount = Field(
        default=0, description="Bytes that this payload keeps: pinned blocks and linear heads of its packets."
    )
    peers: Annotated[list[Peer], Field(max_length=limits.MAX_PEERS)] = Field(
        default_factory=list,
        description="Peers with the most unsent data, if sending is Stuck or Slow. Largest first.",
    )


class Holder(Record):
    """Holder is an object that keeps kernel memory from being freed, and its owners."""

    kind: HolderKind
    memory_class: Name = Field(
        default=ClassName.ALLOC_PAGE.value,
        description="Class of the breakdown that pinnedBytes belong to, or Unknown. Only AllocPage counts in the "
        "ledger.",
    )
    description: Sentence = Field(default="", description="Description in one line, in readable form.")
    owners: Annotated[list[Owner], Field(max_length=limits.MAX_OWNERS)] = Field(
        default_factory=list, description="Processes that hold it. Empty if no process does."
    )
    owners_total: Count = Field(
        default=0, description="Number of processes that hold it, including those that are not listed."
    )
    summed: Count = Field(
        default=1,
        description="Number of holders that this entry sums up. More than 1 for the sockets of a process that are "
        "not among the largest of the node.",
    )
    unowned_reason: ShortText = Field(
        default="", description="Reason why no process holds it: not yet accepted, orphaned, in flight, kernel."
    )
    unread_bytes: ByteCount = 0
    unread_packets: Count = Field(default=0, description="Number of packets that have not been read.")
    charge_bytes: ByteCount = 0
    pinned_bytes: ByteCount = Field(
        description="Bytes that would be freed if the holder released them: blocks of pages, each counted once, or "
        "memory of another memoryClass."
    )
    pinned_blocks: Count = Field(default=0, description="Number of blocks of pinnedBytes.")
    head_bytes: ByteCount = Field(
        default=0,
        description="Bytes of linear heads of its packets: slab memory that it keeps in addition to pinnedBytes. Not "
        "part of allocpage.",
    )
    stuck_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Minimum time in seconds for which data was unread and nothing was read. "
        "Null if data was read or the holder is empty.",
    )
    packet_place: PacketPlace | None = Field(
        default=None, description="Where the packets of a PacketQueue are. Null for other kinds."
    )
    unread_age_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Minimum age in seconds of its oldest unread data: at least the window if some of it was unread "
        "at the start; of a TCP connection, at least the time since it received data. "
        "Of a sum that of each socket. Null if it is not known.",
    )
    kept_throughout_bytes: ByteCount | None = Field(
        default=None,
        description="The smaller of what it kept at the start and at the end of the window: pinned blocks and linear "
        "heads. Null if there was no scan at the start.",
    )
    socket: Socket | None = None
    summed_sockets: SummedSockets | None = Field(
        default=None, description="Sums, if this entry sums up sockets. Null otherwise."
    )
    filled_by: Annotated[list[FilledBy], Field(max_length=limits.MAX_JOINED)] = Field(
        default_factory=list, description="Stacks that allocated its blocks, largest share first."
    )


class ScanCoverage(Record):
    """ScanCoverage counts what the scan of the holders saw and what it could not see."""

    sockets: Count = Field(default=0, description="Number of scanned sockets.")
    queues: Count = Field(default=0, description="Number of queues that were not empty.")
    packets: Count = Field(default=0, description="Number of packets in these queues.")
    incomplete_queues: Count = Field(default=0, description="Number of queues that could not be walked to their end.")
    is_compared: bool = Field(
        default=True,
        description="False if there was no earlier scan to compare with, so that no socket was found stuck.",
    )
    lists_every_fd: bool = Field(
        default=True,
        description="False if time or space did not suffice to list every file descriptor and every socket "
        "without one.",
    )
    sockets_not_reached: Count = Field(default=0, description="Number of sockets that were not scanned in time.")
    queues_not_reached: Count = Field(default=0, description="Number of queues that were not scanned in time.")
    blocks_not_kept: Count = Field(default=0, description="Number of blocks of sockets beyond the limit of one scan.")
    sees_linear_heads: bool = Field(
        default=True, description="False if linear heads of packets that are whole pages are counted as slab."
    )
    socket_tables_complete: bool = Field(
        default=True, description="False if a part of the kernel's socket tables changed or was not reached."
    )
    processes_unreadable: Count = Field(default=0, description="Number of processes that could not be read.")
    scan_seconds: float = Field(default=0, ge=0, allow_inf_nan=False, description="Duration of the scan in seconds.")
    pinned_bytes: ByteCount = Field(
        default=0, description="Bytes pinned by all sockets. Each block of the node is counted once."
    )
    not_seen: Annotated[list[ShortText], Field(max_length=limits.MAX_NOT_SEEN)] = Field(
        default_factory=list, description="Holders that could not be seen, and why."
    )


class LedgerLine(Record):
    """LedgerLine is a part of allocpage and what is known to hold it."""

    name: Name = Field(description="Kind of the holders, or TracedWithoutHolder.")
    size_bytes: ByteCount


class Ledger(Record):
    """Ledger splits allocpage by what is known to hold it. lines and unexplainedBytes add up to it exactly."""

    alloc_page_bytes: ByteCount
    lines: Annotated[list[LedgerLine], Field(max_length=limits.MAX_LEDGER_LINES)] = Field(
        description="Bytes of allocpage pinned by each kind of holder, with each block counted once, and bytes that "
        "were traced but are in no holder. Largest first."
    )
    unexplained_bytes: SignedByteCount = Field(
        description="The rest. Negative if the lines add up to more than allocpage, which is possible because they are "
        "not read at the same moment."
    )
    containers: Annotated[list[ContainerShare], Field(max_length=limits.MAX_CONTAINERS)] = Field(
        default_factory=list,
        description="Bytes of allocpage pinned by the holders of each container, with each block counted once. "
        "Largest first.",
    )


class CompoundBlocks(Record):
    """CompoundBlocks counts blocks of one order that kernel code allocated as a whole."""

    order: Annotated[int, Field(ge=0, le=32)] = Field(
        description="Order of the blocks. A block has 2^order page frames."
    )
    blocks: Count = Field(description="Number of blocks.")
    size_bytes: ByteCount
    held_bytes: ByteCount | None = Field(
        default=None,
        description="Bytes of these blocks in known holders. Null if the trace does not provide the positions of "
        "the frames.",
    )


class CensusShare(Record):
    """CensusShare counts kernel page frames that are charged to one container."""

    container_id: ShortText = Field(
        description="ID of the container, from the path of its memory cgroup. Empty for cgroups of no known container."
    )
    pod_uid: ShortText = Field(default="", description="UID of the pod, from the path of its memory cgroup.")
    single_bytes: ByteCount = Field(
        description="Bytes of frames that are not part of a compound block: pipes, but also kernel stacks."
    )
    compound_bytes: ByteCount = Field(description="Bytes of frames of compound blocks.")
    held_bytes: ByteCount | None = Field(default=None, description="Bytes of both in known holders.")


class Census(Record):
    """Census counts page frames that have no flag of another use than kernel memory, by block order and by charge.

    Compound blocks and charged frames are an upper bound of allocpage there: large kmalloc blocks are compound as
    well, and kernel stacks and vmalloc are charged as well. Frames that are neither compound nor charged are not
    counted.
    """

    compound: Annotated[list[CompoundBlocks], Field(max_length=limits.MAX_CENSUS_ORDERS)] = Field(
        description="Compound blocks of every order, by order."
    )
    charged: Annotated[list[CensusShare], Field(max_length=limits.MAX_CENSUS_SHARES)] | None = Field(
        default=None,
        description="Charged frames by container, largest first. Null if /proc/kpagecgroup cannot be read.",
    )
    scanned_share: Share = Field(
        default=1, description="Share of all page frames that were scanned. Less than 1 if the time ran out."
    )
    scan_seconds: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="Duration of the scan of page frames in seconds."
    )
    object_seconds: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="Duration of the census of kernel objects in seconds."
    )
    slab: SlabCaches | None = Field(
        default=None, description="Slab memory by cache. Null if this kernel's slabs cannot be read."
    )
    clues: Clues | None = Field(
        default=None, description="Clues to what untyped objects are. Null if this kernel's slabs cannot be read."
    )
    files: FileCensus | None = Field(default=None, description="Page cache and shmem by file. Null if not read.")
    dentries: DentryCensus | None = Field(default=None, description="The directory cache. Null if not read.")
    namespaces: NetworkNamespaces | None = Field(
        default=None, description="Network namespaces. Null if this kernel or the runner does not show them."
    )
    packets: PacketCensus | None = Field(default=None, description="Network packets. Null if they were not read.")


class VerdictKind(StrEnum):
    """VerdictKind is the answer in one word. docs/verdicts.md describes the rule for each of them."""

    PINNED_BY_UNREAD_SOCKET = "PinnedByUnreadSocket"
    GROWING_KERNEL_ALLOCATION = "GrowingKernelAllocation"
    LEAKED_MEMORY = "LeakedMemory"
    LARGE_BUT_UNEXPLAINED = "LargeButUnexplained"
    SUSPICIOUS_MEMORY = "SuspiciousMemory"
    NO_LEAK = "NoLeak"
    INCONCLUSIVE = "Inconclusive"


class SuspectScope(StrEnum):
    """SuspectScope is the scope of a suspect: the owner of its stuck sockets."""

    PROCESS = "Process"
    CONTAINER = "Container"
    POD = "Pod"
    NODE = "Node"


class LeakDetected(StrEnum):
    """LeakDetected says whether a leak was found. False needs proof: docs/verdicts.md has the conditions."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Verdict(Record):
    """Verdict is the answer, its reasons and the recommended next step."""

    kind: VerdictKind
    confidence: Confidence
    sentence: Sentence = Field(description="The answer in one sentence.")
    reasons: Annotated[list[Sentence], Field(max_length=limits.MAX_REASONS)] = Field(
        default_factory=list, description="Figures and thresholds that the verdict is based on."
    )
    advice: Sentence = Field(default="", description="Recommended next step.")
    holder: Count | None = Field(default=None, description="Index of the prime suspect in holders.")
    stack: Count | None = Field(default=None, description="Index of the prime suspect in stacks.")
    suspect_bytes: ByteCount = 0
    suspect_unread_bytes: ByteCount = Field(default=0, description="Unread bytes in all stuck sockets of the suspect.")
    scope: SuspectScope | None = Field(
        default=None,
        description="Scope of the suspect's figures: they sum up the stuck sockets of this process, container, pod or "
        "node, including holder. Null if the verdict is not about stuck sockets, or is of version 0.1.0, where it "
        "means Process.",
    )


class Evidence(Record):
    """Evidence is the whole document."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="Version of the schema of this document.")
    run_id: Name = Field(description="ID of the run that it belongs to.")
    host: Host
    window: Window
    checks: Annotated[list[Check], Field(max_length=limits.MAX_CHECKS)] = Field(description="Checks that were run.")
    needs: Annotated[list[Need], Field(max_length=limits.MAX_NEEDS)] = Field(
        default_factory=list, description="Prerequisites of the checks on the host, and whether they are met."
    )
    breakdown: Breakdown | None = None
    trace: Trace | None = None
    stacks: Annotated[list[Stack], Field(max_length=limits.MAX_STACKS)] = Field(
        default_factory=list, description="Call stacks, largest outstanding bytes first."
    )
    coverage: ScanCoverage | None = None
    holders: Annotated[list[Holder], Field(max_length=limits.MAX_HOLDERS)] = Field(
        default_factory=list, description="Holders, largest pinned bytes first."
    )
    ledger: Ledger | None = None
    census: Census | None = Field(
        default=None, description="Census of page frames. Null if /proc/kpageflags cannot be read."
    )
    containers: Annotated[list[ContainerAccount], Field(max_length=limits.MAX_CONTAINER_ACCOUNTS)] = Field(
        default_factory=list,
        description="What is charged to each container and pod, largest usage first. Containers are part of their pod.",
    )
    removed_cgroups: RemovedCgroups | None = Field(
        default=None, description="Memory cgroups that were removed but not freed. Null if they cannot be read."
    )
    oom_kills: Annotated[list[OomKill], Field(max_length=limits.MAX_OOM_KILLS)] = Field(
        default_factory=list,
        description="Processes that the kernel killed for lack of memory in the last day, as far as the kernel log "
        "still shows them, latest first.",
    )
    machine: Machine | None = Field(default=None, description="Memory of the machine itself. Null if it was not read.")
    owners: Annotated[list[ClassOwners], Field(max_length=limits.MAX_CLASSES)] = Field(
        default_factory=list, description="Who has the memory of each class of the breakdown, largest class first."
    )
    findings: Annotated[list[Finding], Field(max_length=limits.MAX_FINDINGS)] = Field(
        default_factory=list, description="The findings, most important first. Empty in documents of version 0.1.0."
    )
    explained_bytes: ByteCount = Field(
        default=0, description="Memory of the node that is free or that a finding or a known owner explains."
    )
    summary: RunSummary | None = Field(
        default=None, description="What later runs compare with. Null if the sizes of the classes are not known."
    )
    history: Annotated[list[RunSummary], Field(max_length=limits.MAX_HISTORY_RUNS)] = Field(
        default_factory=list,
        description="Earlier runs of the same node and boot that this run was compared with, latest first.",
    )
    leak_detected: LeakDetected | None = Field(
        default=None, description="Whether a leak was found. Null in documents of version 0.1.0."
    )
    verdict: Verdict
    truncated: bool = Field(
        default=False, description="True if stacks or holders were left out to keep the document within its size limit."
    )
    notes: Annotated[list[Sentence], Field(max_length=limits.MAX_NOTES)] = Field(
        default_factory=list, description="Notes for the reader, such as narrower checks and losses."
    )


class RunnerError(StrEnum):
    """RunnerError is the reason why a runner could not deliver evidence."""

    KERNEL_UNSUPPORTED = "KernelUnsupported"
    INTERNAL = "RunnerFailed"


class TerminationMessage(Record):
    """TerminationMessage is the runner's termination message, which survives the loss of its log.

    It identifies the document that was written, and contains the essence in case the document is lost.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: Name
    length_bytes: Annotated[int, Field(ge=0, le=limits.MAX_DOCUMENT_BYTES)] = Field(
        default=0, description="Length of the document's JSON text in UTF-8. 0 if there is none."
    )
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""
    error: RunnerError | None = None
    error_message: Sentence = ""
    verdict: VerdictKind | None = None
    suspect: ShortText = ""
