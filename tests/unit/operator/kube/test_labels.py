"""Label selectors mean what they mean to Kubernetes."""

import pytest

from memdiag_operator.config import AllowedNodes, parse_config
from memdiag_operator.kube.labels import allows, described, equality_selector

NODES = {
    "plain": {"kubernetes.io/os": "linux"},
    "web": {"pool": "web", "zone": "a"},
    "db": {"pool": "db", "zone": "b"},
    "empty": {"pool": "", "zone": "a"},
}


def allowed_nodes(text: str) -> AllowedNodes:
    return parse_config(f"runner: {{image: a, allowTags: true}}\nallowedNodes: {text}").allowed_nodes


# Expectations are what `kubectl get nodes -l SELECTOR` lists (apimachinery: pkg/labels/selector.go).
@pytest.mark.parametrize(
    ("selector", "text", "names"),
    [
        ("{}", "", ["plain", "web", "db", "empty"]),
        ("{matchLabels: {pool: web}}", "pool=web", ["web"]),
        ("{matchLabels: {pool: ''}}", "pool=", ["empty"]),
        ("{matchLabels: {pool: web, zone: b}}", "pool=web,zone=b", []),
        ("{matchExpressions: [{key: pool, operator: In, values: [web, db]}]}", "pool in (web,db)", ["web", "db"]),
        (
            "{matchExpressions: [{key: pool, operator: NotIn, values: [web]}]}",
            "pool notin (web)",
            ["plain", "db", "empty"],
        ),
        ("{matchExpressions: [{key: pool, operator: Exists}]}", "pool", ["web", "db", "empty"]),
        ("{matchExpressions: [{key: pool, operator: DoesNotExist}]}", "!pool", ["plain"]),
        (
            "{matchLabels: {zone: a}, matchExpressions: [{key: pool, operator: NotIn, values: ['']}]}",
            "zone=a,pool notin ()",
            ["web"],
        ),
    ],
)
def test_a_selector_selects_as_kubectl_does(selector: str, text: str, names: list[str]) -> None:
    allowed = allowed_nodes(selector)
    assert [name for name, labels in NODES.items() if allows(allowed, labels)] == names
    assert described(allowed) == text


def test_a_selector_for_the_api_server_does_not_depend_on_the_order_of_writing() -> None:
    assert equality_selector({"b": "2", "a": ""}) == equality_selector({"a": "", "b": "2"}) == "a=,b=2"
