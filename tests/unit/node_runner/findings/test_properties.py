"""What holds for the findings of any run."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from memdiag_api.evidence import Check, Evidence, LeakDetected, MemoryClass
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_node.conclusion.conclude import conclude
from memdiag_node.findings.doubts import Doubt
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.thresholds import Thresholds
from support.arbitrary_measurements import MEM_TOTAL_BYTES, measurements, quiet_measurements

ANY_RUN = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
RUNS = measurements() | quiet_measurements()
TIERS = [LeakAnswer.YES, LeakAnswer.UNKNOWN, LeakAnswer.NO]


def concluded(measured: Measurements) -> Evidence:
    return conclude(measured, run_id="run", thresholds=Thresholds(), max_stacks=64, max_holders=256)


@ANY_RUN
@given(measurements())
def test_findings_account_for_at_most_the_memory_that_there_is(measured: Measurements) -> None:
    evidence = concluded(measured)
    assert sum(one.counted_bytes for one in evidence.findings) <= MEM_TOTAL_BYTES
    assert all(one.counted_bytes <= one.size_bytes for one in evidence.findings)
    assert evidence.explained_bytes <= MEM_TOTAL_BYTES


@ANY_RUN
@given(measurements())
def test_leaks_come_first_and_decide_the_answer(measured: Measurements) -> None:
    evidence = concluded(measured)
    answers = [one.leak for one in evidence.findings]
    assert answers == sorted(answers, key=TIERS.index)
    if LeakAnswer.YES in answers:
        assert evidence.leak_detected is LeakDetected.TRUE
    elif LeakAnswer.UNKNOWN in answers:
        assert evidence.leak_detected is LeakDetected.UNKNOWN
    else:
        assert evidence.leak_detected is not LeakDetected.TRUE


@ANY_RUN
@given(quiet_measurements())
def test_false_needs_every_leak_check_and_little_that_is_unexplained(measured: Measurements) -> None:
    evidence = concluded(measured)
    assume(evidence.leak_detected is LeakDetected.FALSE)
    assert {Check.BREAKDOWN, Check.ALLOC_PAGE_TRACE, Check.SOCKET_QUEUES} <= set(evidence.checks)
    assert evidence.breakdown is not None
    assert not [one for one in evidence.findings if one.kind is FindingKind.UNEXPLAINED]
    unexplained_bytes = MEM_TOTAL_BYTES - evidence.explained_bytes
    assert unexplained_bytes < Thresholds().large_bytes(MEM_TOTAL_BYTES)


def grown(measured: Measurements, name: str, size_bytes: int) -> Measurements:
    """The same run, with so much free memory in this class instead, of which nothing else is known."""
    breakdown = measured.breakdown
    assert breakdown is not None
    sizes = {one.name: one for one in breakdown.classes}
    moved_bytes = min(size_bytes, sizes["MemFree"].size_bytes)
    one = sizes.get(name) or MemoryClass(name=name, group="Kernel", size_bytes=0)
    sizes[name] = one.model_copy(update={"size_bytes": one.size_bytes + moved_bytes})
    sizes["MemFree"] = sizes["MemFree"].model_copy(update={"size_bytes": sizes["MemFree"].size_bytes - moved_bytes})
    classes = list(sizes.values())
    alloc_page_bytes = breakdown.alloc_page_bytes + (moved_bytes if name == "AllocPage" else 0)
    update = {"classes": classes, "alloc_page_bytes": alloc_page_bytes}
    return replace(measured, breakdown=breakdown.model_copy(update=update))


@ANY_RUN
@given(RUNS, st.sampled_from(["AllocPage", "SUnreclaim", "Vmalloc", "Percpu", "Shmem"]), st.integers(0, 2**34))
def test_more_unexplained_memory_never_makes_the_answer_false(
    measured: Measurements, name: str, size_bytes: int
) -> None:
    if measured.breakdown is not None and concluded(measured).leak_detected is not LeakDetected.FALSE:
        assert concluded(grown(measured, name, size_bytes)).leak_detected is not LeakDetected.FALSE


def without(measured: Measurements, check: Check) -> Measurements:
    """The same run without one of the checks and what it measured."""
    checks = [one for one in measured.checks if one is not check]
    match check:
        case Check.BREAKDOWN:
            return replace(measured, checks=checks, breakdown=None)
        case Check.ALLOC_PAGE_TRACE:
            return replace(measured, checks=checks, trace=None, stacks=(), traced=None)
        case Check.SOCKET_QUEUES:
            return replace(measured, checks=checks, coverage=None, holdings=())
        case Check.OWNERS:
            return replace(measured, checks=checks, owners=(), processes=())
        case Check.CONTAINERS:
            return replace(measured, checks=checks, containers=(), removed_cgroups=None)
        case Check.KERNEL_OBJECTS:
            return replace(measured, checks=checks, census=None)


LOSSES: Sequence[Callable[[Measurements], Measurements]] = (
    *(lambda measured, check=check: without(measured, check) for check in Check),
    lambda measured: replace(measured, doubts=(*measured.doubts, Doubt("something was not seen", forbids_no=True))),
    lambda measured: replace(measured, owners=()),
    lambda measured: replace(
        measured, coverage=measured.coverage and measured.coverage.model_copy(update={"sockets_not_reached": 7})
    ),
)


@pytest.mark.parametrize("lose", LOSSES)
@ANY_RUN
@given(measured=RUNS)
def test_what_was_not_measured_never_makes_the_answer_false(
    lose: Callable[[Measurements], Measurements], measured: Measurements
) -> None:
    before = concluded(measured)
    after = concluded(lose(measured))
    if before.leak_detected is not LeakDetected.FALSE:
        assert after.leak_detected is not LeakDetected.FALSE, (before.verdict, after.verdict)
