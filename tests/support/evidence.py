"""Evidence documents for tests, of any size."""

from datetime import UTC, datetime

from memdiag_api.evidence import (
    Breakdown,
    Check,
    Context,
    Evidence,
    FilledBy,
    HeldBy,
    Holder,
    HolderKind,
    Host,
    LeakDetected,
    MemoryClass,
    Owner,
    Queue,
    ScanCoverage,
    Socket,
    Stack,
    Trace,
    TraceCounters,
    Trend,
    Verdict,
    VerdictKind,
    Window,
)
from memdiag_api.findings import (
    Confidence,
    Finding,
    FindingEvidence,
    FindingKind,
    FindingTrend,
    FreedBy,
    LeakAnswer,
)
from memdiag_api.owners import MemoryOwner, OwnerKind

MIB = 1 << 20
GIB = 1024 * MIB


def evidence_with(
    *, holders: int = 1, stacks: int = 1, findings: int = 0, comm: str = "nginx", run_id: str = "run-1"
) -> Evidence:
    """A leak with the given number of holders and stacks, largest first; each stack has the maximum of holders.

    `findings`: 0 makes a document as version 0.1.0 wrote it, more one with that many ranked findings.
    """
    start = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Evidence(
        run_id=run_id,
        host=Host(
            node_name="node1",
            kernel_release="6.18.0",
            architecture="x86_64",
            cpus=2,
            mem_total_bytes=24 * GIB,
            page_size_bytes=4096,
            boot_id="4f7c6a0e-0000-4000-8000-000000000000",
        ),
        window=Window(start_time=start, end_time=start, requested_seconds=60, traced_seconds=60.1),
        checks=list(Check),
        breakdown=Breakdown(
            mem_total_bytes=24 * GIB,
            classes=[
                MemoryClass(name="AnonPages", group="Application", size_bytes=2 * GIB),
                MemoryClass(name="AllocPage", group="Kernel", size_bytes=6 * GIB),
                MemoryClass(name="MemFree", group="Free", size_bytes=16 * GIB),
            ],
            alloc_page_bytes=6 * GIB,
            alloc_page_error_bytes=MIB,
            alloc_page_change_bytes=300 * MIB,
        ),
        trace=Trace(outstanding_bytes=310 * MIB, outstanding_blocks=9920, slice_seconds=3.75, counters=TraceCounters()),
        stacks=[_stack(index, holders) for index in range(stacks)],
        coverage=ScanCoverage(sockets=500, queues=90, packets=31_600, scan_seconds=0.04, pinned_bytes=6 * GIB),
        holders=[_holder(index, stacks, comm) for index in range(holders)],
        verdict=Verdict(
            kind=VerdictKind.PINNED_BY_UNREAD_SOCKET,
            confidence=Confidence.HIGH,
            sentence=f"{comm[:16]}[4711] fd 11: 2.90 MiB unread for at least 60 s pins 5.80 GiB.",
            advice="Find out why it does not read, and restart or fix it.",
            holder=0 if holders else None,
            stack=0 if stacks else None,
            suspect_bytes=5 * GIB,
        ),
        findings=list(ranked_findings(comm)[:findings]),
        explained_bytes=23 * GIB if findings else 0,
        leak_detected=LeakDetected.TRUE if findings else None,
    )


def answered(evidence: Evidence, kind: VerdictKind, leak: LeakDetected, *findings: Finding) -> Evidence:
    """`evidence` with another answer and its findings."""
    changes = {"kind": kind, "sentence": f"The answer is {kind}.", "holder": None, "stack": None, "suspect_bytes": 0}
    verdict = evidence.verdict.model_copy(update=changes)
    return evidence.model_copy(update={"verdict": verdict, "leak_detected": leak, "findings": list(findings)})


def clean(evidence: Evidence) -> Evidence:
    """`evidence` without a leak, as the runner writes it: an ordinary use of memory is its first finding."""
    return answered(evidence, VerdictKind.NO_LEAK, LeakDetected.FALSE, process_memory())


def suspicious(evidence: Evidence) -> Evidence:
    """`evidence` in which a leak can neither be shown nor excluded."""
    return answered(evidence, VerdictKind.SUSPICIOUS_MEMORY, LeakDetected.UNKNOWN, unexplained(), process_memory())


def ranked_findings(comm: str = "nginx") -> tuple[Finding, ...]:
    """Findings as a runner ranks them: two leaks, something suspicious, and ordinary uses of memory."""
    return (
        unread_socket(comm),
        growing_slab(),
        unexplained(),
        process_memory(),
        *(process_memory(size_bytes=(900 - 50 * index) * MIB, pid=100 + index) for index in range(12)),
    )


def unread_socket(comm: str = "nginx") -> Finding:
    """The finding about the first holder of `evidence_with`."""
    owner = MemoryOwner(kind=OwnerKind.PROCESS, name=f"{comm[:16]}[4711]", pid=4711, comm=comm, fds=[11], processes=1)
    return Finding(
        kind=FindingKind.UNREAD_SOCKET,
        memory_class="AllocPage",
        size_bytes=5 * GIB,
        counted_bytes=5 * GIB,
        owner=owner,
        leak=LeakAnswer.YES,
        freed_by=FreedBy(action="End or restart it, or let it read its socket.", size_bytes=5 * GIB),
        confidence=Confidence.HIGH,
        sentence=f"{comm[:16]}[4711] fd 11: 3.00 MiB unread for at least 60 s pins 5.00 GiB.",
        reasons=["nothing was read during that time"],
        advice="Find out why it does not read, and restart or fix it.",
        evidence=FindingEvidence(holders=[0], stacks=[0]),
    )


def growing_slab() -> Finding:
    """A slab cache that leaks."""
    return Finding(
        kind=FindingKind.LARGE_CLASS,
        memory_class="SUnreclaim",
        size_bytes=39_424 * MIB,
        counted_bytes=2 * GIB,
        owner=MemoryOwner(kind=OwnerKind.SLAB_CACHE, name="kmalloc-64"),
        trend=FindingTrend(bytes_per_second=220 * 1024, error_bytes_per_second=1024, over_seconds=60),
        leak=LeakAnswer.YES,
        confidence=Confidence.MEDIUM,
        sentence="The slab cache kmalloc-64 has 38.5 GiB that the kernel cannot reclaim.",
        advice="Find the driver by its call stack.",
        evidence=FindingEvidence(sections=["census.slab"]),
    )


def unexplained() -> Finding:
    """Memory of which nobody knows the owner."""
    return Finding(
        kind=FindingKind.UNEXPLAINED,
        memory_class="AllocPage",
        size_bytes=6 * GIB,
        counted_bytes=GIB,
        leak=LeakAnswer.UNKNOWN,
        confidence=Confidence.MEDIUM,
        sentence="AllocPage has 6.00 GiB that no check explains.",
        advice="Run a longer trace.",
    )


def process_memory(
    *, size_bytes: int = 8 * GIB, container_id: str = "c" * 64, pod_uid: str = "", pid: int = 0
) -> Finding:
    """An ordinary use of memory by a container, or by one of its processes."""
    kind = OwnerKind.PROCESS if pid else OwnerKind.CONTAINER
    name = f"worker[{pid}]" if pid else ""
    comm = "worker" if pid else ""
    return Finding(
        kind=FindingKind.PROCESS_MEMORY,
        memory_class="AnonPages",
        size_bytes=size_bytes,
        counted_bytes=min(size_bytes, GIB),
        owner=MemoryOwner(
            kind=kind, name=name, pid=pid, comm=comm, processes=3, container_id=container_id, pod_uid=pod_uid
        ),
        leak=LeakAnswer.NO,
        freed_by=FreedBy(action="End or restart it.", size_bytes=size_bytes),
        confidence=Confidence.HIGH,
        sentence="A container uses 8.00 GiB of anonymous memory.",
    )


def _stack(index: int, holders: int) -> Stack:
    return Stack(
        frames=[f"function_{depth}_of_the_network_stack+0x{depth:x}" for depth in range(20)],
        context=Context.SOFTIRQ,
        outstanding_bytes=(300 - index) * MIB,
        outstanding_blocks=9600,
        outstanding_by_order={"3": 9600},
        births_bytes=[(300 - index) * MIB // 16] * 16,
        growth_bytes_per_second=5.0 * MIB,
        trend=Trend.GROWING,
        held_by=[HeldBy(holder=holder, size_bytes=MIB, share=0.9) for holder in range(min(holders, 16))],
    )


def _holder(index: int, stacks: int, comm: str) -> Holder:
    pinned_bytes = max(1, 5800 - 20 * index) * MIB
    return Holder(
        kind=HolderKind.SOCKET,
        owners=[Owner(pid=4711 + index, comm=comm, command_line="nginx: worker process", uid=33, fds=[11])],
        owners_total=1,
        unread_bytes=3 * MIB,
        unread_packets=40_000,
        charge_bytes=125 * MIB,
        pinned_bytes=pinned_bytes,
        pinned_blocks=pinned_bytes // 32_768,
        stuck_seconds=60.0,
        socket=Socket(
            family="IPv4",
            protocol="TCP",
            state="ESTABLISHED",
            inode=123_456 + index,
            network_namespace=4026531840,
            local_address="10.244.0.7:80",
            remote_address="10.244.0.9:51234",
            queues=[
                Queue(
                    name="receive",
                    packets=40_000,
                    unread_bytes=3 * MIB,
                    charge_bytes=125 * MIB,
                    pinned_bytes=pinned_bytes,
                )
            ],
        ),
        filled_by=[FilledBy(stack=stack, size_bytes=MIB, share=0.9) for stack in range(min(stacks, 16))],
    )
