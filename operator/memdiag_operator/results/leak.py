"""Whether a node has a leak: what its runner says, and what the operator believes of it."""

from memdiag_api.conditions import ConditionStatus
from memdiag_api.diagnosis import NodeResult, NodeState
from memdiag_api.evidence import LEAK_CHECKS, Evidence, LeakDetected, Verdict, VerdictKind
from memdiag_api.findings import Confidence, LeakAnswer

_LEAKS = frozenset(
    {VerdictKind.PINNED_BY_UNREAD_SOCKET, VerdictKind.GROWING_KERNEL_ALLOCATION, VerdictKind.LEAKED_MEMORY}
)
# The answer of several nodes is the strongest one.
WEIGHT = {ConditionStatus.TRUE: 2, ConditionStatus.UNKNOWN: 1, ConditionStatus.FALSE: 0}


def leak_status(answer: NodeState | NodeResult) -> ConditionStatus | None:
    """The answer for one node; None if there is none. Version 0.1.0 stored only the kind of the verdict."""
    if answer.verdict is None:
        return None
    kind = answer.verdict.kind if isinstance(answer, NodeResult) else answer.verdict
    return ConditionStatus((answer.leak_detected or _by_kind(kind)).value)


def answer_of(evidence: Evidence) -> tuple[Verdict, LeakDetected]:
    """The runner's verdict and whether there is a leak, as far as the operator believes them.

    A False without all required checks, or against a finding of the same document, is an Unknown: runners of version
    0.1.0 reported NoLeak even without their leak checks, and the image of the runner is configured independently of
    the operator's.
    """
    verdict = evidence.verdict
    leak = evidence.leak_detected or _by_kind(verdict.kind)
    if leak is LeakDetected.FALSE:
        missing = [check.value for check in LEAK_CHECKS if check not in evidence.checks]
        if missing:
            why = f"No leak was found, but one cannot be ruled out without {' and '.join(missing)}."
            return _inconclusive(verdict, why), LeakDetected.UNKNOWN
    excludes = leak is LeakDetected.FALSE or verdict.kind is VerdictKind.NO_LEAK
    if excludes and (leak is LeakDetected.TRUE or _has_leak(evidence)):
        why = "The document contradicts itself: it both excludes a leak and reports one."
        return _inconclusive(verdict, why), LeakDetected.UNKNOWN
    if leak is LeakDetected.UNKNOWN and verdict.kind is VerdictKind.NO_LEAK:
        return _inconclusive(verdict, verdict.sentence), leak
    return verdict, leak


def _has_leak(evidence: Evidence) -> bool:
    return evidence.verdict.kind in _LEAKS or any(one.leak is LeakAnswer.YES for one in evidence.findings)


def _by_kind(kind: VerdictKind) -> LeakDetected:
    """What a verdict means in a document that says nothing else about leaks."""
    if kind in _LEAKS:
        return LeakDetected.TRUE
    return LeakDetected.FALSE if kind is VerdictKind.NO_LEAK else LeakDetected.UNKNOWN


def _inconclusive(verdict: Verdict, sentence: str) -> Verdict:
    update = {"kind": VerdictKind.INCONCLUSIVE, "confidence": Confidence.LOW, "sentence": sentence}
    return verdict.model_copy(update=update)
