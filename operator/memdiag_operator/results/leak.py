"""The status of LeakDetected for each verdict."""

from memdiag_api.conditions import ConditionStatus
from memdiag_api.evidence import LEAK_CHECKS, Evidence, Verdict, VerdictKind
from memdiag_api.findings import Confidence

LEAK_STATUS = {
    VerdictKind.PINNED_BY_UNREAD_SOCKET: ConditionStatus.TRUE,
    VerdictKind.GROWING_KERNEL_ALLOCATION: ConditionStatus.TRUE,
    VerdictKind.LEAKED_MEMORY: ConditionStatus.TRUE,
    VerdictKind.LARGE_BUT_UNEXPLAINED: ConditionStatus.UNKNOWN,
    VerdictKind.SUSPICIOUS_MEMORY: ConditionStatus.UNKNOWN,
    VerdictKind.INCONCLUSIVE: ConditionStatus.UNKNOWN,
    VerdictKind.NO_LEAK: ConditionStatus.FALSE,
}
# The answer of several nodes is the strongest one.
WEIGHT = {ConditionStatus.TRUE: 2, ConditionStatus.UNKNOWN: 1, ConditionStatus.FALSE: 0}


def verdict_of(evidence: Evidence) -> Verdict:
    """The runner's verdict. A NoLeak without all required checks becomes Inconclusive.

    Runners of version 0.1.0 reported NoLeak even without their leak checks, and the image of the runner is configured
    independently of the operator's.
    """
    verdict = evidence.verdict
    missing = [check.value for check in LEAK_CHECKS if check not in evidence.checks]
    if verdict.kind is not VerdictKind.NO_LEAK or not missing:
        return verdict
    sentence = f"No leak was found, but one cannot be ruled out without {' and '.join(missing)}."
    return verdict.model_copy(
        update={"kind": VerdictKind.INCONCLUSIVE, "confidence": Confidence.LOW, "sentence": sentence}
    )
