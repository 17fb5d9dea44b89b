"""A status stays within its limit by losing what matters least."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdiag_api.diagnosis import HolderSummary, NodeResult, StackSummary, VerdictSummary
from memdiag_api.evidence import Context, HolderKind, MemoryClass, Trend, VerdictKind
from memdiag_api.findings import Confidence, Finding
from memdiag_api.limits import MAX_RESULTS, MAX_SENTENCE, MAX_SHORT_TEXT
from memdiag_operator.results.attribution import Attribution
from memdiag_operator.results.finding import finding_summary
from memdiag_operator.status.trim import MAX_RESULTS_BYTES, fit
from support.evidence import growing_slab, ranked_findings

NOBODY = Attribution({}, {})
WIDE = "\U0001f600"
DETAILS = ("top_stacks", "top_holders", "breakdown", "coverage")
WITHOUT_DETAILS: dict[str, list[object]] = {name: [] for name in DETAILS}


def size_bytes(results: list[NodeResult]) -> int:
    return sum(len(json.dumps(one.to_json_object(), ensure_ascii=False).encode()) for one in results)


def large_result(name: str, *, findings: int = 10, details: int = 20, letter: str = "x") -> NodeResult:
    """A result with texts as long as they may be."""
    short, long = letter * MAX_SHORT_TEXT, letter * MAX_SENTENCE
    finding: Finding = growing_slab().model_copy(update={"sentence": long, "advice": long})
    summary = finding_summary(finding, NOBODY)
    stack = StackSummary(
        frames=[short] * 8, context=Context.PROCESS, trend=Trend.PINNED, outstanding_bytes=1, outstanding_blocks=1
    )
    return NodeResult(
        node_name=name,
        reason="Completed",
        message=long,
        suspect=short,
        verdict=VerdictSummary(kind=VerdictKind.LEAKED_MEMORY, confidence=Confidence.HIGH, sentence=long, advice=long),
        findings=[summary.model_copy(update={"size_bytes": rank}) for rank in range(findings)],
        top_stacks=[stack] * details,
        top_holders=[HolderSummary(kind=HolderKind.SOCKET, comm=short)] * details,
        breakdown=[MemoryClass(name="AllocPage", group="Kernel", size_bytes=1)] * details,
        coverage=[long] * min(details, 16),
    )


@pytest.mark.parametrize("letter", ["x", "é", WIDE], ids=["ASCII", "two bytes", "four bytes"])
@pytest.mark.parametrize("nodes", [1, 2, MAX_RESULTS])
def test_the_longest_texts_fit_and_the_first_finding_stays(nodes: int, letter: str) -> None:
    results = [large_result(f"n{number}", letter=letter) for number in range(nodes)]
    fitting, truncated = fit(results)
    assert truncated
    assert size_bytes(fitting) <= MAX_RESULTS_BYTES
    assert [one.node_name for one in fitting] == [one.node_name for one in results[: len(fitting)]]
    assert fitting[0].findings[0] == results[0].findings[0]
    assert fitting[0].verdict == results[0].verdict


def test_details_of_later_nodes_go_before_any_finding() -> None:
    results = [large_result("first", details=1), *(large_result(f"n{at}", findings=2, details=2) for at in range(4))]
    bare = [one.model_copy(update=WITHOUT_DETAILS) for one in results[1:]]
    fitting, truncated = fit(results, size_bytes([results[0], *bare]))
    assert truncated
    assert fitting == [results[0], *bare]


def test_findings_of_later_nodes_go_down_to_three_before_details_of_the_first() -> None:
    first = large_result("first", findings=3, details=1)
    results = [first, *(large_result(f"n{at}", findings=6, details=2) for at in range(2))]
    fewer = [one.model_copy(update={**WITHOUT_DETAILS, "findings": one.findings[:3]}) for one in results[1:]]
    fitting, _ = fit(results, size_bytes([results[0], *fewer]))
    assert fitting == [results[0], *fewer]


def test_the_first_findings_of_all_nodes_stay_longer_than_the_rest_of_any() -> None:
    results = [large_result(f"n{at}", details=1) for at in range(3)]
    least = [one.model_copy(update={**WITHOUT_DETAILS, "findings": one.findings[:1]}) for one in results]
    fitting, _ = fit(results, size_bytes(least))
    assert fitting == least


def test_a_first_node_with_endless_details_does_not_displace_those_of_others() -> None:
    results = [large_result("first", findings=1), *(large_result(f"n{at}", findings=1, details=1) for at in range(3))]
    fitting, _ = fit(results, 2 * size_bytes(results[1:]))
    assert fitting[1:] == results[1:]


def test_where_nothing_else_helps_the_last_nodes_are_left_to_their_reports() -> None:
    results = [large_result(f"n{at}", details=0) for at in range(4)]
    fitting, truncated = fit(results, 1)
    assert truncated
    (only,) = fitting
    assert only.findings == results[0].findings[:1]


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 6)), min_size=1, max_size=6),
    st.integers(0, 200_000),
)
def test_what_is_kept_is_a_prefix_of_what_there_was(shapes: list[tuple[int, int]], limit_bytes: int) -> None:
    results = [large_result(f"n{at}", findings=few, details=more) for at, (few, more) in enumerate(shapes)]
    fitting, truncated = fit(results, limit_bytes)
    assert truncated == (fitting != results)
    assert size_bytes(fitting) <= limit_bytes or len(fitting) == 1
    for kept, whole in zip(fitting, results, strict=False):
        for name in ("findings", *DETAILS):
            part = getattr(kept, name)
            assert part == getattr(whole, name)[: len(part)]
    assert fitting[0].findings[:1] == results[0].findings[:1]


def test_an_ordinary_run_loses_nothing() -> None:
    findings = [finding_summary(one, NOBODY) for one in ranked_findings()[:10]]
    results = [large_result("n1", findings=0, details=2).model_copy(update={"findings": findings})]
    assert fit(results) == (results, False)
