"""One run from start to end: what is needed, the trace between two looks at the sockets, and what all of it says."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Check, ContainerShare, Evidence, Need, Owner, ScanCoverage, Stack, Trace, Window
from memdiag_node.analyze.breakdown import breakdown
from memdiag_node.analyze.census import census_of, held_frames
from memdiag_node.analyze.findings import Holding, Measurements, conclude
from memdiag_node.analyze.queues import coverage_of, holders_of
from memdiag_node.analyze.stacks import fold_stacks
from memdiag_node.analyze.summed_sockets import summed_sockets
from memdiag_node.analyze.traced import TraceResult
from memdiag_node.analyze.verdict import Thresholds
from memdiag_node.ebpf.btf import Btf
from memdiag_node.ebpf.memory_cgroups import container_cgroups, memory_cgroup_layout
from memdiag_node.ebpf.page_trace import PageTrace, TraceSettings
from memdiag_node.holders.context import OtherHolders
from memdiag_node.holders.page_pools import add_traced
from memdiag_node.holders.registry import other_holders
from memdiag_node.holders.sockets import SocketScan, SocketScanner, pinned_blocks
from memdiag_node.host import HostRoots, read_host
from memdiag_node.preflight import explain_missing, possible_checks, preflight
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.frame_census import FrameCensus, take_census
from memdiag_node.procfs.kpageflags import open_frame_table
from memdiag_node.procfs.process import read_owner
from memdiag_node.procfs.reading import MemoryReading, take_readings

MAX_STACKS = 64
MAX_HOLDERS = 256
MAX_SINGLE_SOCKETS = 192
"""Those beyond are summed up by process, which leaves room for that and for other holders."""
MAX_CHARGES = 32
_WAIT_STEP_SECONDS = 0.25

Progress = Callable[[str], None]


class UnsupportedError(RuntimeError):
    """None of the checks can be made here; the message names each missing need and its remedy."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure, and how."""

    run_id: str
    node_name: str
    checks: Sequence[Check]
    duration_seconds: float
    cpu_budget_share: float = 0.05
    """Of each CPU's time, for recording allocations; above it the trace thins out."""
    thresholds: Thresholds = field(default_factory=Thresholds)


def measure(settings: Settings, *, roots: HostRoots, stop: threading.Event, progress: Progress) -> Evidence:
    """Make the checks of `settings` that can be made here; `stop` ends the window early, with what there is until then.

    Raises UnsupportedError when none of them can be made.
    """
    needs = preflight(settings.checks, roots)
    checks = possible_checks(settings.checks, needs)
    if not checks:
        raise UnsupportedError(f"nothing can be measured here:\n{explain_missing(needs)}")
    start_time = datetime.now(UTC)
    look = _look(settings, checks=checks, roots=roots, stop=stop, progress=progress)
    progress("putting the findings together")
    measured = _measurements(settings, checks=checks, needs=needs, roots=roots, look=look, start_time=start_time)
    return conclude(
        measured,
        run_id=settings.run_id,
        thresholds=settings.thresholds,
        max_stacks=MAX_STACKS,
        max_holders=MAX_HOLDERS,
    )


@dataclass(slots=True)
class _Look:
    """What was read from the kernel, in raw form."""

    readings_before: list[MemoryReading] = field(default_factory=list)
    readings: list[MemoryReading] = field(default_factory=list)
    first_scan: SocketScan | None = None
    scan: SocketScan | None = None
    others: OtherHolders | None = None
    trace: TraceResult | None = None
    census: FrameCensus | None = None
    containers: dict[int, ContainerIdentity] = field(default_factory=dict)
    """Which container a memory cgroup is, by its inode."""
    interrupted: bool = False


def _look(
    settings: Settings, *, checks: Sequence[Check], roots: HostRoots, stop: threading.Event, progress: Progress
) -> _Look:
    look = _Look()
    with ExitStack() as attached:
        scanner, trace, cgroup_layout = None, None, {}
        if Check.BREAKDOWN in checks:
            look.readings_before = take_readings(roots)
        if Check.SOCKET_QUEUES in checks:
            progress("looking at every socket")
            btf = Btf.load(roots.sys)
            cgroup_layout = memory_cgroup_layout(btf)
            scanner = attached.enter_context(SocketScanner(btf=btf))
            del btf  # it need not stay in memory
            look.first_scan = scanner.watch(scanner.scan())
        if Check.ALLOC_PAGE_TRACE in checks:
            trace_settings = TraceSettings(settings.duration_seconds, cpu_budget_share=settings.cpu_budget_share)
            trace = attached.enter_context(PageTrace(trace_settings, btf=Btf.load(roots.sys), roots=roots))
        if scanner or trace:
            progress(f"tracing for {settings.duration_seconds:.0f} s" if trace else "waiting for the second look")
            look.interrupted = _wait(settings.duration_seconds, stop, trace)
        # The queues first, then the trace: what is freed between the two is missed by both, and nothing by one alone.
        if scanner:
            progress("looking at every socket again")
            look.scan = scanner.scan()
            look.others = other_holders(scanner, look.scan, _owner_of(roots))
        if trace:
            look.trace = trace.finish()
        if scanner and look.scan and look.others and look.trace:
            look.others = add_traced(scanner.source, look.scan, look.others, look.trace.blocks)
        if Check.BREAKDOWN in checks:
            look.readings = take_readings(roots)
            progress("counting page frames")
            look.census = _count_frames(look, roots)
            look.containers = container_cgroups(scanner.source, cgroup_layout) if scanner else {}
    return look


def _count_frames(look: _Look, roots: HostRoots) -> FrameCensus | None:
    """None where the kernel does not show its frames: preflight has said so."""
    with ExitStack() as files:
        flags, charges = (open_frame_table(roots.proc / name, files) for name in ("kpageflags", "kpagecgroup"))
        if flags is None:
            return None
        held = None
        if look.trace and look.scan and look.others:
            held = held_frames(
                [pinned_blocks(look.scan.blocks), *look.others.blocks],
                first_page=look.trace.first_page,
                struct_page_bytes=look.trace.struct_page_bytes,
            )
        return take_census(flags.frame_count(), flags.read, charges.read if charges else None, held=held)


def _wait(duration_seconds: float, stop: threading.Event, trace: PageTrace | None) -> bool:
    """Let the window pass; True when it was ended early."""
    end = time.monotonic() + duration_seconds
    while (left := end - time.monotonic()) > 0:
        if stop.wait(min(left, _WAIT_STEP_SECONDS)):
            return True
        if trace:
            trace.advance()
    return False


def _measurements(
    settings: Settings,
    *,
    checks: Sequence[Check],
    needs: Sequence[Need],
    roots: HostRoots,
    look: _Look,
    start_time: datetime,
) -> Measurements:
    holdings, coverage = _holdings(look, roots)
    trace, stacks, blocks = _traced(look.trace)
    host = read_host(roots, settings.node_name)
    return Measurements(
        host=host,
        window=Window(
            start_time=start_time,
            end_time=datetime.now(UTC),
            requested_seconds=settings.duration_seconds,
            traced_seconds=look.trace.traced_seconds if look.trace else 0,
            interrupted=look.interrupted,
        ),
        checks=checks,
        needs=needs,
        breakdown=breakdown(look.readings, earlier=look.readings_before) if look.readings else None,
        trace=trace,
        stacks=stacks,
        traced_blocks=blocks,
        memory_classes=look.trace.memory_classes if look.trace else (),
        census=census_of(look.census, look.containers, page_bytes=host.page_size_bytes) if look.census else None,
        coverage=coverage,
        holdings=holdings,
        struct_page_bytes=look.trace.struct_page_bytes if look.trace else 1,
    )


def _holdings(look: _Look, roots: HostRoots) -> tuple[list[Holding], ScanCoverage | None]:
    if look.scan is None:
        return [], None

    sockets = holders_of(look.first_scan, look.scan, _owner_of(roots), limit=MAX_SINGLE_SOCKETS)
    holdings = [Holding(holder, blocks) for holder, blocks in zip(sockets.holders, sockets.blocks, strict=True)]
    holdings += [Holding(holder, blocks) for holder, blocks in summed_sockets(look.scan, sockets, _owner_of(roots))]
    if look.others:
        holdings += [
            Holding(holder, blocks) for holder, blocks in zip(look.others.holders, look.others.blocks, strict=True)
        ]
    coverage = coverage_of(look.scan, look.others.not_seen if look.others else (), first=look.first_scan)
    return sorted(holdings, key=lambda one: -one.holder.pinned_bytes), coverage


def _owner_of(roots: HostRoots) -> Callable[[int], Owner | None]:
    return lambda pid: read_owner(roots.proc, pid)


def _traced(result: TraceResult | None) -> tuple[Trace | None, list[Stack], npt.NDArray[np.void] | None]:
    if result is None:
        return None, [], None
    trace = Trace(
        outstanding_bytes=result.outstanding_bytes,
        outstanding_blocks=result.outstanding_blocks,
        slice_seconds=result.slice_seconds,
        charges=[
            ContainerShare(container_id=one.container_id, pod_uid=one.pod_uid, size_bytes=one.size_bytes)
            for one in result.charges[:MAX_CHARGES]
        ],
        counters=result.counters,
    )
    return trace, fold_stacks(result, MAX_STACKS), result.blocks
