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
from memdiag_api.findings import Confidence

MIB = 1 << 20
GIB = 1024 * MIB


def evidence_with(*, holders: int = 1, stacks: int = 1, comm: str = "nginx", run_id: str = "run-1") -> Evidence:
    """A finding with the given number of holders and stacks, largest first; each stack has the maximum of holders."""
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
