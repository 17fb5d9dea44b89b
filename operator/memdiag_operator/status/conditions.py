"""Conditions of a diagnosis: always all four, each with the time of its last change and its observed generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from memdiag_api.conditions import Condition, ConditionStatus, ConditionType, Reason
from memdiag_api.diagnosis import FailOn, NodeState
from memdiag_operator.results.leak import WEIGHT, leak_status
from memdiag_operator.results.sanitize import clip
from memdiag_operator.status.states import UNSETTLED

MAX_MESSAGE_LENGTH = 4096
MAX_FAILURES_IN_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition's status, reason and message."""

    status: ConditionStatus
    reason: Reason
    message: str = ""


def conditions(
    previous: Sequence[Condition], findings: dict[ConditionType, Finding], generation: int, now: datetime
) -> list[Condition]:
    """`findings` as conditions; a transition time changes only if the status does."""
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


def while_running(reason: Reason, message: str, states: Sequence[NodeState] = ()) -> dict[ConditionType, Finding]:
    """Conditions of a run in progress; a leak that a node has reported is shown at once."""
    return {
        ConditionType.SUCCEEDED: Finding(ConditionStatus.UNKNOWN, reason, message),
        ConditionType.LEAK_DETECTED: _leak_so_far(states) or Finding(ConditionStatus.UNKNOWN, reason, _so_far(states)),
        ConditionType.RECONCILING: Finding(ConditionStatus.TRUE, reason, message),
        ConditionType.STALLED: Finding(ConditionStatus.FALSE, reason),
    }


def while_held_back(message: str, previous: Sequence[Condition], *, is_rerun: bool) -> dict[ConditionType, Finding]:
    """Conditions of a run that may not start yet; before a rerun, the previous run's result stays."""
    if not is_rerun:
        return while_running(Reason.LIMIT_REACHED, message)
    return as_they_were(previous) | {
        ConditionType.RECONCILING: Finding(ConditionStatus.TRUE, Reason.LIMIT_REACHED, message),
        ConditionType.STALLED: Finding(ConditionStatus.FALSE, Reason.LIMIT_REACHED),
    }


def after_the_end(previous: Sequence[Condition]) -> dict[ConditionType, Finding]:
    """Conditions of a run that has ended, without a request for a rerun (any more)."""
    findings = as_they_were(previous)
    held_back = findings.get(ConditionType.RECONCILING)
    if held_back is None or held_back.reason is not Reason.LIMIT_REACHED:
        return findings
    return findings | _ended(findings[ConditionType.SUCCEEDED])


def as_they_were(previous: Sequence[Condition]) -> dict[ConditionType, Finding]:
    """The findings that conditions were made from."""
    return {one.type: Finding(one.status, one.reason, one.message) for one in previous}


def when_suspended() -> dict[ConditionType, Finding]:
    """Conditions of a suspended diagnosis."""
    message = "spec.suspend is true: set it to false to run."
    return {
        ConditionType.SUCCEEDED: Finding(ConditionStatus.UNKNOWN, Reason.SUSPENDED, message),
        ConditionType.LEAK_DETECTED: Finding(ConditionStatus.UNKNOWN, Reason.SUSPENDED, message),
        ConditionType.RECONCILING: Finding(ConditionStatus.FALSE, Reason.SUSPENDED, message),
        ConditionType.STALLED: Finding(ConditionStatus.FALSE, Reason.SUSPENDED, message),
    }


def when_refused(reason: Reason, message: str) -> dict[ConditionType, Finding]:
    """Conditions of a run that ends before its nodes are chosen."""
    return {
        ConditionType.SUCCEEDED: Finding(ConditionStatus.FALSE, reason, message),
        ConditionType.LEAK_DETECTED: Finding(ConditionStatus.UNKNOWN, Reason.NO_RESULT, "No node was measured."),
        ConditionType.RECONCILING: Finding(ConditionStatus.FALSE, reason),
        ConditionType.STALLED: Finding(ConditionStatus.TRUE, reason, message),
    }


def when_finished(
    states: Sequence[NodeState], fail_on: FailOn, summary: str, failures: Sequence[str] = ()
) -> dict[ConditionType, Finding]:
    """Conditions of a run that has ended on every node; `failures`: messages of the nodes without a result."""
    leak = _leak(states, summary)
    succeeded = _succeeded(states, fail_on, leak, summary, failures)
    return {ConditionType.SUCCEEDED: succeeded, ConditionType.LEAK_DETECTED: leak} | _ended(succeeded)


def _ended(succeeded: Finding) -> dict[ConditionType, Finding]:
    ended_well = succeeded.status is ConditionStatus.TRUE
    return {
        ConditionType.RECONCILING: Finding(ConditionStatus.FALSE, succeeded.reason),
        # Nothing more happens without a change: kstatus, and so Flux and other pipelines, read this as "failed".
        ConditionType.STALLED: Finding(
            ConditionStatus.FALSE if ended_well else ConditionStatus.TRUE,
            succeeded.reason,
            "" if ended_well else succeeded.message,
        ),
    }


def _leak(states: Sequence[NodeState], summary: str) -> Finding:
    """The strongest answer of the nodes, with the verdict of the first node that has it."""
    answers = [(leak, state.verdict) for state in states if state.verdict and (leak := leak_status(state))]
    if not answers:
        return Finding(ConditionStatus.UNKNOWN, Reason.NO_RESULT, "No node has delivered a result.")
    status, kind = max(answers, key=lambda answer: WEIGHT[answer[0]])
    if len(answers) < len(states) and status is ConditionStatus.FALSE:
        return Finding(ConditionStatus.UNKNOWN, Reason.PARTIAL_RESULTS, "No leak on the nodes that delivered a result.")
    return Finding(status, Reason(kind.value), summary)


def _leak_so_far(states: Sequence[NodeState]) -> Finding | None:
    for state in states:
        if state.verdict and leak_status(state) is ConditionStatus.TRUE:
            message = f"Already found on {state.node_name}; {_so_far(states)}"
            return Finding(ConditionStatus.TRUE, Reason(state.verdict.value), message)
    return None


def _so_far(states: Sequence[NodeState]) -> str:
    settled = sum(state.reason not in UNSETTLED for state in states)
    return f"{settled} of {len(states)} nodes have reported." if settled else "No node has reported yet."


def _succeeded(
    states: Sequence[NodeState], fail_on: FailOn, leak: Finding, summary: str, failures: Sequence[str]
) -> Finding:
    failed = [state for state in states if state.reason != Reason.COMPLETED]
    if not failed:
        if fail_on is not FailOn.NEVER and leak.status is ConditionStatus.TRUE:
            message = f"failOn is {fail_on.value}, and a leak was found: {summary}"
            return Finding(ConditionStatus.FALSE, Reason.LEAK_FOUND, message)
        if fail_on is FailOn.NOT_PROVEN_CLEAN and leak.status is not ConditionStatus.FALSE:
            message = f"failOn is {fail_on.value}, and a leak cannot be excluded: {summary}"
            return Finding(ConditionStatus.FALSE, Reason.LEAK_NOT_EXCLUDED, message)
        return Finding(ConditionStatus.TRUE, Reason.COMPLETED, summary)
    shown = list(failures[:MAX_FAILURES_IN_MESSAGE])
    if len(shown) < len(failed):
        shown.append(f"and {len(failed) - len(shown)} more" if shown else f"{len(failed)} failed")
    message = "; ".join(shown)
    if len(failed) < len(states):
        count = f"{len(states) - len(failed)} of {len(states)} nodes delivered a result"
        return Finding(ConditionStatus.FALSE, Reason.PARTIAL_RESULTS, f"{count}; {message}")
    return Finding(ConditionStatus.FALSE, Reason(failed[0].reason), message)
