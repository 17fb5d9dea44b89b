"""Which nodes a run is about: a stable choice, made once, or the reason why there is none."""

from typing import Any

import pytest

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import NodeSelector, PodReference, Target
from memdiag_operator.config import AllowedNodes, LabelRequirement
from memdiag_operator.decide.target import Choice, choose_nodes, spec_fault
from memdiag_operator.kube.objects import InvalidSpec, Node, Pod
from memdiag_operator.status.states import run_states
from support.kubernetes_objects import diagnosis, node, pod

ALL = AllowedNodes()
WEB = {"pool": "web"}
SELECTOR = Target(node_selector=NodeSelector(match_labels=WEB), max_nodes=2)
OF_POD = Target(pod_ref=PodReference(namespace="web", name="nginx-7d4"))


def web_node(name: str, **fields: Any) -> Node:
    return node(name, labels={**WEB, **fields.pop("labels", {})}, **fields)


def app_pod(phase: str = "Running", node_name: str = "node7") -> Pod:
    return pod(name="nginx-7d4", phase=phase, node_name=node_name)


def test_a_named_node_is_the_node_whether_or_not_it_exists() -> None:
    assert choose_nodes(Target(node_name="node1"), ALL) == Choice("node1", ("node1",))


def test_of_the_selected_the_first_by_name_are_taken_in_any_order_of_arrival() -> None:
    nodes = [web_node(name) for name in ("c", "a", "d", "b")]
    for order in (nodes, nodes[::-1]):
        assert choose_nodes(SELECTOR, ALL, selected=tuple(order)) == Choice("2 of 4 with pool=web", ("a", "b"))


def test_nodes_that_are_ready_come_first_but_others_are_not_hidden() -> None:
    silent, well = web_node("a", ready="Unknown"), web_node("b")
    assert choose_nodes(SELECTOR, ALL, selected=(silent, well)).node_names == ("b", "a")
    assert choose_nodes(SELECTOR, ALL, selected=(silent, well, web_node("c"))).node_names == ("b", "c")
    never_reported = web_node("a", conditions=[])
    assert choose_nodes(SELECTOR, ALL, selected=(never_reported, well)).node_names == ("b", "a")


def test_nodes_that_no_runner_can_serve_are_passed_over() -> None:
    selected = (
        web_node("a", nodeInfo={"operatingSystem": "windows"}),
        web_node("b", labels={"type": "virtual-kubelet"}),
        web_node("c"),
    )
    assert choose_nodes(SELECTOR, ALL, selected=selected) == Choice("1 of 3 with pool=web", ("c",))


def test_nodes_that_may_not_be_diagnosed_are_passed_over() -> None:
    allowed = AllowedNodes(match_expressions=(LabelRequirement(key="secret", operator="DoesNotExist"),))
    selected = (web_node("a", labels={"secret": "yes"}), web_node("b"))
    assert choose_nodes(SELECTOR, allowed, selected=selected).node_names == ("b",)


@pytest.mark.parametrize(
    ("selected", "allowed", "reason", "said"),
    [
        pytest.param(
            (), ALL, Reason.NODE_NOT_FOUND, "no node has the labels pool=web: run `kubectl get", id="no match"
        ),
        pytest.param(
            (web_node("a", nodeInfo={"operatingSystem": "windows"}), web_node("b", labels={"type": "virtual-kubelet"})),
            ALL,
            Reason.NODE_UNSUPPORTED,
            "none of the 2 nodes with the labels pool=web can be diagnosed: node a runs windows",
            id="none can be served",
        ),
        pytest.param(
            (web_node("a"),),
            AllowedNodes(match_labels={"diagnose": "yes"}),
            Reason.NODE_NOT_ALLOWED,
            "requires nodes with diagnose=yes",
            id="none is allowed",
        ),
    ],
)
def test_labels_without_a_node_say_why(
    selected: tuple[Node, ...], allowed: AllowedNodes, reason: Reason, said: str
) -> None:
    choice = choose_nodes(SELECTOR, allowed, selected=selected)
    assert choice.node_names == ()
    assert choice.refusal
    assert choice.refusal[0] is reason
    assert said in choice.refusal[1]


def test_a_pods_node_is_the_one_that_it_is_bound_to() -> None:
    assert choose_nodes(OF_POD, ALL, target_pod=app_pod()) == Choice("web/nginx-7d4 on node7", ("node7",))
    starting = app_pod(phase="Pending")
    assert choose_nodes(OF_POD, ALL, target_pod=starting).node_names == ("node7",)


@pytest.mark.parametrize(
    ("found", "reason", "said"),
    [
        pytest.param(
            None, Reason.POD_NOT_FOUND, "there is no pod web/nginx-7d4: run `kubectl -n web get pods`", id="none"
        ),
        pytest.param(
            app_pod(phase="Pending", node_name=""), Reason.POD_NOT_RUNNING, "is not on a node yet", id="unscheduled"
        ),
        pytest.param(app_pod(phase="Succeeded"), Reason.POD_NOT_RUNNING, "has ended", id="done"),
        pytest.param(app_pod(phase="Failed"), Reason.POD_NOT_RUNNING, "has ended", id="failed"),
    ],
)
def test_a_pod_without_a_node_says_why(found: Pod | None, reason: Reason, said: str) -> None:
    choice = choose_nodes(OF_POD, ALL, target_pod=found)
    assert choice.refusal
    assert choice.refusal[0] is reason
    assert said in choice.refusal[1]


def test_the_choice_is_what_the_status_says_and_not_made_again() -> None:
    states = [{"nodeName": "b", "reason": "Completed", "verdict": "NoLeak"}, {"nodeName": "a", "reason": "Pending"}]
    one = diagnosis(
        spec={"target": {"nodeSelector": {"matchLabels": WEB}, "maxNodes": 2}},
        status={"observedGeneration": 1, "nodeStates": states, "results": [{"nodeName": "a", "reason": "Pending"}]},
    )
    assert {name: state.reason for name, state in run_states(one).items()} == {"b": "Completed", "a": "Pending"}


@pytest.mark.parametrize(
    ("labels", "faulty"),
    [
        ({"pool": "web"}, ""),
        ({"example.com/pool": ""}, ""),
        ({"a in (b),c": "d"}, "'a in (b),c' is not a valid label key"),
        ({"pool": "web,secret"}, "should match pattern"),
        ({"pool\n": "web"}, "is not a valid label key"),
        ({"": "web"}, "'' is not a valid label key"),
        ({"pool": "web\n"}, "should match pattern"),
    ],
)
def test_labels_that_can_be_no_nodes_are_refused_and_never_sent(labels: dict[str, str], faulty: str) -> None:
    one = diagnosis(spec={"target": {"nodeSelector": {"matchLabels": labels}, "maxNodes": 1}})
    fault = spec_fault(one.spec)
    assert faulty in fault
    assert bool(fault) is bool(faulty)


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("web", "nginx,spec.serviceAccountName=admin"),
        ("web", "nginx\n"),
        ("web/pods/other?", "nginx"),
        ("../default", "nginx"),
        ("web", ""),
    ],
)
def test_a_pods_name_cannot_ask_for_more_than_a_pod(namespace: str, name: str) -> None:
    """It goes into a field selector: one with a comma could find out whose service account a foreign pod has."""
    one = diagnosis(spec={"target": {"podRef": {"namespace": namespace, "name": name}}})
    assert isinstance(one.spec, InvalidSpec)
