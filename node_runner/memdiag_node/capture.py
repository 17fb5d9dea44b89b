"""What one run reads from the kernel: counters, the trace between two scans of the sockets, the census."""

import mmap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_api.containers import OomKill
from memdiag_api.evidence import Check
from memdiag_api.machine import HugePageSample
from memdiag_node.allocation_traces import AllocationTraces
from memdiag_node.attempts import Attempts
from memdiag_node.breakdown.reading import MemoryReading, take_readings
from memdiag_node.breakdown.surroundings import read_huge_page_bytes, read_kernel_log
from memdiag_node.census.findings import ObjectFindings
from memdiag_node.census.frames.block_heads import BlockHeads
from memdiag_node.census.frames.frames import CENSUS_SECONDS, HELD_DTYPE, FrameCensus, take_census
from memdiag_node.census.frames.summary import held_frames
from memdiag_node.census.networks.sockets import referred_to
from memdiag_node.cgroups.layout import account_layout
from memdiag_node.cgroups.oom_kills import oom_kills
from memdiag_node.container_accounts import OpenedMemory, ReadAccounts, start_accounts
from memdiag_node.holders.page_pools import add_traced
from memdiag_node.holders.registry import holder_fields, other_holders
from memdiag_node.holding import Holding, pinned_blocks
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import memory_layout, open_memory
from memdiag_node.kernel_objects import KernelObjects, TakenCensus, object_fields
from memdiag_node.machine.huge_page_sample import HugePageHeads
from memdiag_node.machine.reading import MachineReading, read_machine
from memdiag_node.owners.processes import SCAN_SECONDS, ProcessScan, scan_processes
from memdiag_node.preflight.checks import explain_missing
from memdiag_node.processes import OwnerOf, read_owner
from memdiag_node.procfs.cpulist import online_cpus
from memdiag_node.procfs.kpageflags import open_frame_table
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.procfs.oom_messages import parse_oom_messages
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.settings import Settings
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.lookup import SlabMemory, open_slab_memory
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.time_budget import Stop
from memdiag_node.trace.objects.decode import ObjectResult
from memdiag_node.trace.pages.result import TraceResult
from memdiag_node.trace.settings import TraceSettings

_WAIT_STEP_SECONDS = 0.25
# Shares of the remaining grace period, after the run was asked to stop.
_CENSUS_SHARE, _PROCESS_SHARE, _SAMPLE_SHARE = 0.3, 0.2, 0.1
_SAMPLE_SECONDS = 5.0


class UnsupportedError(RuntimeError):
    """None of the checks is possible here. The message names each missing need and its remedy."""


class MeasurementError(RuntimeError):
    """Every check failed after it had started. The message names the error of each."""


@dataclass(slots=True)
class Capture:
    """What was read from the kernel, in raw form."""

    readings_before: list[MemoryReading] = field(default_factory=list)
    readings: list[MemoryReading] = field(default_factory=list)
    machine_before: MachineReading | None = None
    machine: MachineReading | None = None
    huge_page_sample: HugePageSample | None = None
    first_scan: SocketScan | None = None
    scan: SocketScan | None = None
    others: list[Holding] | None = None
    """Holders other than sockets, most pinned bytes first."""
    not_seen: list[str] = field(default_factory=list)
    """What the scan of other holders could not see, as text."""
    trace: TraceResult | None = None
    traced_objects: ObjectResult | None = None
    census: FrameCensus | None = None
    objects: ObjectFindings | None = None
    processes: ProcessScan | None = None
    """At the end of the window."""
    accounts: ReadAccounts = field(default_factory=ReadAccounts)
    oom_kills: list[OomKill] = field(default_factory=list)
    interrupted: bool = False


def capture(settings: Settings, *, attempts: Attempts, roots: HostRoots, stop: Stop) -> Capture:
    """Run the checks of `attempts` in one window, which `stop` ends early.

    Raises UnsupportedError if none of them can be started.
    """
    captured = Capture()
    with ExitStack() as attached:
        _read_first(captured, settings, attempts, roots)
        types = _KernelTypes(roots)
        sockets = _open_sockets(attached, attempts, types, stop)
        captured.first_scan = sockets.first_scan if sockets else None
        objects = _open_objects(attached, attempts, sockets, types, stop)
        opened = _opened_memory(sockets, objects)
        accounts = start_accounts(attempts, opened, partial(_open_for_accounts, attached, types), roots, stop)
        slabs = _slab_memory(attached, attempts, objects, types)
        types.free()
        traces = _start_traces(attached, attempts, settings, roots, stop, slabs=slabs)
        if not attempts.checks:
            failure = MeasurementError if stop.is_set() else UnsupportedError
            raise failure(f"no check is possible on this host:\n{explain_missing(attempts.needs)}")
        captured.interrupted = _window(settings, stop, sockets, traces, attempts)
        census = _take_census(objects, attempts, captured)
        if sockets:
            _scan_again(captured, sockets, census, attempts, owner_reader(roots, settings))
        if traces:
            captured.trace, captured.traced_objects = traces.finish(stop)
        if sockets:
            _add_traced(captured, sockets, attempts)
        if census:
            attempts.progress("reading files and untyped objects")
            census.read_files(with_paths=settings.report_paths)
            if not captured.scan:
                census.read_packets()
            census.read_clues()
        if accounts:
            captured.accounts = accounts.read(captured.objects)
        if Check.BREAKDOWN in attempts.checks:
            _count(captured, census, attempts, roots, stop)
            captured.machine = _read_machine(
                settings, captured.readings or captured.readings_before, attempts, roots, is_last=True
            )
    return captured


def _read_first(captured: Capture, settings: Settings, attempts: Attempts, roots: HostRoots) -> None:
    """Read the counters for the first time."""
    if Check.BREAKDOWN in attempts.checks:
        with attempts.step(Check.BREAKDOWN, "the first readings", optional=True):
            captured.readings_before = take_readings(roots)
        captured.machine_before = _read_machine(settings, captured.readings_before, attempts, roots, is_last=False)


def _read_machine(
    settings: Settings, readings: Sequence[MemoryReading], attempts: Attempts, roots: HostRoots, *, is_last: bool
) -> MachineReading | None:
    """Read memory that belongs to the machine. None if the readings of the breakdown failed."""
    if not readings:
        return None
    vmalloc_bytes = settings.thresholds.notable_bytes(readings[0].meminfo.mem_total_bytes)
    with attempts.step(Check.BREAKDOWN, "reading the machine's memory", optional=True):
        return read_machine(roots, vmalloc_bytes=vmalloc_bytes, is_last=is_last)
    return None


class _KernelTypes:
    """The kernel's BTF, loaded once for all checks. It is large, and not needed in the window."""

    def __init__(self, roots: HostRoots) -> None:
        self.roots = roots
        self._btf: Btf | None = None

    def load(self) -> Btf:
        if self._btf is None:
            self._btf = Btf.load(self.roots.sys)
        return self._btf

    def free(self) -> None:
        self._btf = None


def _open_objects(
    attached: ExitStack, attempts: Attempts, sockets: "_Sockets | None", types: _KernelTypes, stop: Stop
) -> KernelObjects | None:
    if Check.KERNEL_OBJECTS not in attempts.checks:
        return None
    if stop.is_set():
        attempts.skip(Check.KERNEL_OBJECTS)
        return None
    with attempts.step(Check.KERNEL_OBJECTS, "loading its program"):
        at = object_fields(types.load())
        memory = sockets.scanner.source.memory if sockets else open_memory(at, attached)
        return KernelObjects(attached, memory, at, attempts=attempts, roots=types.roots, stop=stop)
    return None


def _take_census(objects: KernelObjects | None, attempts: Attempts, captured: Capture) -> TakenCensus | None:
    """Find the slabs, and read in them what is joined with the last scan of the sockets."""
    if objects is None:
        return None
    attempts.progress("reading the slabs")
    census = objects.take()
    if census:
        captured.objects = census.found
        census.read_networks()
        census.read_packets()
    return census


def _scan_again(
    captured: Capture, sockets: "_Sockets", census: TakenCensus | None, attempts: Attempts, owner_of: OwnerOf
) -> None:
    """Scan all sockets and other holders at the end of the window."""
    attempts.progress("scanning all sockets again")
    every = census.found.namespaces.sockets if census and census.found.namespaces else None
    with attempts.step(Check.SOCKET_QUEUES, "the last scan of all sockets"):
        captured.scan = sockets.scanner.scan(
            referred_to(every) if every else None, extra_is_whole=every is not None and every.is_whole
        )
    if captured.scan:
        if census:
            census.read_packets()
        with attempts.step(Check.SOCKET_QUEUES, "the scan of other holders", optional=True):
            captured.others, captured.not_seen = other_holders(
                sockets.scanner,
                captured.scan,
                owner_of,
                sockets.holder_fields,
                proc=sockets.proc,
                objects=captured.objects,
            )


def _add_traced(captured: Capture, sockets: "_Sockets", attempts: Attempts) -> None:
    """Add to the page pools what the trace saw them take."""
    if captured.scan and captured.others is not None and captured.trace:
        with attempts.step(Check.SOCKET_QUEUES, "the search for traced pages of page pools", optional=True):
            memory, at = sockets.scanner.source.memory, sockets.holder_fields
            captured.others = add_traced(memory, at, captured.scan, captured.others, captured.trace.blocks)


def _opened_memory(sockets: "_Sockets | None", objects: KernelObjects | None) -> OpenedMemory | None:
    if sockets:
        return sockets.scanner.source.memory, sockets.cgroup_layout
    return objects.cgroups() if objects else None


def _open_for_accounts(attached: ExitStack, types: _KernelTypes) -> OpenedMemory:
    at = memory_layout(types.load()) | account_layout(types.load())
    return open_memory(at, attached), at


def _find_oom_kills(captured: Capture, attempts: Attempts) -> None:
    """Find the processes that the kernel killed, if the kernel log can be read. If it cannot, preflight reports it."""
    with attempts.step(Check.BREAKDOWN, "the search for killed processes", optional=True):
        log = read_kernel_log()
        now_seconds = time.clock_gettime(time.CLOCK_MONOTONIC)
        if log:
            captured.oom_kills = oom_kills(parse_oom_messages(log, page_bytes=mmap.PAGESIZE), now_seconds=now_seconds)


@dataclass(frozen=True, slots=True)
class _Sockets:
    """The loaded socket scan, and what else is read from the kernel with its programs."""

    scanner: SocketScanner
    cgroup_layout: dict[str, int]
    holder_fields: dict[str, int]
    first_scan: SocketScan
    """Without its fds: only the last scan needs them."""
    proc: Path


def _open_sockets(attached: ExitStack, attempts: Attempts, types: _KernelTypes, stop: Stop) -> _Sockets | None:
    if Check.SOCKET_QUEUES not in attempts.checks:
        return None
    if stop.is_set():
        attempts.skip(Check.SOCKET_QUEUES)
        return None
    attempts.progress("scanning all sockets")
    scanner = None
    with attempts.step(Check.SOCKET_QUEUES, "loading its programs"):
        btf = types.load()
        layouts = account_layout(btf), holder_fields(btf)
        scanner = attached.enter_context(SocketScanner(btf=btf, stop=stop))
    if scanner is None:
        return None
    with attempts.step(Check.SOCKET_QUEUES, "the first scan of all sockets"):  # without it nothing is known as stuck
        scan = scanner.watch(scanner.scan())
        without_fds = replace(scan, owners=scan.owners[:0].copy(), files=scan.files[:0].copy())
        return _Sockets(scanner, *layouts, without_fds, types.roots.proc)
    return None


def _start_traces(
    attached: ExitStack,
    attempts: Attempts,
    settings: Settings,
    roots: HostRoots,
    stop: Stop,
    *,
    slabs: SlabMemory | None,
) -> AllocationTraces | None:
    if Check.ALLOC_PAGE_TRACE not in attempts.checks:
        return None
    if stop.is_set():
        attempts.skip(Check.ALLOC_PAGE_TRACE)
        return None
    trace_settings = TraceSettings(settings.duration_seconds, cpu_budget_share=settings.cpu_budget_share)
    return AllocationTraces.start(trace_settings, opened=attached, attempts=attempts, roots=roots, slabs=slabs)


def _slab_memory(
    attached: ExitStack, attempts: Attempts, objects: KernelObjects | None, types: _KernelTypes
) -> SlabMemory | None:
    """Return what slabs are read through. None if nothing needs it, or if this kernel has another slab allocator."""
    if objects or Check.ALLOC_PAGE_TRACE not in attempts.checks:
        return objects.slab_memory() if objects else None
    with attempts.step(Check.ALLOC_PAGE_TRACE, "preparing to read slabs", optional=True):
        at = object_layout(types.load())
        return open_slab_memory(at, online_cpus(types.roots.sys), attached) if at else None
    return None


def _window(
    settings: Settings,
    stop: Stop,
    sockets: _Sockets | None,
    traces: AllocationTraces | None,
    attempts: Attempts,
) -> bool:
    """Wait until the end of the window, if anything is measured over it. Return True if it was ended early."""
    if not sockets and not traces:
        return stop.is_set()
    attempts.progress(f"tracing for {settings.duration_seconds:.0f} s" if traces else "waiting for the second scan")
    is_interrupted = _wait(settings.duration_seconds, stop, traces, attempts)
    if traces:
        traces.stop_recording()
    return is_interrupted


def _wait(duration_seconds: float, stop: Stop, traces: AllocationTraces | None, attempts: Attempts) -> bool:
    """Wait until the end of the window. Return True if it was ended early."""
    end = time.monotonic() + duration_seconds
    while (left := end - time.monotonic()) > 0:
        if stop.is_set():
            return True
        time.sleep(min(left, _WAIT_STEP_SECONDS))
        if traces:
            is_on_time = False
            with attempts.step(Check.ALLOC_PAGE_TRACE, "advancing the trace", optional=True):
                traces.advance()
                is_on_time = True
            if not is_on_time:  # its slices would be wrong from here on
                return True
    return False


def _count(captured: Capture, census: TakenCensus | None, attempts: Attempts, roots: HostRoots, stop: Stop) -> None:
    """Read the counters again, and count processes and page frames."""
    with attempts.step(Check.BREAKDOWN, "the last readings", optional=bool(captured.readings_before)):
        captured.readings = take_readings(roots)
    if Check.OWNERS in attempts.checks:
        with attempts.step(Check.OWNERS, "the scan of all processes"):
            captured.processes = scan_processes(
                roots.proc,
                address_spaces=census.read_address_spaces() if census else None,
                late=stop.budget(SCAN_SECONDS, share=_PROCESS_SHARE).late,
            )
    _find_oom_kills(captured, attempts)
    attempts.progress("counting page frames")
    with attempts.step(Check.BREAKDOWN, "the census of page frames", optional=True):
        _count_frames(captured, census, roots, stop)


def _count_frames(captured: Capture, census: TakenCensus | None, roots: HostRoots, stop: Stop) -> None:
    """Count page frames, unless the kernel does not expose them, which preflight has reported."""
    with ExitStack() as files:
        flags, charges = (open_frame_table(roots.proc / name, files) for name in ("kpageflags", "kpagecgroup"))
        if flags is None:
            return
        huge = HugePageHeads(flags.read, read_huge_page_bytes(roots.sys) // mmap.PAGESIZE)
        seen = BlockHeads(huge.read)
        held = _held_frames(captured, census)
        captured.census = take_census(
            read_memory_map(roots.proc, roots.sys, page_bytes=mmap.PAGESIZE),
            seen.read,
            charges.read if charges else None,
            held=held,
            late=stop.budget(CENSUS_SECONDS, share=_CENSUS_SHARE).late,
        )
        if census:
            census.read_frames(seen, np.empty(0, HELD_DTYPE) if held is None else held, captured.accounts.containers)
            late = stop.budget(_SAMPLE_SECONDS, share=_SAMPLE_SHARE).late
            captured.huge_page_sample = census.sample_huge_pages(
                huge, charges.read if charges else None, captured.accounts.containers, late
            )


def _held_frames(captured: Capture, census: TakenCensus | None) -> npt.NDArray[np.void] | None:
    """Return the frames of the blocks of known holders, as HELD_DTYPE. None if their positions are not known."""
    if captured.scan is None or captured.others is None:
        return None
    blocks = [pinned_blocks(captured.scan.blocks), *(one.blocks for one in captured.others)]
    if captured.trace:
        first_page, struct_page_bytes = captured.trace.first_page, captured.trace.struct_page_bytes
    elif census:
        first_page, struct_page_bytes = census.census.first_page, census.at["STRUCT_PAGE_BYTES"]
    else:
        return None
    return held_frames(blocks, first_page=first_page, struct_page_bytes=struct_page_bytes)


def owner_reader(roots: HostRoots, settings: Settings) -> OwnerOf:
    """Return a reader of the owner of a pid, with its arguments if `settings` requests them."""
    return lambda pid: read_owner(roots.proc, pid, with_arguments=settings.report_arguments)
