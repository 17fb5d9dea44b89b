"""Conditions show people, kubectl wait, Argo CD and Flux the state of a run."""

from datetime import timedelta

import pytest

from memdiag_api.conditions import ConditionStatus, ConditionType, Reason
from memdiag_api.diagnosis import FailOn, NodeState
from memdiag_api.evidence import LeakDetected, VerdictKind
from memdiag_operator.status.conditions import (
    Finding,
    conditions,
    when_finished,
    when_refused,
    when_suspended,
    while_running,
)
from support.kubernetes_objects import NOW

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


def done(kind: VerdictKind, node: str = "n1") -> NodeState:
    return NodeState(node_name=node, reason=Reason.COMPLETED, verdict=kind)


def said(leak: LeakDetected, kind: VerdictKind) -> NodeState:
    return NodeState(node_name="n1", reason=Reason.COMPLETED, verdict=kind, leak_detected=leak)


def failed(reason: Reason, node: str = "n2") -> NodeState:
    return NodeState(node_name=node, reason=reason)


LEAK, GROWS = done(VerdictKind.PINNED_BY_UNREAD_SOCKET), done(VerdictKind.GROWING_KERNEL_ALLOCATION)
LARGE, NONE, DOUBT = (
    done(VerdictKind.LARGE_BUT_UNEXPLAINED),
    done(VerdictKind.NO_LEAK),
    done(VerdictKind.INCONCLUSIVE),
)
# A runner that says it apart from its verdict.
SLAB = said(LeakDetected.TRUE, VerdictKind.LEAKED_MEMORY)
SUSPICIOUS = said(LeakDetected.UNKNOWN, VerdictKind.SUSPICIOUS_MEMORY)
PLAIN = said(LeakDetected.FALSE, VerdictKind.SUSPICIOUS_MEMORY)
CLEAN = said(LeakDetected.FALSE, VerdictKind.NO_LEAK)
LOST, DENIED = failed(Reason.NODE_LOST), failed(Reason.ADMISSION_DENIED, "n3")


@pytest.mark.parametrize(
    ("states", "fail_on", "succeeded", "leak"),
    [
        pytest.param([LEAK], "Never", (TRUE, "Completed"), (TRUE, "PinnedByUnreadSocket"), id="leak"),
        pytest.param([GROWS], "Never", (TRUE, "Completed"), (TRUE, "GrowingKernelAllocation"), id="growth"),
        pytest.param([LARGE], "Never", (TRUE, "Completed"), (UNKNOWN, "LargeButUnexplained"), id="large"),
        pytest.param([DOUBT], "Never", (TRUE, "Completed"), (UNKNOWN, "Inconclusive"), id="inconclusive"),
        pytest.param([NONE], "Never", (TRUE, "Completed"), (FALSE, "NoLeak"), id="healthy"),
        pytest.param([LEAK], "LeakDetected", (FALSE, "LeakFound"), (TRUE, "PinnedByUnreadSocket"), id="gate, leak"),
        pytest.param([NONE], "LeakDetected", (TRUE, "Completed"), (FALSE, "NoLeak"), id="gate, healthy"),
        pytest.param([LARGE], "LeakDetected", (TRUE, "Completed"), (UNKNOWN, "LargeButUnexplained"), id="gate, doubt"),
        pytest.param([LOST], "Never", (FALSE, "NodeLost"), (UNKNOWN, "NoResult"), id="failed"),
        pytest.param([LOST, DENIED], "Never", (FALSE, "NodeLost"), (UNKNOWN, "NoResult"), id="all failed"),
        pytest.param([NONE, LOST], "Never", (FALSE, "PartialResults"), (UNKNOWN, "PartialResults"), id="half unknown"),
        pytest.param([LEAK, LOST], "Never", (FALSE, "PartialResults"), (TRUE, "PinnedByUnreadSocket"), id="half, leak"),
        pytest.param([NONE, LARGE], "Never", (TRUE, "Completed"), (UNKNOWN, "LargeButUnexplained"), id="doubt wins"),
        pytest.param([SLAB], "Never", (TRUE, "Completed"), (TRUE, "LeakedMemory"), id="slab leak"),
        pytest.param([SUSPICIOUS], "Never", (TRUE, "Completed"), (UNKNOWN, "SuspiciousMemory"), id="suspicious"),
        pytest.param([PLAIN], "Never", (TRUE, "Completed"), (FALSE, "SuspiciousMemory"), id="the runner's word"),
        pytest.param(
            [CLEAN, SUSPICIOUS, SLAB], "Never", (TRUE, "Completed"), (TRUE, "LeakedMemory"), id="True before Unknown"
        ),
        pytest.param(
            [PLAIN, CLEAN, DOUBT], "Never", (TRUE, "Completed"), (UNKNOWN, "Inconclusive"), id="Unknown before False"
        ),
        pytest.param([SLAB], "LeakDetected", (FALSE, "LeakFound"), (TRUE, "LeakedMemory"), id="gate, slab leak"),
        pytest.param(
            [SUSPICIOUS], "LeakDetected", (TRUE, "Completed"), (UNKNOWN, "SuspiciousMemory"), id="gate, suspicious"
        ),
        pytest.param([CLEAN], "NotProvenClean", (TRUE, "Completed"), (FALSE, "NoLeak"), id="strict gate, clean"),
        pytest.param(
            [PLAIN], "NotProvenClean", (TRUE, "Completed"), (FALSE, "SuspiciousMemory"), id="strict gate, False"
        ),
        pytest.param([SLAB], "NotProvenClean", (FALSE, "LeakFound"), (TRUE, "LeakedMemory"), id="strict gate, leak"),
        pytest.param(
            [CLEAN, SUSPICIOUS],
            "NotProvenClean",
            (FALSE, "LeakNotExcluded"),
            (UNKNOWN, "SuspiciousMemory"),
            id="strict gate, one of two is suspicious",
        ),
        pytest.param(
            [DOUBT], "NotProvenClean", (FALSE, "LeakNotExcluded"), (UNKNOWN, "Inconclusive"), id="strict gate, doubt"
        ),
        pytest.param(
            [CLEAN, LOST],
            "NotProvenClean",
            (FALSE, "PartialResults"),
            (UNKNOWN, "PartialResults"),
            id="strict gate, one without a result",
        ),
        pytest.param([LOST], "NotProvenClean", (FALSE, "NodeLost"), (UNKNOWN, "NoResult"), id="strict gate, no result"),
        pytest.param([NONE, LEAK], "Never", (TRUE, "Completed"), (TRUE, "PinnedByUnreadSocket"), id="leak wins"),
    ],
)
def test_a_finished_run(
    states: list[NodeState],
    fail_on: str,
    succeeded: tuple[ConditionStatus, str],
    leak: tuple[ConditionStatus, str],
) -> None:
    findings = when_finished(states, FailOn(fail_on), "the summary")
    assert (findings[ConditionType.SUCCEEDED].status, findings[ConditionType.SUCCEEDED].reason) == succeeded
    assert (findings[ConditionType.LEAK_DETECTED].status, findings[ConditionType.LEAK_DETECTED].reason) == leak
    assert findings[ConditionType.RECONCILING].status is FALSE
    # kstatus: Stalled is "failed".
    assert (findings[ConditionType.STALLED].status is TRUE) == (succeeded[0] is FALSE)


def test_a_gate_says_what_it_is_and_why_it_failed() -> None:
    for fail_on, state, message in (
        (FailOn.LEAK_DETECTED, SLAB, "failOn is LeakDetected, and a leak was found: the summary"),
        (FailOn.NOT_PROVEN_CLEAN, SLAB, "failOn is NotProvenClean, and a leak was found: the summary"),
        (FailOn.NOT_PROVEN_CLEAN, DOUBT, "failOn is NotProvenClean, and a leak cannot be excluded: the summary"),
    ):
        findings = when_finished([state], fail_on, "the summary")
        assert findings[ConditionType.SUCCEEDED].message == findings[ConditionType.STALLED].message == message


def test_every_verdict_has_its_reason() -> None:
    assert {kind.value for kind in VerdictKind} <= {reason.value for reason in Reason}


def test_a_long_list_of_failures_is_cut_and_counted() -> None:
    lost = [failed(Reason.NODE_LOST, f"n{number}") for number in range(9)]
    reported = [f"n{number} was removed" for number in range(6)]
    partial = when_finished([NONE, *lost], FailOn.NEVER, "the summary", reported)[ConditionType.SUCCEEDED]
    assert partial.message == (
        "1 of 10 nodes delivered a result; n0 was removed; n1 was removed; n2 was removed; n3 was removed; and 5 more"
    )
    assert (
        when_finished([LOST], FailOn.NEVER, "", ["n2 was removed"])[ConditionType.STALLED].message == "n2 was removed"
    )


def test_a_leak_is_shown_as_soon_as_one_node_has_reported_it() -> None:
    waiting = NodeState(node_name="n9", reason=Reason.PENDING)
    early = while_running(Reason.RUNNING, "tracing", [NONE, waiting, LEAK])
    assert early[ConditionType.LEAK_DETECTED] == Finding(
        TRUE, Reason.PINNED_BY_UNREAD_SOCKET, "Already found on n1; 2 of 3 nodes have reported."
    )
    assert early[ConditionType.SUCCEEDED].status is UNKNOWN
    silent = while_running(Reason.RUNNING, "tracing", [NONE, waiting])[ConditionType.LEAK_DETECTED]
    assert silent == Finding(UNKNOWN, Reason.RUNNING, "1 of 2 nodes have reported.")


def test_a_run_without_a_node_has_failed() -> None:
    findings = when_refused(Reason.POD_NOT_FOUND, "there is no such pod")
    assert findings[ConditionType.SUCCEEDED] == Finding(FALSE, Reason.POD_NOT_FOUND, "there is no such pod")
    assert findings[ConditionType.LEAK_DETECTED].reason is Reason.NO_RESULT
    assert findings[ConditionType.RECONCILING].status is FALSE
    assert findings[ConditionType.STALLED].status is TRUE


def test_while_it_runs_nothing_is_claimed() -> None:
    findings = while_running(Reason.RUNNING, "tracing")
    assert findings[ConditionType.SUCCEEDED] == Finding(UNKNOWN, Reason.RUNNING, "tracing")
    assert findings[ConditionType.LEAK_DETECTED].status is UNKNOWN
    assert findings[ConditionType.RECONCILING].status is TRUE
    assert findings[ConditionType.STALLED].status is FALSE


def test_a_suspended_one_neither_works_nor_is_stuck() -> None:
    assert {kind: finding.status for kind, finding in when_suspended().items()} == {
        ConditionType.SUCCEEDED: UNKNOWN,
        ConditionType.LEAK_DETECTED: UNKNOWN,
        ConditionType.RECONCILING: FALSE,
        ConditionType.STALLED: FALSE,
    }


def test_a_time_changes_only_with_the_status() -> None:
    before = conditions([], while_running(Reason.PENDING, "waiting"), 1, NOW)
    later = NOW + timedelta(seconds=60)
    running = {one.type: one for one in conditions(before, while_running(Reason.RUNNING, "tracing"), 2, later)}
    assert running[ConditionType.SUCCEEDED].last_transition_time == NOW
    assert running[ConditionType.SUCCEEDED].message == "tracing"
    assert running[ConditionType.SUCCEEDED].observed_generation == 2
    finished = {one.type: one for one in conditions(before, when_finished([NONE], FailOn.NEVER, ""), 2, later)}
    assert finished[ConditionType.SUCCEEDED].last_transition_time == later


def test_an_endless_message_is_cut() -> None:
    (succeeded, *_) = conditions([], while_running(Reason.RUNNING, "x" * 100_000), 1, NOW)
    assert len(succeeded.message) == 4096
