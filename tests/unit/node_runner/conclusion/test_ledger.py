"""The ledger: its parts always add up to allocpage."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.evidence import (
    Breakdown,
    Check,
    ContainerShare,
    Context,
    Evidence,
    Holder,
    HolderKind,
    Ledger,
    Owner,
    Stack,
    Trace,
    TraceCounters,
    VerdictKind,
)
from memdiag_node.conclusion.conclude import conclude
from memdiag_node.conclusion.ledger import ledger_of
from memdiag_node.findings.measurements import Measurements, TracedBlocks
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.holding import Holding
from support.measurements import host_of, window_of

PAGE = 4096
STRUCT_PAGE = 64
FRAMES = 64  # of the small machine below
HELD = np.dtype([("page", "<u8"), ("order", "u1"), ("slab", "?")])
TRACED = np.dtype([("page", "<u8"), ("order", "u1"), ("frames", "<u4"), ("stack", "<i4"), ("weight", "<f4")])
SIZES = st.integers(0, 1 << 50)


def breakdown_of(alloc_page_bytes: int) -> Breakdown:
    return Breakdown(mem_total_bytes=1 << 51, classes=[], alloc_page_bytes=alloc_page_bytes, alloc_page_error_bytes=0)


def total_bytes(ledger: Ledger) -> int:
    return sum(line.size_bytes for line in ledger.lines) + ledger.unexplained_bytes


@given(alloc_page=SIZES, held=st.dictionaries(st.sampled_from(HolderKind), SIZES), unheld=SIZES)
def test_lines_and_rest_always_add_up(alloc_page: int, held: dict[HolderKind, int], unheld: int) -> None:
    ledger = ledger_of(breakdown_of(alloc_page), held_by_kind_bytes=held, containers=[], unheld_bytes=unheld)
    assert total_bytes(ledger) == ledger.alloc_page_bytes == alloc_page
    assert {line.name: line.size_bytes for line in ledger.lines} == {
        "TracedWithoutHolder": unheld,
        **{f"{kind.value}s": size for kind, size in held.items()},
    }


def held(*rows: tuple[int, int], slab: bool = False) -> npt.NDArray[np.void]:
    """Blocks of (first frame, order)."""
    return np.array([(frame * STRUCT_PAGE, order, slab) for frame, order in rows], HELD)


def holding(kind: HolderKind, blocks: npt.NDArray[np.void], *, pinned_bytes: int = 0, container: str = "") -> Holding:
    owners = [Owner(pid=1, comm="x", container_id=container)] if container else []
    own_bytes = int((PAGE << blocks["order"].astype(np.int64)).sum())
    return Holding(Holder(kind=kind, owners=owners, pinned_bytes=pinned_bytes or own_bytes), blocks)


def evidence_of(
    holdings: list[Holding],
    *,
    alloc_page_bytes: int = 1 << 20,
    traced: tuple[tuple[int, int, int], ...] = (),
    classes: tuple[str, ...] = ("AllocPage",),
    max_stacks: int = 64,
    max_holders: int = 256,
) -> Evidence:
    """Return the evidence of a run. `traced`: first frame, order, stack."""
    blocks = np.array([(frame * STRUCT_PAGE, order, 1 << order, stack, 1.0) for frame, order, stack in traced], TRACED)
    alloc_page_frames = sum(1 << order for _, order, stack in traced if classes[stack] == "AllocPage")
    measured = Measurements(
        host=host_of(1 << 40),
        window=window_of(1),
        checks=tuple(Check),
        needs=(),
        breakdown=breakdown_of(alloc_page_bytes),
        trace=Trace(
            outstanding_bytes=alloc_page_frames * PAGE,
            outstanding_blocks=len(traced),
            slice_seconds=1,
            counters=TraceCounters(),
        ),
        stacks=[
            Stack(
                frames=["f"],
                context=Context.PROCESS,
                memory_class=name,
                outstanding_bytes=sum(PAGE << order for _, order, of in traced if of == number),
                outstanding_blocks=1,
            )
            for number, name in enumerate(classes)
        ],
        traced=TracedBlocks(blocks, classes, STRUCT_PAGE),
        holdings=sorted(holdings, key=lambda one: -one.holder.pinned_bytes),
    )
    return conclude(measured, run_id="run", thresholds=Thresholds(), max_stacks=max_stacks, max_holders=max_holders)


def test_what_was_traced_and_has_no_holder_is_not_explained() -> None:
    """30 GiB that a driver allocated at once in the window: neither held nor growing, but too large for NoLeak."""
    gib, order = 1 << 30, 18
    traced = tuple((number << order, order, 0) for number in range(30))
    evidence = evidence_of([], alloc_page_bytes=31 * gib, traced=traced)
    assert lines_of(evidence)["TracedWithoutHolder"] == 30 * gib // PAGE
    assert evidence.verdict.kind is VerdictKind.SUSPICIOUS_MEMORY
    assert evidence.verdict.sentence.startswith("30.0 GiB were allocated in the window through f, not freed")


def lines_of(evidence: Evidence) -> dict[str, int]:
    """The lines in pages, with the rest."""
    assert evidence.ledger is not None
    lines = {line.name: line.size_bytes // PAGE for line in evidence.ledger.lines}
    return {**lines, "rest": evidence.ledger.unexplained_bytes // PAGE}


ROWS = st.lists(st.tuples(st.integers(0, FRAMES // 4 - 1).map(lambda place: 4 * place), st.integers(0, 2)), max_size=8)


@given(
    holders=st.lists(st.tuples(st.sampled_from(HolderKind), ROWS), max_size=6),
    traced=ROWS.map(dict),
    alloc_page=st.integers(0, 2 * FRAMES),
)
def test_it_adds_up_and_no_traced_page_is_in_two_lines(
    holders: list[tuple[HolderKind, list[tuple[int, int]]]], traced: dict[int, int], alloc_page: int
) -> None:
    """Blocks are 4 frames apart and each has one size, so a frame identifies its block."""
    orders = {
        place: max((o for _, rows in holders for p, o in rows if p == place), default=0) for place in range(FRAMES)
    }
    holdings = [holding(kind, held(*{(place, orders[place]) for place, _ in rows})) for kind, rows in holders]
    evidence = evidence_of(
        holdings,
        alloc_page_bytes=alloc_page * PAGE,
        traced=tuple((place, max(order, orders[place]), 0) for place, order in traced.items()),
    )
    assert evidence.ledger is not None
    assert total_bytes(evidence.ledger) == evidence.ledger.alloc_page_bytes
    found = {place for _, rows in holders for place, _ in rows}
    without = sum(1 << max(order, orders[place]) for place, order in traced.items() if place not in found)
    assert lines_of(evidence)["TracedWithoutHolder"] == without


def test_blocks_that_the_kernel_counts_as_slab_are_pinned_and_in_no_line() -> None:
    """They do not compensate for traced pages without a holder either: their stack is of another class."""
    large = holding(HolderKind.SOCKET, held((0, 2), slab=True), container="c")
    evidence = evidence_of(
        [large, holding(HolderKind.PIPE, held((8, 0)), container="c")],
        traced=((0, 2, 1), (8, 0, 0), (9, 0, 0)),
        classes=("AllocPage", "Slab"),
    )
    assert lines_of(evidence) == {"Sockets": 0, "Pipes": 1, "TracedWithoutHolder": 1, "rest": 254}
    assert evidence.holders[0].pinned_bytes == 4 * PAGE
    assert evidence.ledger is not None
    assert evidence.ledger.containers == [ContainerShare(container_id="c", size_bytes=PAGE)]


def test_memory_of_another_class_and_heads_in_slab_are_in_no_line() -> None:
    owner = Owner(pid=1, comm="x", container_id="c")
    maps = Holder(kind=HolderKind.BPF_MAP, memory_class="Vmalloc", owners=[owner], pinned_bytes=64 * PAGE)
    heads = Holder(kind=HolderKind.SOCKET, owners=[owner], pinned_bytes=0, head_bytes=64 * PAGE)
    nothing = held()
    evidence = evidence_of([Holding(maps, nothing), Holding(heads, nothing)])
    assert lines_of(evidence) == {"Sockets": 0, "TracedWithoutHolder": 0, "rest": 256}
    assert evidence.ledger is not None
    assert evidence.ledger.containers == []


def test_a_block_of_two_sockets_is_counted_once() -> None:
    both = [holding(HolderKind.SOCKET, held((0, 3))), holding(HolderKind.SOCKET, held((0, 3), (8, 0)))]
    assert lines_of(evidence_of(both))["Sockets"] == 9


def test_the_line_of_a_pool_has_its_count_and_its_traced_blocks_belong_to_it() -> None:
    """It has 100 blocks in use, two of them allocated in the window."""
    pool = holding(HolderKind.PAGE_POOL, held((0, 0), (1, 0)), pinned_bytes=100 * PAGE)
    evidence = evidence_of([pool], traced=((0, 0, 0), (1, 0, 0), (2, 0, 0)))
    assert lines_of(evidence) == {"PagePools": 100, "TracedWithoutHolder": 1, "rest": 155}
    assert evidence.holders[0].filled_by[0].share == 0.02
    assert evidence.stacks[0].held_by[0].size_bytes == 2 * PAGE


def test_lines_that_add_up_to_more_than_allocpage_leave_a_negative_rest() -> None:
    assert lines_of(evidence_of([holding(HolderKind.PIPE, held((0, 3)))], alloc_page_bytes=6 * PAGE)) == {
        "Pipes": 8,
        "TracedWithoutHolder": 0,
        "rest": -2,
    }


def test_items_beyond_the_lists_count_and_are_not_referred_to() -> None:
    """Three holders and stacks; the document has space for one of each."""
    holdings = [holding(HolderKind.PIPE, held((8 * number, order))) for number, order in ((0, 2), (1, 1), (2, 0))]
    evidence = evidence_of(
        holdings,
        traced=((0, 2, 0), (8, 1, 0), (16, 0, 1)),
        classes=("AllocPage", "AllocPage"),
        max_stacks=1,
        max_holders=1,
    )
    assert lines_of(evidence) == {"Pipes": 7, "TracedWithoutHolder": 0, "rest": 249}
    assert [part.holder for part in evidence.stacks[0].held_by] == [0]
    assert evidence.stacks[0].explained_bytes == 6 * PAGE
    assert [part.stack for part in evidence.holders[0].filled_by] == [0]
