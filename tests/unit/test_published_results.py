"""Every document that the runner publishes passes the checks of the operator and names the suspect."""

import io
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdiag_api.evidence import (
    LEAK_CHECKS,
    Breakdown,
    Check,
    Context,
    Evidence,
    Holder,
    HolderKind,
    MemoryClass,
    Need,
    NeedState,
    Owner,
    ScanCoverage,
    Stack,
    TerminationMessage,
    Trace,
    TraceCounters,
    Trend,
    VerdictKind,
)
from memdiag_api.framing import MAX_LOG_BYTES
from memdiag_api.record import Record
from memdiag_node.conclusion.conclude import conclude
from memdiag_node.findings.doubts import Doubt
from memdiag_node.findings.measurements import Measurements, TracedBlocks
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.holding import Holding
from memdiag_node.publish import Output, publish
from memdiag_operator.results.receive import check_document
from support.measurements import host_of, window_of

PAGE, STRUCT_PAGE = 4096, 64
MIB = 1 << 20
RUN, NODE = "run-1", "node-1"
MAX_STACKS, MAX_HOLDERS = 64, 256  # as in memdiag_node.run
ModelT = TypeVar("ModelT", bound=Record)
BLOCK_DTYPE = np.dtype([("page", "<u8"), ("order", "u1"), ("slab", "?")])
TRACED_DTYPE = np.dtype([("page", "<u8"), ("order", "u1"), ("frames", "<u4"), ("stack", "<i4"), ("weight", "<f4")])


def blocks(first: int, count: int, order: int = 0) -> npt.NDArray[np.void]:
    found = np.zeros(count, BLOCK_DTYPE)
    found["page"] = (first + (np.arange(count, dtype=np.uint64) << np.uint64(order))) * np.uint64(STRUCT_PAGE)
    found["order"] = order
    return found


EMPTY = Measurements(
    host=host_of(16 << 30, node_name=NODE),
    window=window_of(60),
    checks=tuple(Check),
    needs=(),
    breakdown=Breakdown(
        mem_total_bytes=16 << 30,
        classes=[MemoryClass(name="AllocPage", group="Kernel", size_bytes=16 * MIB)],
        alloc_page_bytes=16 * MIB,
        alloc_page_error_bytes=0,
    ),
    trace=Trace(outstanding_bytes=0, outstanding_blocks=0, slice_seconds=3, counters=TraceCounters()),
    coverage=ScanCoverage(),
)


def received(measured: Measurements) -> Evidence:
    """Return what the operator reads from the log and the termination message of a runner that measured this."""
    concluded = conclude(measured, run_id=RUN, thresholds=Thresholds(), max_stacks=MAX_STACKS, max_holders=MAX_HOLDERS)
    log = io.BytesIO()
    with TemporaryDirectory() as directory:
        termination_log = Path(directory) / "termination-log"
        publish(concluded, Output.FRAMED, log, termination_log)
        message = TerminationMessage.model_validate_json(termination_log.read_bytes(), strict=True)
    assert len(log.getvalue()) <= MAX_LOG_BYTES
    evidence = check_document(log.getvalue(), message, RUN, NODE)
    assert (evidence.verdict.holder is None) == (concluded.verdict.holder is None)
    assert (evidence.verdict.stack is None) == (concluded.verdict.stack is None)
    return evidence


def stuck(pid: int, held: npt.NDArray[np.void], *, summed: int = 1, pinned_bytes: int = 0) -> Holding:
    return Holding(
        Holder(
            kind=HolderKind.SOCKET,
            owners=[Owner(pid=pid, comm="proxy", fds=[3] if summed == 1 else [])],
            owners_total=1,
            summed=summed,
            unread_bytes=100 * summed,
            unread_packets=3 * summed,  # more than the rest of a request
            pinned_bytes=pinned_bytes or len(held) * PAGE,
            stuck_seconds=60,
        ),
        held,
    )


def test_a_leak_in_100192_sockets_is_kept_despite_300_pipes() -> None:
    """Each socket pins one page, each pipe two: by size, no single socket is among the 256 holders."""
    single = [stuck(4711, blocks(number, 1)) for number in range(192)]
    rest = stuck(4711, blocks(1_000, 100_000), summed=100_000)
    pipes = [
        Holding(
            Holder(kind=HolderKind.PIPE, owners=[Owner(pid=pid, comm="sh")], owners_total=1, pinned_bytes=2 * PAGE),
            blocks(1_000_000 + 2 * pid, 2),
        )
        for pid in range(1, 301)
    ]
    holdings = sorted([*single, rest, *pipes], key=lambda one: -one.holder.pinned_bytes)
    evidence = received(replace(EMPTY, holdings=holdings))
    verdict = evidence.verdict
    assert verdict.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET
    assert verdict.suspect_bytes == 100_192 * PAGE
    assert verdict.holder is not None
    assert evidence.holders[verdict.holder].owners[0].pid == 4711
    assert len(evidence.holders) == MAX_HOLDERS


def made(model: type[ModelT], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[ModelT]:
    """Records with these fields, and defaults for the others."""
    return st.fixed_dictionaries(fields).map(lambda values: model(**values))


TEXT = st.text(max_size=60) | st.just("\u4e2d\U0001f600" * 120)
IDS = st.sampled_from(["", "c" * 64, "\U0001f600" * 200])
OWNERS = st.lists(
    made(
        Owner,
        pid=st.integers(0, 5),
        comm=TEXT,
        command_line=st.sampled_from(["", "x" * 1024, "\U0001f600" * 1024]),
        container_id=IDS,
        pod_uid=IDS,
        fds=st.lists(st.integers(0, 2**63 - 1), max_size=64),
    ),
    max_size=16,
)
HOLDINGS = st.builds(
    lambda holder, first, count, order: Holding(
        holder.model_copy(update={"pinned_bytes": (count * PAGE) << order}), blocks(first * 16, count, order)
    ),
    made(
        Holder,
        kind=st.sampled_from(HolderKind),
        description=TEXT | st.just("\U0001f600" * 1024),
        owners=OWNERS,
        owners_total=st.integers(0, 3),
        unowned_reason=TEXT,
        summed=st.sampled_from([1, 1, 5, 100_000]),
        unread_bytes=st.integers(0, 2**40),
        unread_packets=st.integers(0, 2**30),
        pinned_bytes=st.just(0),
        stuck_seconds=st.none() | st.floats(0, 100),
    ),
    st.integers(0, 40),
    st.integers(0, 30),
    st.integers(0, 10),
)
STACKS = made(
    Stack,
    frames=st.lists(TEXT, max_size=64),
    context=st.sampled_from(Context),
    memory_class=st.sampled_from(["AllocPage", "Slab"]),
    outstanding_bytes=st.integers(0, 2**40),
    outstanding_blocks=st.integers(0, 2**30),
    growth_bytes_per_second=st.floats(-1e12, 1e12),
    trend=st.sampled_from(Trend),
)
TRACED = st.lists(
    st.tuples(st.integers(0, 800), st.integers(0, 3), st.just(1), st.integers(-1, 90), st.floats(1, 64)), max_size=60
)


@st.composite
def measurements(draw: st.DrawFn) -> Measurements:
    """A run with any holders, up to twice as many as are listed, and any stacks, sizes, losses and texts."""
    some = draw(st.lists(HOLDINGS, max_size=12))
    holdings = some * draw(st.sampled_from([1, 1, 40]))
    stacks = draw(st.lists(STACKS, max_size=6)) * draw(st.sampled_from([1, 10]))
    traced = np.array([(page * STRUCT_PAGE, *rest) for page, *rest in draw(TRACED)], TRACED_DTYPE)
    breakdown = Breakdown(
        mem_total_bytes=16 << 30,
        classes=[
            MemoryClass(name=name, group="Kernel", size_bytes=draw(st.integers(0, 2**40)))
            for name in draw(st.lists(st.sampled_from(["AllocPage", "SUnreclaim", "Vmalloc", "Shmem"]), unique=True))
        ],
        alloc_page_bytes=draw(st.integers(0, 2**40)),
        alloc_page_error_bytes=draw(st.integers(0, 2**30)),
        alloc_page_change_bytes=draw(st.integers(-(2**40), 2**40)),
    )
    need = made(
        Need,
        name=TEXT,
        state=st.sampled_from(NeedState),
        checks=st.lists(st.sampled_from(Check), max_size=3),
        detail=TEXT | st.just("\U0001f600" * 1024),
    )
    return replace(
        EMPTY,
        checks=draw(st.lists(st.sampled_from(Check), unique=True)),
        needs=draw(st.lists(need, max_size=6)) * draw(st.sampled_from([1, 10])),
        breakdown=draw(st.none() | st.just(breakdown)),
        trace=Trace(
            outstanding_bytes=draw(st.integers(0, 2**40)),
            outstanding_blocks=3,
            slice_seconds=3,
            counters=draw(
                made(
                    TraceCounters,
                    events_seen=st.integers(0, 2**40),
                    lost_records=st.integers(0, 2**40),
                    lost_record_bytes=st.integers(0, 2**40),
                    missed_runs=st.integers(0, 2**40),
                    untraced_bytes=st.integers(-(2**40), 2**40),
                )
            ),
        ),
        stacks=stacks[:MAX_STACKS],
        traced=TracedBlocks(traced, ["AllocPage"] * 91, STRUCT_PAGE),
        coverage=draw(
            made(
                ScanCoverage,
                incomplete_queues=st.integers(0, 9),
                sockets_not_reached=st.integers(0, 9),
                not_seen=st.lists(TEXT, max_size=16),
            )
        ),
        holdings=sorted(holdings, key=lambda one: -one.holder.pinned_bytes),
        notes=draw(st.lists(TEXT | st.just("x" * 5_000), max_size=3)) * draw(st.sampled_from([1, 20])),
        doubts=draw(st.lists(st.builds(Doubt, TEXT | st.just("x" * 5_000), st.booleans()), max_size=3)),
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(measurements())
def test_every_published_document_passes_the_operators_checks(measured: Measurements) -> None:
    evidence = received(measured)
    assert (evidence.verdict.kind is VerdictKind.NO_LEAK) <= (set(evidence.checks) >= set(LEAK_CHECKS))
