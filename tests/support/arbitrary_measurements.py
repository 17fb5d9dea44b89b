"""Arbitrary measurements of a run, for property tests."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from memdiag_api.census.slab import SlabCache, SlabCaches
from memdiag_api.containers import ContainerAccount, RemovedCgroups
from memdiag_api.evidence import (
    AllocatingProcess,
    AllocationUnit,
    Breakdown,
    Census,
    Check,
    Context,
    Holder,
    HolderKind,
    MemoryClass,
    Need,
    NeedState,
    Owner,
    ScanCoverage,
    Stack,
    Trace,
    TraceCounters,
    Trend,
)
from memdiag_api.history import HolderSize, RunSummary, SizeByName, latest_first
from memdiag_api.owners import ClassOwners
from memdiag_api.record import Record
from memdiag_node.findings.doubts import Doubt
from memdiag_node.findings.measurements import Measurements, TracedBlocks
from memdiag_node.holding import Holding
from support.measurements import START, host_of, window_of

PAGE, STRUCT_PAGE = 4096, 64
MIB = 1 << 20
NODE = "node-1"
MEM_TOTAL_BYTES = 16 << 30
CACHES = ["kmalloc-64", "dentry", "skbuff_head_cache", "x" * 253]
MAX_STACKS = 64  # as in memdiag_node.run
CLASSES = ["SUnreclaim", "SReclaimable", "Vmalloc", "Shmem", "Percpu", "AnonPages", "FileCache", "PageTables"]
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
    memory_class=st.sampled_from(["AllocPage", "Slab", "Vmalloc", "Percpu", "KernelStack", "PageTables"]),
    unit=st.sampled_from(AllocationUnit),
    slab_cache=st.sampled_from(["", *CACHES, "filp", "nf_conntrack", "x" * 256]),
    reclaimable=st.booleans(),
    outstanding_bytes=st.integers(0, 2**40),
    outstanding_blocks=st.integers(0, 2**30),
    growth_bytes_per_second=st.floats(-1e12, 1e12),
    trend=st.sampled_from(Trend),
    sampled_share=st.sampled_from([1, 1 / 16]),
    error_bytes=st.sampled_from([0, MIB]),
    processes=st.lists(
        made(
            AllocatingProcess,
            pid=st.integers(0, 5),
            comm=TEXT,
            container_id=IDS,
            pod_uid=IDS,
            outstanding_bytes=st.integers(0, 2**40),
        ),
        max_size=3,
    ),
)
OBJECT_CLASSES = st.lists(st.sampled_from(["Slab", "Vmalloc", "Percpu"]), unique=True)
TRACED = st.lists(
    st.tuples(st.integers(0, 800), st.integers(0, 3), st.just(1), st.integers(-1, 90), st.floats(1, 64)), max_size=60
)


@st.composite
def breakdowns(draw: st.DrawFn) -> Breakdown:
    """A breakdown whose classes add up to the memory of the node."""
    names = draw(st.lists(st.sampled_from(CLASSES), unique=True))
    left_bytes = MEM_TOTAL_BYTES
    classes = []
    for name in names:
        size_bytes = draw(st.integers(0, left_bytes))
        left_bytes -= size_bytes
        change_bytes = draw(st.none() | st.integers(-(2**34), 2**34))
        classes.append(MemoryClass(name=name, group="Kernel", size_bytes=size_bytes, change_bytes=change_bytes))
    alloc_page_bytes = draw(st.integers(0, left_bytes))
    left_bytes -= alloc_page_bytes
    classes += [
        MemoryClass(name="AllocPage", group="Kernel", size_bytes=alloc_page_bytes),
        MemoryClass(name="MemFree", group="Free", size_bytes=left_bytes),
    ]
    return Breakdown(
        mem_total_bytes=MEM_TOTAL_BYTES,
        classes=classes,
        alloc_page_bytes=alloc_page_bytes,
        alloc_page_error_bytes=draw(st.integers(0, 2**30)),
        alloc_page_change_bytes=draw(st.integers(-(2**40), 2**40)),
    )


BREAKDOWNS = breakdowns()
OWNED = st.builds(
    lambda name, size_bytes, share: ClassOwners(
        memory_class=name, size_bytes=size_bytes, explained_bytes=round(size_bytes * share)
    ),
    st.sampled_from(CLASSES),
    st.integers(0, MEM_TOTAL_BYTES),
    st.floats(0, 1),
)
SLABS = made(
    SlabCaches,
    caches=st.lists(
        made(
            SlabCache,
            name=st.sampled_from(CACHES),
            size_bytes=st.integers(0, 2**35),
            slabs=st.just(1),
            objects=st.integers(0, 2**40),
            places=st.just(1),
            object_bytes=st.just(64),
            reclaimable=st.booleans(),
            change_bytes=st.none() | st.integers(-(2**35), 2**35),
            purpose=TEXT,
        ),
        max_size=4,
    ),
    reclaimable_bytes=st.just(0),
    unreclaimable_bytes=st.just(0),
    difference_bytes=st.just(0),
)

SUMMARY_TEXT = st.text(max_size=64) | st.just("\u4e2d" * 64)
SIZES = st.integers(0, 64 * MIB) | st.integers(0, MEM_TOTAL_BYTES)
HISTORY = st.lists(
    made(
        RunSummary,
        run_id=st.uuids().map(str),
        end_time=st.floats(1, 30 * 86_400).map(lambda seconds: START - timedelta(seconds=seconds)),
        boot_id=st.just("b"),
        uptime_seconds=st.none() | st.floats(0, 1e7),
        mem_total_bytes=st.just(MEM_TOTAL_BYTES),
        classes=st.lists(made(SizeByName, name=st.sampled_from(CLASSES), size_bytes=SIZES), max_size=8),
        alloc_page_bytes=SIZES,
        unexplained_bytes=st.none() | SIZES,
        holders=st.lists(
            made(
                HolderSize,
                kind=st.sampled_from(HolderKind).map(str),
                owner=SUMMARY_TEXT,
                size_bytes=SIZES,
            ),
            max_size=8,
        ),
        slab_caches=st.lists(made(SizeByName, name=SUMMARY_TEXT, size_bytes=SIZES), max_size=12),
    ),
    max_size=4,
).map(latest_first)


CONTAINERS = made(ContainerAccount, container_id=IDS, usage_bytes=SIZES, limit_bytes=st.none() | SIZES)
REMOVED = made(
    RemovedCgroups,
    live=st.integers(0, 2**16),
    removed=st.integers(0, 2**16),
    percpu_bytes=SIZES,
    struct_bytes=SIZES,
)


@st.composite
def quiet_measurements(draw: st.DrawFn) -> Measurements:
    """A run with all checks, in which little is unexplained, large or growing."""
    sizes = {name: draw(st.integers(0, 64 * MIB)) for name in CLASSES}
    alloc_page_bytes = draw(st.integers(0, 64 * MIB))
    sizes |= {"AllocPage": alloc_page_bytes, "MemFree": MEM_TOTAL_BYTES - sum(sizes.values()) - alloc_page_bytes}
    return replace(
        EMPTY,
        breakdown=Breakdown(
            mem_total_bytes=MEM_TOTAL_BYTES,
            classes=[
                MemoryClass(name=name, group="Kernel", size_bytes=size_bytes, change_bytes=0)
                for name, size_bytes in sizes.items()
            ],
            alloc_page_bytes=alloc_page_bytes,
            alloc_page_error_bytes=0,
        ),
        holdings=draw(st.lists(HOLDINGS, max_size=2)),
        owners=draw(st.lists(OWNED, max_size=3)),
        history=draw(st.just([]) | HISTORY),
        census=draw(st.none() | made(Census, compound=st.just([]), slab=st.none() | SLABS)),
        containers=draw(st.lists(CONTAINERS, max_size=2)),
        removed_cgroups=draw(st.none() | REMOVED),
    )


@st.composite
def measurements(draw: st.DrawFn) -> Measurements:
    """A run with any holders, up to twice as many as are listed, and any stacks, sizes, losses and texts."""
    some = draw(st.lists(HOLDINGS, max_size=12))
    holdings = some * draw(st.sampled_from([1, 1, 40]))
    stacks = draw(st.lists(STACKS, max_size=6)) * draw(st.sampled_from([1, 10]))
    traced = np.array([(page * STRUCT_PAGE, *rest) for page, *rest in draw(TRACED)], TRACED_DTYPE)
    breakdown = draw(BREAKDOWNS)
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
        owners=draw(st.lists(OWNED, max_size=3)),
        containers=draw(st.lists(CONTAINERS, max_size=2)),
        removed_cgroups=draw(st.none() | REMOVED),
        history=draw(HISTORY) * draw(st.sampled_from([1, 1, 5])),
        census=draw(st.none() | made(Census, compound=st.just([]), slab=st.none() | SLABS)),
        trace=Trace(
            outstanding_bytes=draw(st.integers(0, 2**40)),
            outstanding_blocks=3,
            slice_seconds=3,
            object_classes=draw(OBJECT_CLASSES),
            counters=draw(
                made(
                    TraceCounters,
                    events_seen=st.integers(0, 2**40),
                    lost_records=st.integers(0, 2**40),
                    lost_record_bytes=st.integers(0, 2**40),
                    missed_runs=st.integers(0, 2**40),
                    untraced_bytes=st.integers(-(2**40), 2**40),
                    recorded_objects=st.integers(0, 2**40),
                    lost_objects=st.integers(0, 2**40),
                    unresolved_objects=st.integers(0, 2**40),
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
