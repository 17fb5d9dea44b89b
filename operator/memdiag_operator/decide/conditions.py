"""Conditions of a diagnosis: all four always there, each with the time of its last change and the generation it saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from memdiag_api.conditions import Condition, ConditionStatus, ConditionType, Reason
from memdiag_api.diagnosis import FailOn, NodeResult
from memdiag_api.evidence import VerdictKind
from memdiag_operator.decide.sanitize import clip

MAX_MESSAGE_LENGTH = 4096

LEAK_STATUS = {
    VerdictKind.PINNED_BY_UNREAD_SOCKET: ConditionStatus.TRUE,
    VerdictKind.GROWING_KERNEL_ALLOCATION: ConditionStatus.TRUE,
    VerdictKind.LARGE_BUT_UNEXPLAINED: ConditionStatus.UNKNOWN,
    VerdictKind.INCONCLUSIVE: ConditionStatus.UNKNOWN,
    VerdictKind.NO_LEAK: ConditionStatus.FALSE,
}
# Of several nodes' answers the most telling one stands for all.
_WEIGHT = {ConditionStatus.TRUE: 2, ConditionStatus.UNKNOWN: 1, ConditionStatus.FALSE: 0}


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition's status, reason and message."""

    status: ConditionStatus
    reason: Reason
    message: str = ""


def conditions(
    previous: Sequence[Condition], findings: dict[ConditionType, Finding], generation: int, now: datetime
) -> list[Condition]:
    """`findings` as conditions; a time changes only where the status does."""
    before = {condition.type: condition for condition in previous}
    return [
        Condition(
            type=kind,
            status=finding.status,
            reason=finding.reason,
            message=clip(finding.message, MAX_MESSAGE_LENGTH),
            last_transition_time=(
                known.last_transition_time if (known := before.get(kind)) and known.status == finding.status else now
            ),
            observed_generation=generation,
        )
        for kind, finding in findings.items()
    ]


def while_running(reason: Reason, message: str) -> dict[ConditionType, Finding]:
    """Conditions of a run that is not over."""
    return {
        ConditionType.SUCCEEDED: Finding(ConditionStatus.UNKNOWN, reason, message),
        ConditionType.LEAK_DETECTED: Finding(ConditionStatus.UNKNOWN, reason, "No node has reported yet."),
        ConditionType.RECONCILING: Finding(ConditionStatus.TRUE, reason, message),
        ConditionType.STALLED: Finding(ConditionStatus.FALSE, reason),
    }


def when_suspended() -> dict[ConditionType, Finding]:
    """Conditions of a diagnosis that waits for a person."""
    message = "spec.suspend is true: set it to false to run."
    return {
        ConditionType.SUCCEEDED: Finding(ConditionStatus.UNKNOWN, Reason.SUSPENDED, message),
        ConditionType.LEAK_DETECTED: Finding(ConditionStatus.UNKNOWN, Reason.SUSPENDED, message),
        ConditionType.RECONCILING: Finding(ConditionStatus.FALSE, Reason.SUSPENDED, message),
        ConditionType.STALLED: Finding(ConditionStatus.FALSE, Reason.SUSPENDED, message),
    }


def when_finished(results: Sequence[NodeResult], fail_on: FailOn, summary: str) -> dict[ConditionType, Finding]:
    """Conditions of a run whose nodes have all ended; `results` has one entry for each, at least one."""
    leak = _leak(results, summary)
    succeeded = _succeeded(results, fail_on, leak, summary)
    ended_well = succeeded.status is ConditionStatus.TRUE
    return {
        ConditionType.SUCCEEDED: succeeded,
        ConditionType.LEAK_DETECTED: leak,
        ConditionType.RECONCILING: Finding(ConditionStatus.FALSE, succeeded.reason),
        # Nothing more happens by itself: kstatus, and so Flux and kubectl's waiters, read this as "failed".
        ConditionType.STALLED: Finding(
            ConditionStatus.FALSE if ended_well else ConditionStatus.TRUE,
            succeeded.reason,
            "" if ended_well else succeeded.message,
        ),
    }


def _leak(results: Sequence[NodeResult], summary: str) -> Finding:
    findings = [
        Finding(LEAK_STATUS[result.verdict.kind], Reason(result.verdict.kind.value), result.verdict.sentence)
        for result in results
        if result.verdict
    ]
    if not findings:
        return Finding(ConditionStatus.UNKNOWN, Reason.NO_RESULT, "No node has delivered a result.")
    heaviest = max(findings, key=lambda finding: _WEIGHT[finding.status])
    if len(findings) < len(results) and heaviest.status is ConditionStatus.FALSE:
        return Finding(ConditionStatus.UNKNOWN, Reason.PARTIAL_RESULTS, "No leak where there is a result.")
    return Finding(heaviest.status, heaviest.reason, summary or heaviest.message)


def _succeeded(results: Sequence[NodeResult], fail_on: FailOn, leak: Finding, summary: str) -> Finding:
    failed = [result for result in results if result.reason != Reason.COMPLETED]
    if not failed:
        if fail_on is FailOn.LEAK_DETECTED and leak.status is ConditionStatus.TRUE:
            return Finding(
                ConditionStatus.FALSE, Reason.LEAK_FOUND, f"failOn is LeakDetected, and one was found: {summary}"
            )
        return Finding(ConditionStatus.TRUE, Reason.COMPLETED, summary)
    message = "; ".join(result.message for result in failed[:4])
    if len(failed) < len(results):
        count = f"{len(results) - len(failed)} of {len(results)} nodes delivered a result"
        return Finding(ConditionStatus.FALSE, Reason.PARTIAL_RESULTS, f"{count}; {message}")
    return Finding(ConditionStatus.FALSE, Reason(failed[0].reason), message)
