"""Who gets a slot: one runner on a node, a limited number in the cluster, the longest waiting first."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.diagnosis import NodeResult
from memdiag_operator.decide.slots import MAX_PLACES, Slot, allot, holds_slot
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, Pod
from support.kubernetes_objects import NOW, RUN, ago, diagnosis, fleet, pod, timestamp

UNFIT = [{"type": "PodScheduled", "status": "False"}]


def waiting(name: str, node: str, since: float, **fields: Any) -> Diagnosis:
    """A diagnosis whose run started `since` seconds ago and has no runner yet."""
    status: dict[str, Any] = {
        "observedGeneration": 1,
        "runID": RUN,
        "startTime": timestamp(ago(since)),
        "results": [NodeResult(node_name=node, reason="Pending").to_json_object()],
    }
    status.update(fields.pop("status", {}))
    return diagnosis(name=name, uid=f"uid-{name}", node=node, status=status, **fields)


def running_pod(name: str, node: str) -> Pod:
    return pod(name=name, node_name=node, owner=f"uid-{name}")


def admitted(pods: list[Pod], diagnoses: list[Diagnosis], limit: int = 2) -> list[str]:
    allotment = allot(fleet(pods, diagnoses), limit, NOW)
    return sorted(slot.diagnosis_uid.removeprefix("uid-") for slot in allotment.admitted)


def test_the_longest_waiting_come_first() -> None:
    queue = [waiting("new", "n1", 1), waiting("old", "n2", 30), waiting("middle", "n3", 20)]
    assert admitted([], queue) == ["middle", "old"]


def test_those_who_started_together_go_by_name() -> None:
    assert admitted([], [waiting("c", "n1", 5), waiting("a", "n2", 5), waiting("b", "n3", 5)]) == ["a", "b"]


def test_one_runner_on_a_node() -> None:
    queue = [waiting("first", "n1", 9), waiting("second", "n1", 8), waiting("elsewhere", "n2", 7)]
    assert admitted([], queue, limit=3) == ["elsewhere", "first"]
    assert admitted([running_pod("x", "n1")], queue, limit=3) == ["elsewhere"]


def test_those_who_must_wait_know_why() -> None:
    pods = (running_pod("x", "n1"), running_pod("y", "n2"))
    why_not = allot(fleet(pods, (waiting("a", "n1", 9), waiting("b", "n3", 8), waiting("c", "n4", 7))), 2, NOW).why_not
    assert why_not(Slot("uid-a", "n1")) == "another runner is running on node n1"
    assert why_not(Slot("uid-b", "n3")) == "all 2 runner slots are in use; 0 node runs ahead in the queue"
    assert why_not(Slot("uid-c", "n4")) == "all 2 runner slots are in use; 1 node run ahead in the queue"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"status": {"completionTime": timestamp(NOW)}}, id="finished"),
        pytest.param({"status": {"startTime": None}}, id="not started"),
        pytest.param({"spec": {"suspend": True}}, id="suspended"),
        pytest.param({"spec": {"terminate": True}}, id="terminated"),
        pytest.param({"deleted": True}, id="being deleted"),
        pytest.param(
            {"status": {"results": [NodeResult(node_name="n1", reason="Running").to_json_object()]}},
            id="had its runner",
        ),
        pytest.param({"spec": {"topN": "many"}}, id="spec that is not understood"),
    ],
)
def test_who_wants_no_runner_takes_no_slot(fields: dict[str, Any]) -> None:
    assert admitted([], [waiting("a", "n1", 9, **fields), waiting("b", "n2", 8)], limit=1) == ["b"]


def of_many(name: str, since: float, nodes: int, pods: int = 0) -> tuple[Diagnosis, list[Pod]]:
    """A diagnosis of many nodes whose run started `since` seconds ago, with runners on the first of them."""
    names = [f"{name}-{number}" for number in range(nodes)]
    states = [{"nodeName": node, "reason": "Pending"} for node in names]
    one = waiting(name, "none", since, status={"nodeStates": states, "results": []})
    launched = [naming.child_name(name, f"uid-{name}", RUN, node) for node in names[:pods]]
    return one, [
        pod(name=runner, node_name=node, owner=f"uid-{name}") for runner, node in zip(launched, names, strict=False)
    ]


def slots(pods: list[Pod], diagnoses: list[Diagnosis], limit: int) -> list[str]:
    return sorted(slot.node_name for slot in allot(fleet(pods, diagnoses), limit, NOW).admitted)


def test_many_nodes_of_one_diagnosis_do_not_keep_others_waiting() -> None:
    """A run on many nodes that holds all slots but one gives way to one that has none, though that is younger."""
    many, runners = of_many("many", 900, 1000, pods=2)
    assert slots(runners, [many, waiting("one", "n1", 5)], limit=3) == ["n1"]
    assert slots(runners, [many], limit=3) == ["many-2"]


def test_slots_are_dealt_in_turn() -> None:
    first, second = of_many("first", 90, 10)[0], of_many("second", 80, 10)[0]
    assert slots([], [second, first], limit=3) == ["first-0", "first-1", "second-0"]
    assert slots([], [second, first], limit=4) == ["first-0", "first-1", "second-0", "second-1"]


def test_a_busy_node_does_not_hold_up_the_others_of_its_run() -> None:
    many, _ = of_many("many", 90, 3)
    assert slots([running_pod("x", "many-0")], [many], limit=2) == ["many-1"]


def test_the_place_in_a_long_queue_is_rounded_so_that_it_seldom_changes() -> None:
    """The last of two hundred gets its place in the queue ten times, and not two hundred times."""
    busy = [running_pod(str(number), f"b{number}") for number in range(3)]
    queue = [waiting(f"{number:03}", f"n{number}", 900 - number) for number in range(200)]
    allotment = allot(fleet(busy, queue), 3, NOW)
    assert allotment.queue_length == 200
    reported = {allotment.why_not(Slot(f"uid-{number:03}", f"n{number}")) for number in range(200)}
    assert len(reported) == 10
    assert "all 3 runner slots are in use; at most 256 node runs ahead in the queue" in reported


def test_of_many_nodes_of_a_run_the_first_learn_their_place_and_the_others_that_they_come_later() -> None:
    many, _ = of_many("many", 90, 1000)
    allotment = allot(fleet([running_pod("x", "b1")], [many]), 1, NOW)
    reported = [allotment.why_not(Slot("uid-many", f"many-{number}")) for number in range(1000)]
    assert reported[0] == "all 1 runner slots are in use; 0 node runs ahead in the queue"
    assert set(reported[MAX_PLACES:]) == {"all 1 runner slots are in use; other nodes of this run come first"}


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.sets(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 3)), max_size=5
    ),
    st.sets(st.integers(0, 9), max_size=3),
    st.integers(1, 12),
)
def test_the_allotment_is_that_of_a_queue_worked_off_one_by_one(
    wanted: list[tuple[int, set[int], int]], busy: set[int], limit: int
) -> None:
    """Against the rule itself: again and again the next of who has fewest slots, the oldest of them, takes one."""
    diagnoses, pods = [], [running_pod(f"x{number}", f"n{number}") for number in busy]
    for number, (since, nodes, launched) in enumerate(wanted):
        name, names = f"d{number}", [f"n{node}" for node in sorted(nodes)]
        states = [{"nodeName": node, "reason": "Pending"} for node in names]
        diagnoses.append(waiting(name, "none", since, status={"nodeStates": states, "results": []}))
        runners = {naming.child_name(name, f"uid-{name}", RUN, node): node for node in names[:launched]}
        pods += [pod(name=runner, node_name=node, owner=f"uid-{name}") for runner, node in runners.items()]
    allotment = allot(fleet(pods, diagnoses), limit, NOW)

    busy_nodes = {one.spec.node_name for one in pods}
    has = {f"d{number}": min(launched, len(nodes)) for number, (_, nodes, launched) in enumerate(wanted)}
    left = {
        (f"d{number}", f"n{node}")
        for number, (_, nodes, launched) in enumerate(wanted)
        for node in sorted(nodes)[launched:]
    }
    assert allotment.queue_length == len(left)
    order = []
    while next_ones := [
        (has[name], -wanted[int(name[1:])][0], name, node) for name, node in left if node not in busy_nodes
    ]:
        _, _, name, node = min(next_ones)
        order.append(Slot(f"uid-{name}", node))
        has[name] += 1
        left.remove((name, node))
        if len(order) <= limit - len(pods):
            busy_nodes.add(node)
    free = max(0, limit - len(pods))
    assert allotment.admitted == set(order[:free])
    for ahead, slot in enumerate(order[free:]):
        exact = (
            f"at most {1 << (ahead - 1).bit_length()} node runs" if ahead > 1 else ("0 node runs", "1 node run")[ahead]
        )
        assert exact in allotment.why_not(slot), slot
    for name, node in left:
        assert allotment.why_not(Slot(f"uid-{name}", node)) == f"another runner is running on node {node}"


def test_the_work_does_not_grow_with_the_nodes_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 diagnoses of 1,000 nodes each: a name is computed for each runner pod and not for each node that waits."""
    named: list[str] = []
    child_name = naming.child_name

    def counted(*parts: str) -> str:
        named.append(parts[-1])
        return child_name(*parts)

    monkeypatch.setattr(naming, "child_name", counted)
    diagnoses = [of_many(f"d{number:02}", number, 1000)[0] for number in range(100)]
    runners = [
        pod(name=child_name("d00", "uid-d00", RUN, f"d00-{number}"), node_name=f"d00-{number}", owner="uid-d00")
        for number in range(10)
    ]
    everyone = fleet(runners, diagnoses)
    allotment = allot(everyone, 30, NOW)
    assert allotment.queue_length == 100_000 - 10
    assert len(allotment.admitted) == 20
    assert len(named) == 10


def test_who_has_a_runner_waits_for_none() -> None:
    name = naming.child_name("a", "uid-a", RUN, "n1")
    assert admitted([running_pod(name, "n1")], [waiting("a", "n1", 9)], limit=3) == []


@pytest.mark.parametrize(
    ("runner", "holds"),
    [
        pytest.param(pod(phase="Running"), True, id="running"),
        pytest.param(pod(phase="Pending"), True, id="about to be"),
        pytest.param(pod(phase="Running", deleted=True), True, id="being ended"),
        pytest.param(pod(phase="Unknown"), True, id="on a silent node"),
        pytest.param(pod(phase="Succeeded"), False, id="done"),
        pytest.param(pod(phase="Failed"), False, id="failed"),
        pytest.param(pod(phase="Pending", conditions=UNFIT), False, id="cannot be scheduled"),
        pytest.param(pod(phase="Running", age=900), True, id="ending at its deadline"),
        pytest.param(pod(phase="Running", age=911), False, id="outlived its deadline"),
        pytest.param(pod(phase="Running", age=300, deadline_seconds=1), True, id="asked to stop"),
        pytest.param(pod(phase="Failed", age=300, deadline_seconds=1), False, id="stopped"),
        pytest.param(pod(phase="Pending", deleted=True), True, id="is being deleted"),
        pytest.param(pod(phase="Pending", deleted=True, gone_at=ago(1)), False, id="should be gone"),
    ],
)
def test_what_holds_a_slot(runner: Pod, holds: bool) -> None:
    assert holds_slot(runner, NOW) is holds


def test_a_higher_limit_never_starts_more_than_there_are() -> None:
    assert admitted([], [waiting("a", "n1", 1)], limit=1000) == ["a"]


def test_a_lowered_limit_ends_nobody_and_starts_nobody() -> None:
    busy = [running_pod(str(number), f"n{number}") for number in range(5)]
    assert admitted(busy, [waiting("a", "n9", 1)], limit=2) == []
