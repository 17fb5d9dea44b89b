"""One run from start to end: what is needed, the trace between two looks at the sockets, and what all of it says."""

import math
import mmap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Check, ContainerShare, Evidence, Need, Owner, ScanCoverage, Stack, Trace, Window
from memdiag_node.attempts import Attempts
from memdiag_node.breakdown.classes import breakdown
from memdiag_node.breakdown.reading import MemoryReading, take_readings
from memdiag_node.census.frames import CENSUS_SECONDS, FrameCensus, take_census
from memdiag_node.census.memory_cgroups import container_cgroups, memory_cgroup_layout
from memdiag_node.census.summary import census_of, held_frames
from memdiag_node.conclusion.conclude import Holding, Measurements, conclude
from memdiag_node.conclusion.verdict import Thresholds
from memdiag_node.holders.context import OtherHolders
from memdiag_node.holders.page_pools import add_traced
from memdiag_node.holders.processes import read_owner
from memdiag_node.holders.registry import holder_fields, other_holders
from memdiag_node.host import HostRoots, read_host
from memdiag_node.kernel.btf import Btf
from memdiag_node.preflight.checks import explain_missing, possible_checks, preflight
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.kpageflags import open_frame_table
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.sockets.holders import coverage_of, holders_of
from memdiag_node.sockets.scanner import SocketScan, SocketScanner, pinned_blocks
from memdiag_node.sockets.summed import summed_sockets
from memdiag_node.time_budget import Stop
from memdiag_node.trace.page_trace import PageTrace, TraceSettings
from memdiag_node.trace.result import TraceResult
from memdiag_node.trace.stacks import fold_stacks

MAX_STACKS = 64
MAX_HOLDERS = 256
MAX_SINGLE_SOCKETS = 192
"""Those beyond are summed up by process, which leaves room for that and for other holders."""
MAX_CHARGES = 32
_WAIT_STEP_SECONDS = 0.25
# Of what is left of the grace period, when the run was asked to stop.
_TALLY_SHARE, _CENSUS_SHARE = 0.4, 0.3

Progress = Callable[[str], None]


class UnsupportedError(RuntimeError):
    """None of the checks can be made here; the message names each missing need and its remedy."""


class MeasurementError(RuntimeError):
    """Every check failed after it had begun; the message says of each what it ran into."""


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
    report_arguments: bool = False
    """Whether processes are reported with their arguments, which may be passwords and tokens."""


def measure(settings: Settings, *, roots: HostRoots, stop: Stop, progress: Progress) -> Evidence:
    """Make the checks of `settings` that can be made here; `stop` ends the window early, with what there is until then.

    A check that fails on the way is reported as a missing need, and the others go on. Raises UnsupportedError when none
    of them can be begun, MeasurementError when none came to an end.
    """
    needs = preflight(settings.checks, roots)
    attempts = Attempts(possible_checks(settings.checks, needs), progress)
    if not attempts.checks:
        raise UnsupportedError(f"nothing can be measured here:\n{explain_missing(needs)}")
    start_time = datetime.now(UTC)
    look = _look(settings, attempts=attempts, roots=roots, stop=stop)
    progress("putting the findings together")
    measured = _measurements(settings, attempts=attempts, needs=needs, roots=roots, look=look, start_time=start_time)
    if not measured.checks:
        raise MeasurementError(f"no check came to an end:\n{explain_missing(attempts.needs)}")
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


def _look(settings: Settings, *, attempts: Attempts, roots: HostRoots, stop: Stop) -> _Look:
    look = _Look()
    with ExitStack() as attached:
        if Check.BREAKDOWN in attempts.checks:
            with attempts.step(Check.BREAKDOWN, "the first readings", optional=True):
                look.readings_before = take_readings(roots)
        sockets = _open_sockets(attached, attempts, roots, stop)
        if sockets:
            look.first_scan = sockets.first_scan
        trace = _open_trace(attached, attempts, settings, roots, stop)
        if not attempts.checks:
            failure = MeasurementError if stop.is_set() else UnsupportedError
            raise failure(f"nothing can be measured here:\n{explain_missing(attempts.needs)}")
        if sockets or trace:
            attempts.progress(
                f"tracing for {settings.duration_seconds:.0f} s" if trace else "waiting for the second look"
            )
            look.interrupted = _wait(settings.duration_seconds, stop, trace, attempts)
        _end_window(trace, attempts)
        if sockets:
            attempts.progress("looking at every socket again")
            with attempts.step(Check.SOCKET_QUEUES, "the last look at every socket"):
                look.scan = sockets.scanner.scan()
        if sockets and look.scan:
            with attempts.step(Check.SOCKET_QUEUES, "the look at other holders", optional=True):
                look.others = other_holders(
                    sockets.scanner, look.scan, _owner_of(settings, roots), sockets.holder_fields
                )
        if trace:
            look.trace = _finish(trace, attempts, stop)
        if sockets and look.scan and look.others and look.trace:
            with attempts.step(Check.SOCKET_QUEUES, "the search for traced pages of page pools", optional=True):
                memory, at = sockets.scanner.source.memory, sockets.holder_fields
                look.others = add_traced(memory, at, look.scan, look.others, look.trace.blocks)
        if Check.BREAKDOWN in attempts.checks:
            _count(look, sockets, attempts, roots, stop)
    return look


@dataclass(frozen=True, slots=True)
class _Sockets:
    """The socket scan, loaded, and what else is taken from the kernel with its programs."""

    scanner: SocketScanner
    cgroup_layout: dict[str, int]
    holder_fields: dict[str, int]
    first_scan: SocketScan
    """Without its fds: only the last look needs to know them."""


def _open_sockets(attached: ExitStack, attempts: Attempts, roots: HostRoots, stop: Stop) -> _Sockets | None:
    if Check.SOCKET_QUEUES not in attempts.checks:
        return None
    if stop.is_set():
        attempts.skip(Check.SOCKET_QUEUES)
        return None
    attempts.progress("looking at every socket")
    scanner = None
    with attempts.step(Check.SOCKET_QUEUES, "loading its programs"):
        btf = Btf.load(roots.sys)
        layouts = memory_cgroup_layout(btf), holder_fields(btf)
        scanner = attached.enter_context(SocketScanner(btf=btf, stop=stop))
        del btf  # it need not stay in memory
    if scanner is None:
        return None
    with attempts.step(Check.SOCKET_QUEUES, "the first look at every socket"):  # without it nothing is known as stuck
        scan = scanner.watch(scanner.scan())
        return _Sockets(scanner, *layouts, replace(scan, owners=scan.owners[:0].copy(), files=scan.files[:0].copy()))
    return None


def _open_trace(
    attached: ExitStack, attempts: Attempts, settings: Settings, roots: HostRoots, stop: Stop
) -> PageTrace | None:
    if Check.ALLOC_PAGE_TRACE not in attempts.checks:
        return None
    if stop.is_set():
        attempts.skip(Check.ALLOC_PAGE_TRACE)
        return None
    with attempts.step(Check.ALLOC_PAGE_TRACE, "starting it"):
        trace_settings = TraceSettings(settings.duration_seconds, cpu_budget_share=settings.cpu_budget_share)
        return attached.enter_context(PageTrace(trace_settings, roots=roots))
    return None


def _wait(duration_seconds: float, stop: Stop, trace: PageTrace | None, attempts: Attempts) -> bool:
    """Let the window pass; True when it was ended early."""
    end = time.monotonic() + duration_seconds
    while (left := end - time.monotonic()) > 0:
        if stop.is_set():
            return True
        time.sleep(min(left, _WAIT_STEP_SECONDS))
        if trace:
            is_on_time = False
            with attempts.step(Check.ALLOC_PAGE_TRACE, "keeping it running until the window's end", optional=True):
                trace.advance()
                is_on_time = True
            if not is_on_time:  # its slices would be wrong from now on
                return True
    return False


def _end_window(trace: PageTrace | None, attempts: Attempts) -> None:
    """Have the trace record nothing new, before the holders are looked at; it sees what is freed until its own end.

    So a block that a holder shows and that is outstanding at the end was that holder's: it was not freed and allocated
    again in between.
    """
    if trace:
        with attempts.step(Check.ALLOC_PAGE_TRACE, "ending its window", optional=True):
            trace.stop_recording()


def _finish(trace: PageTrace, attempts: Attempts, stop: Stop) -> TraceResult | None:
    budget = stop.budget(math.inf, share=_TALLY_SHARE)
    with attempts.step(Check.ALLOC_PAGE_TRACE, "reading it out"):
        result = trace.finish(budget.late)
        if budget.ran_out:
            attempts.fail(
                Check.ALLOC_PAGE_TRACE,
                "the run was asked to stop: a part of what is outstanding was not checked against what the frames are "
                "used for",
                optional=True,
                remedy="Allow a longer grace period (--grace; in a cluster, runner.terminationGraceSeconds).",
            )
        return result
    return None


def _count(look: _Look, sockets: _Sockets | None, attempts: Attempts, roots: HostRoots, stop: Stop) -> None:
    """Read the counters at the end, and count page frames."""
    with attempts.step(Check.BREAKDOWN, "the last readings", optional=bool(look.readings_before)):
        look.readings = take_readings(roots)
    attempts.progress("counting page frames")
    with attempts.step(Check.BREAKDOWN, "the census of page frames", optional=True):
        look.census = _count_frames(look, roots, stop)
    if sockets:
        with attempts.step(Check.BREAKDOWN, "the search for containers' cgroups", optional=True):
            look.containers = container_cgroups(sockets.scanner.source.memory, sockets.cgroup_layout)


def _count_frames(look: _Look, roots: HostRoots, stop: Stop) -> FrameCensus | None:
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
        late = stop.budget(CENSUS_SECONDS, share=_CENSUS_SHARE).late
        ranges = read_memory_map(roots.proc, roots.sys, page_bytes=mmap.PAGESIZE)
        return take_census(ranges, flags.read, charges.read if charges else None, held=held, late=late)


def _measurements(
    settings: Settings,
    *,
    attempts: Attempts,
    needs: Sequence[Need],
    roots: HostRoots,
    look: _Look,
    start_time: datetime,
) -> Measurements:
    host = read_host(roots, settings.node_name)
    readings = look.readings or look.readings_before
    measured = Measurements(
        host=host,
        window=Window(
            start_time=start_time,
            end_time=datetime.now(UTC),
            requested_seconds=settings.duration_seconds,
            traced_seconds=look.trace.traced_seconds if look.trace else 0,
            interrupted=look.interrupted,
        ),
        checks=(),
        needs=(),
        struct_page_bytes=look.trace.struct_page_bytes if look.trace else 1,
    )
    with attempts.step(Check.SOCKET_QUEUES, "describing the holders"):
        holdings, coverage = _holdings(look, settings, roots)
        measured = replace(measured, holdings=holdings, coverage=coverage)
    with attempts.step(Check.ALLOC_PAGE_TRACE, "describing the stacks"):
        trace, stacks, blocks = _traced(look.trace)
        classes = look.trace.memory_classes if look.trace else ()
        measured = replace(measured, trace=trace, stacks=stacks, traced_blocks=blocks, memory_classes=classes)
    with attempts.step(Check.BREAKDOWN, "adding it up"):
        if readings:
            measured = replace(measured, breakdown=breakdown(readings, earlier=look.readings_before))
    with attempts.step(Check.BREAKDOWN, "adding up the census", optional=True):
        if look.census:
            census = census_of(look.census, look.containers, page_bytes=host.page_size_bytes)
            measured = replace(measured, census=census)
    return replace(measured, checks=tuple(attempts.checks), needs=(*needs, *attempts.needs), doubts=attempts.doubts())


def _holdings(look: _Look, settings: Settings, roots: HostRoots) -> tuple[list[Holding], ScanCoverage | None]:
    if look.scan is None:
        return [], None

    owner_of = _owner_of(settings, roots)
    sockets = holders_of(look.first_scan, look.scan, owner_of, limit=MAX_SINGLE_SOCKETS)
    holdings = [Holding(holder, blocks) for holder, blocks in zip(sockets.holders, sockets.blocks, strict=True)]
    holdings += [Holding(holder, blocks) for holder, blocks in summed_sockets(look.scan, sockets, owner_of)]
    if look.others:
        holdings += [
            Holding(holder, blocks) for holder, blocks in zip(look.others.holders, look.others.blocks, strict=True)
        ]
    coverage = coverage_of(look.scan, look.others.not_seen if look.others else (), first=look.first_scan)
    return sorted(holdings, key=lambda one: -one.holder.pinned_bytes), coverage


def _owner_of(settings: Settings, roots: HostRoots) -> Callable[[int], Owner | None]:
    return lambda pid: read_owner(roots.proc, pid, with_arguments=settings.report_arguments)


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
