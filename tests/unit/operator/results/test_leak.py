"""Whether a node has a leak: the runner's word, and when the operator does not take it."""

import pytest

from memdiag_api.conditions import ConditionStatus
from memdiag_api.diagnosis import NodeState
from memdiag_api.evidence import LEAK_CHECKS, Check, Evidence, LeakDetected, VerdictKind
from memdiag_operator.results.leak import answer_of, leak_status
from support.evidence import answered, clean, evidence_with, growing_slab, process_memory, unexplained

TRUE, FALSE, UNKNOWN = LeakDetected.TRUE, LeakDetected.FALSE, LeakDetected.UNKNOWN


def answer(evidence: Evidence) -> tuple[VerdictKind, LeakDetected]:
    verdict, leak = answer_of(evidence)
    return verdict.kind, leak


@pytest.mark.parametrize(
    ("kind", "leak"),
    [
        (VerdictKind.PINNED_BY_UNREAD_SOCKET, TRUE),
        (VerdictKind.GROWING_KERNEL_ALLOCATION, TRUE),
        (VerdictKind.LARGE_BUT_UNEXPLAINED, UNKNOWN),
        (VerdictKind.INCONCLUSIVE, UNKNOWN),
        (VerdictKind.NO_LEAK, FALSE),
    ],
)
def test_a_document_of_version_0_1_0_says_it_by_its_verdict(kind: VerdictKind, leak: LeakDetected) -> None:
    template = evidence_with()
    verdict = template.verdict.model_copy(update={"kind": kind})
    assert answer(template.model_copy(update={"verdict": verdict})) == (kind, leak)
    stored = NodeState(node_name="n1", reason="Completed", verdict=kind)
    assert leak_status(stored) == ConditionStatus(leak.value)


@pytest.mark.parametrize("kind", [kind for kind in VerdictKind if kind is not VerdictKind.NO_LEAK])
@pytest.mark.parametrize("leak", [TRUE, UNKNOWN])
def test_the_runner_says_it_apart_from_its_verdict(kind: VerdictKind, leak: LeakDetected) -> None:
    assert answer(answered(evidence_with(), kind, leak, unexplained())) == (kind, leak)
    state = NodeState(node_name="n1", reason="Completed", verdict=kind, leak_detected=leak)
    assert leak_status(state) == ConditionStatus(leak.value)


def test_an_answer_without_a_leak_needs_no_verdict_of_that_name() -> None:
    evidence = answered(evidence_with(), VerdictKind.SUSPICIOUS_MEMORY, FALSE, process_memory())
    assert answer(evidence) == (VerdictKind.SUSPICIOUS_MEMORY, FALSE)


def test_a_clean_node_is_clean() -> None:
    assert answer(clean(evidence_with())) == (VerdictKind.NO_LEAK, FALSE)


@pytest.mark.parametrize("missing", LEAK_CHECKS)
@pytest.mark.parametrize("kind", [VerdictKind.NO_LEAK, VerdictKind.SUSPICIOUS_MEMORY])
def test_a_false_without_every_leak_check_is_not_believed(missing: Check, kind: VerdictKind) -> None:
    whole = answered(evidence_with(), kind, FALSE, process_memory())
    fewer = whole.model_copy(update={"checks": [check for check in Check if check is not missing]})
    assert answer(fewer) == (VerdictKind.INCONCLUSIVE, UNKNOWN)
    assert f"cannot be ruled out without {missing}" in answer_of(fewer)[0].sentence


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(answered(evidence_with(), VerdictKind.NO_LEAK, FALSE, growing_slab()), id="a finding leaks"),
        pytest.param(answered(evidence_with(), VerdictKind.LEAKED_MEMORY, FALSE), id="the verdict is a leak"),
        pytest.param(answered(evidence_with(), VerdictKind.NO_LEAK, TRUE), id="the verdict is none"),
    ],
)
def test_a_document_that_contradicts_itself_neither_excludes_nor_shows_a_leak(evidence: Evidence) -> None:
    assert answer(evidence) == (VerdictKind.INCONCLUSIVE, UNKNOWN)
    assert "contradicts itself" in answer_of(evidence)[0].sentence


def test_no_leak_of_which_the_runner_is_not_sure_is_inconclusive() -> None:
    unsure = answered(evidence_with(), VerdictKind.NO_LEAK, UNKNOWN, process_memory())
    assert answer(unsure) == (VerdictKind.INCONCLUSIVE, UNKNOWN)


def test_a_node_without_an_answer_has_none() -> None:
    assert leak_status(NodeState(node_name="n1", reason="NodeLost")) is None
