"""One run from start to end: check the prerequisites, read from the kernel, draw the conclusion."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from memdiag_api import limits
from memdiag_api.evidence import Check, ContainerShare, Evidence, Need, ScanCoverage, Stack, Trace, Window
from memdiag_node.attempts import Attempts
from memdiag_node.breakdown.classes import breakdown
from memdiag_node.capture import Capture, MeasurementError, UnsupportedError, capture, owner_reader
from memdiag_node.census.record import census_record
from memdiag_node.cgroups.accounts import Account, account_records, with_frames
from memdiag_node.conclusion.conclude import conclude
from memdiag_node.findings.measurements import Measurements, TracedBlocks
from memdiag_node.history import comparable
from memdiag_node.holding import Holding, by_size
from memdiag_node.host import read_host, read_uptime_seconds
from memdiag_node.machine.record import machine_record
from memdiag_node.owners.owners import OwnerSources, owners_of_classes
from memdiag_node.preflight.checks import explain_missing, possible_checks, preflight
from memdiag_node.procfs.hugepages import used_bytes
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.settings import Settings
from memdiag_node.sockets.coverage import coverage_of
from memdiag_node.sockets.holders import socket_holdings
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.time_budget import Stop
from memdiag_node.trace.merged import merge
from memdiag_node.trace.objects.decode import ObjectResult
from memdiag_node.trace.pages.result import TraceResult

MAX_SINGLE_SOCKETS = 192
"""More sockets are summed up by process, which leaves space for these sums and for other holders."""

Progress = Callable[[str], None]


def measure(settings: Settings, *, roots: HostRoots, stop: Stop, progress: Progress) -> Evidence:
    """Run the checks of `settings` that are possible here. `stop` ends the window early and keeps the results so far.

    A check that fails is reported as a missing need, and the others continue. Raises UnsupportedError if none of them
    can be started, MeasurementError if none of them completed.
    """
    needs = preflight(settings.checks, roots)
    attempts = Attempts(possible_checks(settings.checks, needs), progress)
    if not attempts.checks:
        raise UnsupportedError(f"no check is possible on this host:\n{explain_missing(needs)}")
    start_time = datetime.now(UTC)
    captured = capture(settings, attempts=attempts, roots=roots, stop=stop)
    progress("evaluating the results")
    measured = _measurements(
        settings, attempts=attempts, needs=needs, roots=roots, captured=captured, start_time=start_time
    )
    if not measured.checks:
        raise MeasurementError(f"no check completed:\n{explain_missing(attempts.needs)}")
    return conclude(
        measured,
        run_id=settings.run_id,
        thresholds=settings.thresholds,
        max_stacks=limits.MAX_STACKS,
        max_holders=limits.MAX_HOLDERS,
    )


def _measurements(
    settings: Settings,
    *,
    attempts: Attempts,
    needs: Sequence[Need],
    roots: HostRoots,
    captured: Capture,
    start_time: datetime,
) -> Measurements:
    host = read_host(roots, settings.node_name)
    readings = captured.readings or captured.readings_before
    measured = Measurements(
        host=host,
        window=Window(
            start_time=start_time,
            end_time=datetime.now(UTC),
            requested_seconds=settings.duration_seconds,
            traced_seconds=captured.trace.traced_seconds if captured.trace else 0,
            interrupted=captured.interrupted,
        ),
        checks=(),
        needs=(),
        history=comparable(settings.history, boot_id=host.boot_id, now=start_time),
        uptime_seconds=read_uptime_seconds(roots),
        notes=settings.notes,
    )
    if captured.scan:
        with attempts.step(Check.SOCKET_QUEUES, "describing the holders"):
            found, coverage = _holdings(captured, captured.scan, settings, roots)
            holdings, own = ([one for one in found if one.is_own is is_own] for is_own in (False, True))
            measured = replace(measured, holdings=holdings, own_holdings=own, coverage=coverage)
    if captured.trace:
        with attempts.step(Check.ALLOC_PAGE_TRACE, "describing the stacks"):
            trace, stacks, traced = _traced(captured.trace, captured.traced_objects)
            measured = replace(measured, trace=trace, stacks=stacks, traced=traced)
    if readings:
        with attempts.step(Check.BREAKDOWN, "computing the result"):
            measured = replace(measured, breakdown=breakdown(readings, earlier=captured.readings_before))
    if captured.machine:
        with attempts.step(Check.BREAKDOWN, "describing the machine's memory", optional=True):
            machine = machine_record(
                captured.machine,
                captured.machine_before,
                page_bytes=host.page_size_bytes,
                mem_total_bytes=host.mem_total_bytes,
                sample=captured.huge_page_sample,
            )
            measured = replace(measured, machine=machine)
    if captured.census or captured.objects:
        check = Check.KERNEL_OBJECTS if captured.objects else Check.BREAKDOWN
        with attempts.step(check, "computing the census", optional=True):
            census = census_record(
                captured.census,
                captured.objects,
                captured.accounts.containers,
                owner_reader(roots, settings),
                page_bytes=host.page_size_bytes,
            )
            measured = replace(measured, census=census)
    if Check.OWNERS in attempts.checks and not (captured.processes and measured.breakdown):
        attempts.fail(Check.OWNERS, "the classes of memory whose owners it determines were not measured")
    elif captured.processes and measured.breakdown:
        with attempts.step(Check.OWNERS, "determining owners"):
            sources = OwnerSources(
                captured.processes,
                captured.census,
                captured.accounts.containers,
                measured.census.files if measured.census else None,
                host.page_size_bytes,
                used_bytes(captured.machine.huge_pages or ()) if captured.machine else None,
            )
            owners = owners_of_classes(measured.breakdown, sources)
            measured = replace(measured, owners=owners, processes=captured.processes.processes)
    measured = replace(
        measured,
        containers=account_records(
            _accounts(captured, host.page_size_bytes), measured.census.files if measured.census else None
        ),
        removed_cgroups=captured.accounts.removed_cgroups,
        oom_kills=captured.oom_kills,
    )
    return replace(measured, checks=tuple(attempts.checks), needs=(*needs, *attempts.needs), doubts=attempts.doubts())


def _accounts(captured: Capture, page_bytes: int) -> list[Account]:
    """Return the accounts of containers, with what the census of page frames counted for them."""
    census = captured.census
    if census is None or not census.knows_charges or census.scanned_share < 1:
        return captured.accounts.accounts
    return with_frames(captured.accounts.accounts, census.user, page_bytes=page_bytes)


def _holdings(
    captured: Capture, scan: SocketScan, settings: Settings, roots: HostRoots
) -> tuple[list[Holding], ScanCoverage]:
    """Return every holder, most pinned bytes first, and what the scan saw."""
    owner_of = owner_reader(roots, settings)
    sockets = socket_holdings(
        captured.first_scan,
        scan,
        owner_of,
        limit=MAX_SINGLE_SOCKETS,
        slow_drain_seconds=settings.thresholds.slow_drain_seconds,
    )
    coverage = coverage_of(scan, captured.not_seen, first=captured.first_scan)
    return by_size([*sockets, *(captured.others or ())]), coverage


def _traced(result: TraceResult, objects: ObjectResult | None) -> tuple[Trace, list[Stack], TracedBlocks]:
    merged = merge(result, objects, top_n=limits.MAX_STACKS)
    trace = Trace(
        outstanding_bytes=result.outstanding_bytes,
        outstanding_blocks=result.outstanding_blocks,
        slice_seconds=result.slice_seconds,
        charges=[
            ContainerShare(container_id=one.container_id, pod_uid=one.pod_uid, size_bytes=one.size_bytes)
            for one in result.charges[: limits.MAX_CHARGES]
        ],
        object_classes=objects.classes if objects else [],
        counters=merged.counters,
    )
    return trace, merged.stacks, TracedBlocks(merged.blocks, merged.memory_classes, result.struct_page_bytes)
