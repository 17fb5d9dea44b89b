"""Growth since earlier runs: every way in which sizes can develop, and what is said about it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from memdiag_api.census.slab import SlabCache, SlabCaches
from memdiag_api.evidence import (
    Breakdown,
    Census,
    Check,
    Evidence,
    Holder,
    HolderKind,
    LeakDetected,
    MemoryClass,
    Owner,
    ScanCoverage,
    VerdictKind,
)
from memdiag_api.findings import Confidence, Finding, FindingKind, LeakAnswer
from memdiag_api.history import RunSummary
from memdiag_node.conclusion.conclude import conclude
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from memdiag_node.history import comparable
from memdiag_node.holding import PINNED_DTYPE, Holding
from support.arbitrary_measurements import blocks
from support.measurements import START, host_of, window_of

DAY = 86_400.0
HOUR = 3600.0
TOTAL_BYTES = 512 * GIB
FREE_BYTES = 400 * GIB


def run(
    at_seconds: float,
    *,
    alloc_page: int = 2 * GIB,
    classes: dict[str, int] | None = None,
    caches: dict[str, int] | None = None,
    pipe_pages: int = 0,
    history: Sequence[RunSummary] = (),
    uptime_seconds: float | None = None,
    boot_id: str = "b",
    is_scanned: bool = True,
    own_bytes: int = 0,
    total_bytes: int = TOTAL_BYTES,
    free_bytes: int = FREE_BYTES,
) -> Evidence:
    """A run that ended so long after the start, on a node with these sizes. The pipe is of reader[7]."""
    end = START + timedelta(seconds=at_seconds)
    host = host_of(total_bytes).model_copy(update={"boot_id": boot_id})
    sizes = {"AllocPage": alloc_page, "MemFree": free_bytes, **(classes or {})}
    pipe = Holder(kind=HolderKind.PIPE, owners=[Owner(pid=7, comm="reader")], pinned_bytes=pipe_pages * 4096)
    own = Holder(kind=HolderKind.BPF_MAP, memory_class="Vmalloc", pinned_bytes=own_bytes)
    measured = Measurements(
        host=host,
        window=window_of(60).model_copy(update={"start_time": end - timedelta(seconds=60), "end_time": end}),
        checks=tuple(Check),
        needs=(),
        breakdown=Breakdown(
            mem_total_bytes=total_bytes,
            classes=[MemoryClass(name=name, group="Kernel", size_bytes=size) for name, size in sizes.items()],
            alloc_page_bytes=alloc_page,
            alloc_page_error_bytes=MIB,
        ),
        census=Census(compound=[], slab=slab(caches)) if caches else None,
        coverage=ScanCoverage() if is_scanned else None,
        own_holdings=[Holding(own, blocks(1, 0).astype(PINNED_DTYPE), is_own=True)],
        holdings=[Holding(pipe, blocks(1, pipe_pages).astype(PINNED_DTYPE))] if pipe_pages else (),
        history=comparable(history, boot_id=boot_id, now=end),
        uptime_seconds=uptime_seconds,
    )
    return conclude(measured, run_id=f"run-{at_seconds}", thresholds=Thresholds(), max_stacks=64, max_holders=64)


@pytest.mark.parametrize(("own_bytes", "is_growth"), [(0, True), (2 * GIB, False)])
def test_bpf_maps_of_the_run_itself_do_not_count_as_growth(own_bytes: int, is_growth: bool) -> None:
    first = run(0, classes={"Vmalloc": GIB})
    assert first.summary
    second = run(DAY, classes={"Vmalloc": 3 * GIB}, own_bytes=own_bytes, history=[first.summary])
    assert bool(growth(second)) is is_growth
    assert not [one for one in second.holders if one.kind is HolderKind.BPF_MAP]


def slab(caches: dict[str, int]) -> SlabCaches:
    return SlabCaches(
        caches=[
            SlabCache(name=name, size_bytes=size, slabs=1, objects=1, places=1, object_bytes=64, reclaimable=False)
            for name, size in caches.items()
        ],
        reclaimable_bytes=0,
        unreclaimable_bytes=0,
        difference_bytes=0,
    )


def series(*runs: tuple[float, int], **parts: object) -> Evidence:
    """Runs one after the other, each with the history of the one before: (time, AllocPage)."""
    kept: list[RunSummary] = []
    evidence: Evidence | None = None
    for at_seconds, alloc_page in runs:
        evidence = run(at_seconds, alloc_page=alloc_page, history=kept, **parts)  # type: ignore[arg-type]
        assert evidence.summary
        kept = [evidence.summary, *evidence.history]
    assert evidence
    return evidence


def growth(evidence: Evidence) -> list[Finding]:
    return [one for one in evidence.findings if one.kind is FindingKind.GROWTH_SINCE_RUN]


def test_a_leak_of_1_gib_a_day_is_found_by_two_short_runs_a_day_apart_on_512_gib() -> None:
    evidence = series((0, 2 * GIB), (DAY, 3 * GIB))
    (found,) = growth(evidence)
    assert found.sentence == (
        "AllocPage grew by 1.00 GiB since 2 Jan 03:04, 1.00 GiB a day: 1.00 GiB more are in no known holder."
    )
    assert (found.leak, found.size_bytes, found.counted_bytes) == (LeakAnswer.UNKNOWN, GIB, 0)
    assert found.trend
    assert found.trend.over_seconds == DAY
    assert found.trend.exhausts_node_in_seconds == pytest.approx(400 * DAY)
    assert evidence.leak_detected is LeakDetected.UNKNOWN
    assert [one.run_id for one in evidence.history] == ["run-0"]


def test_a_third_run_shows_that_it_is_a_leak() -> None:
    evidence = series((0, 2 * GIB), (DAY, 3 * GIB), (2 * DAY, 4 * GIB))
    assert evidence.verdict.kind is VerdictKind.LEAKED_MEMORY
    assert evidence.leak_detected is LeakDetected.TRUE
    assert evidence.verdict.sentence.startswith("AllocPage grew by 2.00 GiB since 2 Jan 03:04, 1.00 GiB a day")
    (found,) = growth(evidence)
    assert (found.leak, found.confidence) == (LeakAnswer.YES, Confidence.MEDIUM)
    assert found.evidence.sections == ["history", "breakdown"]
    assert "3 runs: every interval grew, and a line explains 100% of it" in found.reasons


DEVELOPMENTS: list[tuple[str, list[tuple[float, int]], list[LeakAnswer]]] = [
    ("a single run", [(0, 2000)], []),
    ("no change", [(0, 2000), (DAY, 2000), (2 * DAY, 2000)], []),
    ("noise of 30 MiB", [(0, 2000), (HOUR, 2030), (2 * HOUR, 1990), (3 * HOUR, 2020)], []),
    ("it shrinks", [(0, 5000), (DAY, 4000), (2 * DAY, 3000)], []),
    ("up and down", [(0, 2000), (DAY, 3000), (2 * DAY, 2000), (3 * DAY, 2900)], []),
    ("a saw with several teeth", [(0, 10), (9e4, 400), (18e4, 10), (27e4, 200), (36e4, 390)], []),
    ("too slow to matter", [(0, 2000), (10 * DAY, 2200)], []),
    ("63 MiB", [(0, 2000), (HOUR, 2063)], []),
    ("64 MiB an hour", [(0, 2000), (HOUR, 2066)], [LeakAnswer.UNKNOWN]),
    ("a few minutes, below the share of the node", [(0, 2000), (300, 2200)], []),
    ("a few minutes, much", [(0, 2000), (300, 4000)], [LeakAnswer.UNKNOWN]),
    ("three runs within an hour", [(0, 2000), (600, 4000), (1200, 6000)], [LeakAnswer.UNKNOWN]),
    ("three runs in two hours, a start", [(0, 2000), (HOUR, 2200), (2 * HOUR, 2400)], [LeakAnswer.UNKNOWN]),
    ("three runs in two hours, large", [(0, 2000), (HOUR, 9000), (2 * HOUR, 16000)], [LeakAnswer.YES]),
    ("less steady", [(0, 2000), (DAY, 5000), (2 * DAY, 4500), (3 * DAY, 8000)], [LeakAnswer.UNKNOWN]),
    ("four runs on a line", [(0, 2000), (DAY, 2600), (2 * DAY, 3200), (3 * DAY, 3800)], [LeakAnswer.YES]),
    ("a leak that began yesterday", [*((day * DAY, 2000) for day in range(9)), (9 * DAY, 3000)], [LeakAnswer.UNKNOWN]),
    (
        "a leak that began three days ago",
        [*((day * DAY, 2000) for day in range(7)), (7 * DAY, 3000), (8 * DAY, 4000), (9 * DAY, 5000)],
        [LeakAnswer.YES],
    ),
]


@pytest.mark.parametrize(("name", "sizes", "answers"), DEVELOPMENTS)
def test_each_development_has_its_answer(name: str, sizes: list[tuple[float, int]], answers: list[LeakAnswer]) -> None:
    evidence = series(*((at_seconds, size * MIB) for at_seconds, size in sizes))
    assert [one.leak for one in growth(evidence)] == answers, (name, [one.sentence for one in growth(evidence)])


def test_another_boot_is_not_compared() -> None:
    first = run(0, alloc_page=2 * GIB, boot_id="before")
    assert first.summary
    evidence = run(DAY, alloc_page=9 * GIB, history=[first.summary])
    assert (growth(evidence), evidence.history) == ([], [])


def test_the_first_hour_after_boot_is_no_leak() -> None:
    """Caches fill then. Only the large size is suspicious, and later runs are compared with a later one."""
    first = run(0, alloc_page=2 * GIB, uptime_seconds=600)
    assert first.summary
    assert growth(run(DAY, alloc_page=4 * GIB, history=[first.summary])) == []
    second = run(DAY, alloc_page=16 * GIB, history=[first.summary], uptime_seconds=DAY + 600)
    (found,) = growth(second)
    assert (found.leak, found.confidence) == (LeakAnswer.UNKNOWN, Confidence.LOW)
    assert second.summary
    third = run(2 * DAY, alloc_page=17 * GIB, history=[second.summary, first.summary])
    (found,) = growth(third)
    assert "grew by 1.00 GiB since 3 Jan 03:04" in found.sentence
    assert (found.leak, found.confidence) == (LeakAnswer.UNKNOWN, Confidence.MEDIUM)


def test_growth_in_a_known_holder_is_named_and_no_leak() -> None:
    first = run(0, alloc_page=2 * GIB)
    assert first.summary
    evidence = run(DAY, alloc_page=3 * GIB, pipe_pages=GIB // 4096, history=[first.summary])
    (found,) = growth(evidence)
    assert found.leak is LeakAnswer.NO
    assert found.sentence.endswith("1.00 GiB a day: Pipe of reader[7] has 1.00 GiB more.")


def test_growth_is_not_called_unexplained_after_a_run_without_a_scan() -> None:
    first = run(0, alloc_page=2 * GIB, pipe_pages=1000, is_scanned=False)
    assert first.summary
    assert first.summary.unexplained_bytes is None
    (found,) = growth(run(DAY, alloc_page=3 * GIB, pipe_pages=GIB // 4096, history=[first.summary]))
    assert (found.leak, "cannot be compared" in found.sentence) == (LeakAnswer.UNKNOWN, True)


def test_the_slab_cache_that_grew_is_named() -> None:
    kept: list[RunSummary] = []
    for day in range(3):
        more = day * GIB
        evidence = run(
            day * DAY,
            classes={"SUnreclaim": GIB + more},
            caches={"kmalloc-64": 100 * MIB + more, "task_struct": 500 * MIB},
            history=kept,
        )
        assert evidence.summary
        kept = [evidence.summary, *evidence.history]
    (found,) = growth(evidence)
    assert found.leak is LeakAnswer.YES
    assert found.owner
    assert (found.owner.name, found.memory_class) == ("kmalloc-64", "SUnreclaim")
    assert "the slab cache kmalloc-64 has 2.00 GiB more" in found.sentence


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("Vmalloc", LeakAnswer.UNKNOWN),
        ("Percpu", LeakAnswer.UNKNOWN),
        ("SecPageTables", LeakAnswer.UNKNOWN),
        ("Shmem", LeakAnswer.NO),
        ("PageTables", LeakAnswer.NO),
        ("KernelStack", LeakAnswer.NO),
    ],
)
def test_other_classes_are_not_called_a_leak(name: str, answer: LeakAnswer) -> None:
    kept: list[RunSummary] = []
    for day in range(4):
        evidence = run(day * DAY, classes={name: (1 + day) * GIB}, history=kept)
        assert evidence.summary
        kept = [evidence.summary, *evidence.history]
    (found,) = growth(evidence)
    assert (found.memory_class, found.leak) == (name, answer)
    assert found.sentence == f"{name} grew by 3.00 GiB since 2 Jan 03:04, 1.00 GiB a day."


def test_slow_growth_matters_if_it_exhausts_a_small_node() -> None:
    sizes = [(day * DAY, (500 + 100 * day) * MIB) for day in range(4)]
    small = {"total_bytes": 4 * GIB, "free_bytes": GIB}
    assert [one.leak for one in growth(series(*sizes, **small))] == [LeakAnswer.YES]
    assert growth(series(*sizes)) == []


def test_pages_of_xfs_buffers_are_no_leak() -> None:
    kept: list[RunSummary] = []
    for day in range(3):
        evidence = run(day * DAY, alloc_page=(2 + day) * GIB, caches={"xfs_buf": 200 * MIB}, history=kept)
        assert evidence.summary
        kept = [evidence.summary, *evidence.history]
    assert [one.leak for one in growth(evidence)] == [LeakAnswer.YES]
    assert evidence.census
    assert evidence.census.slab
    buffers = slab({"xfs_buf": 200 * MIB}).caches[0].model_copy(update={"objects": GIB // 4096, "reclaimable": True})
    measured = run(2 * DAY, alloc_page=4 * GIB, history=kept[1:])
    assert [one.leak for one in growth(measured)] == [LeakAnswer.YES]
    census = Census(compound=[], slab=slab({"x": 1}).model_copy(update={"caches": [buffers]}))
    with_buffers = replace(
        Measurements(
            host=measured.host,
            window=measured.window,
            checks=measured.checks,
            needs=(),
            breakdown=measured.breakdown,
            coverage=measured.coverage,
            history=measured.history,
        ),
        census=census,
    )
    answer = conclude(with_buffers, run_id="r", thresholds=Thresholds(), max_stacks=64, max_holders=64)
    (found,) = growth(answer)
    assert found.leak is LeakAnswer.UNKNOWN
    assert found.reasons[0].startswith("xfs_buf has 262,144 objects")
