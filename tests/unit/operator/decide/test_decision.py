"""What a decision asks for: everything that it takes, each thing once, and nothing that can be done without."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import NodeResult
from memdiag_operator.decide.decision import decide
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.slots import allot
from memdiag_operator.decide.snapshot import Candidates, Needs, Snapshot
from memdiag_operator.kube.objects import Diagnosis, Pod
from memdiag_operator.results.receive import RunnerOutput
from support.kubernetes_objects import (
    CONFIG,
    NODE,
    NOW,
    POD_NAME,
    RUN,
    ago,
    diagnosis,
    fleet,
    node,
    pod,
    running,
    running_status,
    terminated,
    timestamp,
)

SELECTOR = {"target": {"nodeSelector": {"matchLabels": {"pool": "web"}}, "maxNodes": 2}}
POD_REF = {"target": {"podRef": {"namespace": "shop", "name": "web-0"}}}
STARTING = pod(
    phase="Pending",
    age=30,
    conditions=[{"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp(ago(30))}],
)


def needs(snapshot: Snapshot) -> Needs:
    answer = decide(snapshot, CONFIG, NOW)
    assert isinstance(answer, Needs)
    return answer


def plan(snapshot: Snapshot) -> Plan:
    answer = decide(snapshot, CONFIG, NOW)
    assert isinstance(answer, Plan)
    return answer


def pending(**spec: Any) -> Diagnosis:
    return diagnosis(status=running_status(), spec=spec)


def running_diagnosis() -> Diagnosis:
    return diagnosis(status=running_status(result=NodeResult(node_name=NODE, reason=Reason.RUNNING)))


def of_nodes(count: int) -> Diagnosis:
    states = [{"nodeName": f"node-{number}", "reason": "Pending"} for number in range(count)]
    return diagnosis(status=running_status(nodeStates=states), spec=SELECTOR)


# --- a run that starts ------------------------------------------------------------------------------------------------


def test_a_run_asks_first_whether_it_may_start() -> None:
    snapshot = Snapshot(diagnosis=diagnosis(spec=SELECTOR))
    assert needs(snapshot) == Needs(snapshot, permission=True)


def test_one_that_may_not_start_asks_for_nothing_else() -> None:
    held_back = plan(Snapshot(diagnosis=diagnosis(spec=SELECTOR), limit_reached="too many"))
    assert held_back.status
    assert (held_back.status.run_id, held_back.status.conditions[0].reason) == (None, Reason.LIMIT_REACHED)


@pytest.mark.parametrize("spec", [SELECTOR, POD_REF], ids=["by labels", "by a pod"])
def test_nodes_are_chosen_from_what_there_is(spec: dict[str, Any]) -> None:
    snapshot = Snapshot(diagnosis=diagnosis(spec=spec), limit_reached="")
    assert needs(snapshot) == Needs(snapshot, candidates=snapshot.diagnosis.spec.target)  # type: ignore[union-attr] # valid


def test_a_run_that_starts_continues_at_once_from_what_its_start_has_decided() -> None:
    chosen = Candidates(tuple(node(f"node-{number}") for number in range(3)))
    asked = needs(Snapshot(diagnosis=diagnosis(spec=SELECTOR), limit_reached="", candidates=chosen, pods=(pod(),)))
    assert asked.nodes == {"node-0": inf, "node-1": inf}
    assert asked.snapshot.start_plan
    assert asked.snapshot.diagnosis.status == asked.snapshot.start_plan.status
    # A cluster's nodes are not kept any longer than it takes to choose.
    assert (asked.snapshot.candidates, asked.snapshot.pods) == (None, (pod(),))


def test_the_start_and_what_follows_are_one_plan() -> None:
    snapshot = Snapshot(diagnosis=diagnosis(), limit_reached="")
    nodes = replace(needs(snapshot).snapshot, nodes={NODE: node()})
    slots = replace(needs(nodes).snapshot, allotment=allot(fleet((), (nodes.diagnosis,)), 3, NOW))
    both = plan(replace(needs(slots).snapshot, fresh_nodes=frozenset({NODE})))
    assert both.status
    assert (both.status.run_id, both.status.start_time) == (RUN, NOW)
    assert [one.reason for one in both.announcements] == ["Started"]
    assert [one["metadata"]["name"] for one in both.launches] == [POD_NAME]


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        pytest.param(diagnosis(spec={"topN": "x"}), "InvalidSpec", id="of another version"),
        pytest.param(diagnosis(spec={"terminate": True}), "Terminated", id="to be terminated"),
    ],
)
def test_a_run_that_ends_as_it_starts_takes_no_place_from_others(one: Diagnosis, reason: str) -> None:
    answer = decide(Snapshot(diagnosis=one), CONFIG, NOW)
    if isinstance(answer, Needs):
        assert not answer.permission
        answer = decide(replace(answer.snapshot, nodes={NODE: node()}), CONFIG, NOW)
    assert isinstance(answer, Plan)
    assert answer.status
    assert answer.status.completion_time == NOW
    assert answer.status.conditions[0].reason == reason


# --- a run under way --------------------------------------------------------------------------------------------------


def test_a_runner_that_the_cache_lacks_is_asked_for_before_its_run_ends() -> None:
    snapshot = Snapshot(diagnosis=running_diagnosis())
    assert needs(snapshot) == Needs(snapshot, pods=(POD_NAME,))
    gone = replace(snapshot, absent_pods=frozenset({POD_NAME}), nodes={NODE: node()})
    ended = plan(gone).status
    assert ended
    assert ended.conditions[0].reason == Reason.RUNNER_EVICTED


@pytest.mark.parametrize(
    ("runner", "max_age_seconds"),
    [
        pytest.param(pod(state=running()), CONFIG.sweep.idle_seconds, id="a runner that works"),
        pytest.param(pod(phase="Failed", state=terminated(exit_code=255)), 0, id="one without a termination message"),
        pytest.param(pod(phase="Succeeded", state=terminated("{}")), inf, id="one that left a message"),
    ],
)
def test_how_old_a_reading_of_the_node_may_be(runner: Pod, max_age_seconds: float) -> None:
    snapshot = Snapshot(diagnosis=running_diagnosis(), pods=(runner,))
    assert needs(snapshot) == Needs(snapshot, nodes={NODE: max_age_seconds})


def test_of_a_long_queue_only_the_first_nodes_are_read() -> None:
    asked = needs(Snapshot(diagnosis=of_nodes(1000)))
    assert asked.nodes == dict.fromkeys((f"node-{number}" for number in range(CONFIG.max_concurrent_runners)), inf)


def test_nodes_that_are_known_are_not_asked_for() -> None:
    known = Snapshot(diagnosis=of_nodes(2), nodes={"node-0": node("node-0")})
    assert needs(known) == Needs(known, nodes={"node-1": inf})


@pytest.mark.parametrize(
    ("runner", "asked"),
    [
        pytest.param(pod(phase="Succeeded", state=terminated("{}")), lambda one: one.outputs, id="a log"),
        pytest.param(STARTING, lambda one: one.events, id="events"),
    ],
)
def test_what_a_runner_left_or_suffers_from_is_asked_for_once(runner: Pod, asked: Callable[[Needs], object]) -> None:
    """A log that was not read among others waits for the next decision."""
    snapshot = Snapshot(diagnosis=running_diagnosis(), pods=(runner,), nodes={NODE: node()})
    assert asked(needs(snapshot)) == (runner,)
    plan(replace(snapshot, outputs={}, events={}))


def test_a_runner_that_works_needs_nothing_more() -> None:
    plan(Snapshot(diagnosis=running_diagnosis(), pods=(pod(state=running()),), nodes={NODE: node()}))


def test_a_slot_is_asked_for_and_then_the_node_as_it_is_now() -> None:
    """Who has a slot may launch: its pod must carry the boot ID that the node has now, and what earlier runs found."""
    one = pending()
    snapshot = Snapshot(diagnosis=one, nodes={NODE: node()})
    assert needs(snapshot) == Needs(snapshot, allotment=True)
    admitted = replace(snapshot, allotment=allot(fleet((), (one,)), 3, NOW))
    assert needs(admitted) == Needs(admitted, fresh_nodes=(NODE,), histories=(NODE,))
    assert len(plan(replace(admitted, fresh_nodes=frozenset({NODE}))).launches) == 1


def test_without_a_free_slot_no_node_is_read_again() -> None:
    one = pending()
    busy = [pod(name=f"other-{n}", node_name=f"node-{n}") for n in range(3)]
    waiting = Snapshot(diagnosis=one, nodes={NODE: node()}, allotment=allot(fleet(busy, (one,)), 3, NOW))
    assert plan(waiting).launches == ()


def test_a_node_that_is_gone_when_its_turn_comes_ends_the_run() -> None:
    one = pending()
    snapshot = Snapshot(
        diagnosis=one,
        nodes={NODE: None},
        fresh_nodes=frozenset({NODE}),
        allotment=allot(fleet((), (one,)), 3, NOW),
    )
    ended = plan(snapshot).status
    assert ended
    assert ended.conditions[0].reason == Reason.NODE_NOT_FOUND


def test_after_a_refusal_no_other_slot_is_asked_for() -> None:
    refused = Snapshot(diagnosis=of_nodes(2), nodes={"node-0": node(), "node-1": node()}, refusals={"any": "refused"})
    assert plan(refused).launches == ()


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(diagnosis(status=running_status(), deleted=True), id="being deleted"),
        pytest.param(diagnosis(deleted=True, spec=SELECTOR), id="deleted before it started"),
        pytest.param(diagnosis(status=running_status(), spec={"suspend": True}), id="suspended"),
        pytest.param(diagnosis(status=running_status(completionTime=timestamp(ago(5)))), id="finished"),
        pytest.param(diagnosis(status=running_status(), spec={"topN": "x"}), id="of another version"),
    ],
)
def test_what_launches_nothing_reads_nothing(one: Diagnosis) -> None:
    assert plan(Snapshot(diagnosis=one, pods=(pod(phase="Succeeded"),))).launches == ()


def test_a_result_is_decided_about_with_what_was_read() -> None:
    runner = pod(phase="Failed", state=terminated(exit_code=1))
    read = Snapshot(
        diagnosis=running_diagnosis(),
        pods=(runner,),
        nodes={NODE: node()},
        outputs={POD_NAME: RunnerOutput(b"Traceback")},
    )
    ended = plan(read).status
    assert ended
    assert ended.conditions[0].reason == Reason.RUNNER_FAILED
