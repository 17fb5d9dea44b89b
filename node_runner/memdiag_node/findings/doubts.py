"""What a run did not see, and whether it may hide a leak (pure)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memdiag_api.evidence import Breakdown, Census, Check, Holder, ScanCoverage, Stack, Trace, TraceCounters
from memdiag_api.units import format_bytes
from memdiag_node.trace.stacks import lacks_names

LARGEST_FRAGMENT_BYTES = 32 << 10
"""Size of the network stack's allocations for fragments and heads: the most that one packet of any size can pin."""
_MISSED_SHARE = 0.01
_GRAVE_MISSED_SHARE = 0.1
_LOST_OBJECTS_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that the run did not see."""

    sentence: str
    """Without a full stop, so that it can be part of a list."""
    forbids_no: bool
    """True: it may hide a leak, so NoLeak is ruled out. False: it only lowers the confidence."""


def check_doubts(checks: Sequence[Check], *, window_seconds: float, stuck_seconds: float) -> Iterator[Doubt]:
    """Yield doubts about skipped checks. `stuck_seconds`: the minimum window of SocketQueues."""
    missing = [check.value for check in Check if check not in checks]
    if missing:
        yield Doubt(f"{_list(missing)} {'were' if len(missing) > 1 else 'was'} not run", forbids_no=True)
    if Check.SOCKET_QUEUES in checks and window_seconds < stuck_seconds:
        yield Doubt(
            f"the window of {window_seconds:.1f} s is too short to find stuck sockets: they need at least "
            f"{stuck_seconds:.1f} s",
            forbids_no=True,
        )


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def scan_doubts(coverage: ScanCoverage, stuck: Sequence[Holder], *, suspect_bytes: int) -> Iterator[Doubt]:
    """Yield losses of the socket scan. `stuck`: the stuck sockets found, which may pin more than was seen."""
    if not coverage.is_compared:
        yield Doubt("the first scan of the sockets failed, so stuck sockets could not be found", forbids_no=True)
    if not coverage.lists_every_fd:
        yield Doubt("the scan could not list every fd and every socket without an fd", forbids_no=True)
    if coverage.sockets_not_reached or coverage.queues_not_reached:
        yield Doubt(
            f"the scan did not reach {coverage.sockets_not_reached} sockets and "
            f"{coverage.queues_not_reached} queues in time",
            forbids_no=True,
        )
    if coverage.blocks_not_kept:
        yield Doubt(
            f"{coverage.blocks_not_kept} blocks of sockets were not counted: the limit of the scan is exceeded",
            forbids_no=True,
        )
    if coverage.incomplete_queues:
        cut = sum(any(not queue.complete for queue in one.socket.queues) for one in stuck if one.socket)
        of_stuck = f", including {cut} of stuck sockets" if cut else ""
        yield Doubt(
            f"{coverage.incomplete_queues} queues could not be walked to their end{of_stuck}", forbids_no=bool(cut)
        )
    if not coverage.sees_linear_heads:
        hidden_bytes = LARGEST_FRAGMENT_BYTES * sum(one.unread_packets for one in stuck)
        yield Doubt(
            "linear heads of packets cannot be distinguished from slab on this kernel, so sockets may pin more than "
            "was counted",
            forbids_no=hidden_bytes >= suspect_bytes,
        )
    if not coverage.socket_tables_complete:
        yield Doubt("a part of the kernel's tables of sockets without a process was not read", forbids_no=False)


def trace_doubts(trace: Trace, breakdown: Breakdown | None, *, suspect_bytes: int) -> Iterator[Doubt]:
    """Yield losses of the trace."""
    counters = trace.counters
    if counters.lost_records:
        yield Doubt(
            f"{counters.lost_records} allocations were not recorded because the trace's tables were full, and "
            f"{format_bytes(counters.lost_record_bytes)} of them were not freed",
            forbids_no=counters.lost_record_bytes >= suspect_bytes,
        )
    if counters.lost_stacks:
        yield Doubt(f"{counters.lost_stacks} allocations have no call stack", forbids_no=False)
    yield from _object_doubts(counters)
    missed, runs = counters.missed_runs, counters.missed_runs + counters.events_seen
    if missed >= _MISSED_SHARE * runs and missed * LARGEST_FRAGMENT_BYTES >= suspect_bytes:
        yield Doubt(
            f"the kernel skipped {missed} runs of the trace's programs, {missed / runs:.0%} of all runs",
            forbids_no=missed >= _GRAVE_MISSED_SHARE * runs,
        )
    # What the trace missed is at most the excess of the kernel's own counters, and at most the growth of AllocPage
    # beyond what the trace saw. The first readings of AllocPage are older than the trace by its loading time.
    grown_bytes = breakdown.alloc_page_change_bytes - breakdown.alloc_page_error_bytes if breakdown else 0
    missed_bytes = min(counters.untraced_bytes, grown_bytes - trace.outstanding_bytes)
    if missed_bytes >= suspect_bytes:
        yield Doubt(
            f"AllocPage grew by {format_bytes(grown_bytes)}, and the trace did not see "
            f"{format_bytes(missed_bytes)} of it",
            forbids_no=True,
        )
    elif abs(counters.untraced_bytes) >= suspect_bytes:
        yield Doubt(
            f"the trace and the kernel's own counters of allocations differ by "
            f"{format_bytes(abs(counters.untraced_bytes))}",
            forbids_no=False,
        )


def _object_doubts(counters: TraceCounters) -> Iterator[Doubt]:
    """Yield losses of the object trace: the figures of stacks of objects are too low then."""
    recorded, lost, unresolved = counters.recorded_objects, counters.lost_objects, counters.unresolved_objects
    if lost > _LOST_OBJECTS_SHARE * (recorded + lost):
        yield Doubt(
            f"{lost} of {recorded + lost} slab objects, vmalloc areas and per-CPU allocations were not recorded "
            "because the trace's table was full",
            forbids_no=False,
        )
    if unresolved > _LOST_OBJECTS_SHARE * recorded:
        yield Doubt(
            f"{unresolved} of {recorded} recorded slab objects are in no slab that could be read, and in no call stack",
            forbids_no=False,
        )


def name_doubts(stacks: Sequence[Stack], *, suspect_bytes: int) -> Iterator[Doubt]:
    """Yield a doubt if function names are missing: stacks of one leak cannot be recognized as the same then."""
    if lacks_names(stacks, suspect_bytes):
        yield Doubt(
            "the kernel provided no names for call stacks, so a leak may be spread over many of them", forbids_no=True
        )


def census_doubts(census: Census) -> Iterator[Doubt]:
    """Yield losses of the census. It does not decide whether there is a leak, but shows where memory can be."""
    if census.scanned_share < 1:
        yield Doubt(f"the census scanned {census.scanned_share:.0%} of the page frames", forbids_no=False)
