"""The custom resources as users meet them: what is refused and in which words, defaulted, pruned, shown, explained."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml

from local_cluster.paths import PROJECT
from memdiag_api.crd import custom_resource_definitions
from memdiag_operator.decide.pace import size_bytes
from support.clockwork import largest_run
from support.cluster import TestCluster

NAME = "rules"
VALID: dict[str, Any] = {
    "apiVersion": "memdiag.dev/v1alpha1",
    "kind": "MemoryDiagnosis",
    "metadata": {"name": NAME},
    "spec": {"target": {"nodeName": "node1"}},
}


def manifest(**spec: Any) -> str:
    """A valid diagnosis with these parts of its spec in place of the valid ones."""
    made = deepcopy(VALID)
    made["spec"] |= spec
    return json.dumps(made)


@pytest.fixture
def stored(installed: TestCluster) -> Iterator[TestCluster]:
    """With a diagnosis that nobody works on."""
    installed.kubectl("apply", "-f", "-", input=manifest())
    yield installed
    installed.kubectl("delete", "memdiag", NAME)


def read(cluster: TestCluster) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(cluster.kubectl("get", "memdiag", NAME, "-o", "json"))
    return document


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no target": ({"target": {}}, "target takes exactly one of nodeName, nodeSelector and podRef"),
    "two targets": (
        {"target": {"nodeName": "a", "podRef": {"namespace": "a", "name": "b"}}},
        "target takes exactly one of nodeName, nodeSelector and podRef",
    ),
    "a pod without a namespace": (
        {"target": {"podRef": {"name": "b"}}},
        "spec.target.podRef.namespace: Required value",
    ),
    "a pod without a name": ({"target": {"podRef": {"namespace": "a"}}}, "spec.target.podRef.name: Required value"),
    "a selector without labels": (
        {"target": {"nodeSelector": {"matchLabels": {}}, "maxNodes": 1}},
        "matchLabels in body should have at least 1 properties",
    ),
    "a selector in a label's disguise": (
        {"target": {"nodeSelector": {"matchLabels": {"pool in (web),a": "b"}}, "maxNodes": 1}},
        "matchLabels has a key that no label can have: write it as pool or example.com/pool",
    ),
    "a label's value that is a list": (
        {"target": {"nodeSelector": {"matchLabels": {"pool": "web,db"}}, "maxNodes": 1}},
        "spec.target.nodeSelector.matchLabels.pool in body should match",
    ),
    "a pod's name that asks for more": (
        {"target": {"podRef": {"namespace": "a", "name": "b,spec.serviceAccountName=admin"}}},
        "spec.target.podRef.name in body should match",
    ),
    "a namespace that leads elsewhere": (
        {"target": {"podRef": {"namespace": "../a", "name": "b"}}},
        "spec.target.podRef.namespace in body should match",
    ),
    "a selector of nothing": (
        {"target": {"nodeSelector": {"matchLabels": {"a": "b"}}, "maxNodes": 0}},
        "should be greater than or equal to 1",
    ),
    "a selector of too many": (
        {"target": {"nodeSelector": {"matchLabels": {"a": "b"}}, "maxNodes": 1001}},
        "should be less than or equal to 1000",
    ),
    "a selector without a bound": (
        {"target": {"nodeSelector": {"matchLabels": {"a": "b"}}}},
        "target.maxNodes goes with nodeSelector, and nodeSelector needs it",
    ),
    "a bound without a selector": (
        {"target": {"nodeName": "a", "maxNodes": 1}},
        "target.maxNodes goes with nodeSelector, and nodeSelector needs it",
    ),
    "no node's name": ({"target": {"nodeName": "Node_1"}}, "spec.target.nodeName"),
    "a short window": ({"duration": "4s"}, "duration must be from 5s to 30m"),
    "a long window": ({"duration": "30m1s"}, "duration must be from 5s to 30m"),
    "a window without a unit": ({"duration": "60"}, "spec.duration"),
    "a deadline within the window": (
        {"duration": "2m", "activeDeadlineSeconds": 120},
        "activeDeadlineSeconds must be longer than duration: the runner needs time to start and to report",
    ),
    "a short deadline": ({"activeDeadlineSeconds": 29}, "should be greater than or equal to 30"),
    "no check": ({"checks": []}, "should have at least 1 items"),
    "an unknown check": ({"checks": ["Everything"]}, 'supported values: "Breakdown", "AllocPageTrace", "SocketQueues"'),
    "a check twice": ({"checks": ["Breakdown", "Breakdown"]}, "Duplicate value"),
    "a long list": ({"topN": 21}, "should be less than or equal to 20"),
    "an unknown failOn": ({"failOn": "Always"}, 'supported values: "Never", "LeakDetected"'),
    "a negative time to live": ({"ttlSecondsAfterFinished": -1}, "should be greater than or equal to 0"),
}


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_spec_is_refused_with_a_message(installed: TestCluster, spec: dict[str, Any], message: str) -> None:
    done = installed.try_kubectl("create", "--dry-run=server", "-f", "-", input=manifest(**spec))
    assert done.returncode != 0
    assert message in done.stderr


ACCEPTED: dict[str, dict[str, Any]] = {
    "the shortest": {},
    "nodes by their labels": {"target": {"nodeSelector": {"matchLabels": {"pool": "web"}}, "maxNodes": 1000}},
    "labels of every kind": {
        "target": {
            "nodeSelector": {"matchLabels": {"a": "", "example.com/pool": "Web_1.x-y", "k" * 63: "v" * 63}},
            "maxNodes": 1,
        }
    },
    "a pod's node": {"target": {"podRef": {"namespace": "web", "name": "nginx-7d4"}}},
    "edges of the window": {"duration": "30m", "activeDeadlineSeconds": 1801},
    "minutes and seconds": {"duration": "1m30s"},
    "all there is": {
        "checks": ["SocketQueues"],
        "duration": "5s",
        "topN": 1,
        "activeDeadlineSeconds": 30,
        "failOn": "LeakDetected",
        "suspend": True,
        "terminate": True,
        "ttlSecondsAfterFinished": 0,
    },
}


@pytest.mark.parametrize("spec", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_right_spec_is_accepted(installed: TestCluster, spec: dict[str, Any]) -> None:
    installed.kubectl("create", "--dry-run=server", "-f", "-", input=manifest(**spec))


@pytest.mark.parametrize("name", ["memdiag.yaml", "memdiag-nodes.yaml", "memdiag-pod.yaml"])
def test_the_examples_are_accepted(installed: TestCluster, name: str) -> None:
    installed.kubectl("create", "--dry-run=server", "-f", str(PROJECT / "examples" / name))


def test_the_largest_status_fits(stored: TestCluster) -> None:
    """A thousand nodes with names as long as they get: what etcd holds of it, with what the API server adds."""
    clock = largest_run()
    largest = max(clock.statuses, key=size_bytes)
    patch = json.dumps({"status": largest.to_json_object()})
    stored.kubectl(
        "patch", "memdiag", NAME, "--type=merge", "--subresource=status", "--patch-file=/dev/stdin", input=patch
    )
    kept = stored.kubectl("get", "memdiag", NAME, "-o", "json", "--show-managed-fields")
    assert len(json.loads(kept)["status"]["nodeStates"]) == 1000
    assert len(json.dumps(json.loads(kept), separators=(",", ":"))) < 256 * 1024


IMMUTABLE: dict[str, Any] = {
    "target": {"nodeName": "node2"},
    "checks": ["Breakdown"],
    "duration": "61s",
    "topN": 11,
    "cpuBudgetPercent": 6,
    "activeDeadlineSeconds": 901,
    "failOn": "LeakDetected",
}


@pytest.mark.parametrize(("field", "value"), IMMUTABLE.items())
def test_what_was_measured_cannot_be_changed_afterwards(stored: TestCluster, field: str, value: Any) -> None:
    patch = json.dumps({"spec": {field: value}})
    done = stored.try_kubectl("patch", "memdiag", NAME, "--type=merge", "-p", patch)
    assert done.returncode != 0
    assert f"{field} cannot be changed: create a new MemoryDiagnosis, or set the annotation" in done.stderr


@pytest.mark.parametrize(("field", "value"), [("suspend", True), ("terminate", True), ("ttlSecondsAfterFinished", 60)])
def test_what_steers_a_run_can_be_changed(stored: TestCluster, field: str, value: Any) -> None:
    stored.kubectl("patch", "memdiag", NAME, "--type=merge", "-p", json.dumps({"spec": {field: value}}))
    assert read(stored)["spec"][field] == value


def test_every_field_of_the_spec_is_either_immutable_or_steers(installed: TestCluster) -> None:
    definition = custom_resource_definitions()["memdiag.dev_memorydiagnoses.yaml"]
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    steering = {"suspend", "terminate", "ttlSecondsAfterFinished"}
    assert set(schema["properties"]["spec"]["properties"]) == set(IMMUTABLE) | steering


def test_defaults_are_filled_in_and_the_status_says_that_nobody_has_looked(stored: TestCluster) -> None:
    diagnosis = read(stored)
    assert diagnosis["spec"] == {
        "target": {"nodeName": "node1"},
        "checks": ["Breakdown", "AllocPageTrace", "SocketQueues"],
        "duration": "60s",
        "topN": 10,
        "cpuBudgetPercent": 5,
        "activeDeadlineSeconds": 900,
        "failOn": "Never",
        "suspend": False,
        "terminate": False,
    }
    assert diagnosis["status"] == {"observedGeneration": -1}


def test_unknown_fields_are_refused_by_kubectl_and_pruned_by_the_api_server(installed: TestCluster) -> None:
    text = manifest(image="evil/runner", command=["sh"])
    refused = installed.try_kubectl("create", "-f", "-", input=text)
    assert 'unknown field "spec.image"' in refused.stderr
    assert 'unknown field "spec.command"' in refused.stderr
    created = installed.kubectl("create", "--dry-run=server", "--validate=false", "-o", "json", "-f", "-", input=text)
    assert "image" not in json.loads(created)["spec"]


def test_two_managers_apply_without_conflict(stored: TestCluster) -> None:
    apply = ("apply", "--server-side", "-f", "-")
    mine = json.dumps(VALID | {"metadata": {"name": NAME, "labels": {"team": "a"}}})
    theirs = json.dumps({**VALID, "spec": {**VALID["spec"], "suspend": True}})
    stored.kubectl(*apply, "--field-manager=pipeline", input=mine)
    stored.kubectl(*apply, "--field-manager=person", input=theirs)
    stored.kubectl(*apply, "--field-manager=pipeline", input=mine)
    diagnosis = read(stored)
    assert diagnosis["metadata"]["labels"] == {"team": "a"}
    assert diagnosis["spec"]["suspend"] is True


def test_applying_the_same_again_changes_nothing(stored: TestCluster) -> None:
    before = read(stored)["metadata"]["resourceVersion"]
    stored.kubectl("apply", "-f", "-", input=manifest())
    assert read(stored)["metadata"]["resourceVersion"] == before


def test_status_and_spec_are_written_apart(stored: TestCluster) -> None:
    both = json.dumps({"spec": {"suspend": True}, "status": {"runID": "forged"}})
    stored.kubectl("patch", "memdiag", NAME, "--type=merge", "-p", both)
    assert "runID" not in read(stored)["status"]
    stored.kubectl(
        "patch", "memdiag", NAME, "--type=merge", "--subresource=status", "-p", json.dumps({"spec": {"suspend": False}})
    )
    diagnosis = read(stored)
    assert diagnosis["spec"]["suspend"] is True
    assert diagnosis["metadata"]["generation"] == 2


def test_columns_show_the_answer(stored: TestCluster) -> None:
    assert stored.kubectl("get", "memorydiagnoses").split("\n")[0].split() == [
        "NAME", "TARGET", "SUCCEEDED", "REASON", "PROGRESS", "LEAK", "ALLOCPAGE", "FINDING", "AGE",
    ]  # fmt: skip
    wide = stored.kubectl("get", "memdiag", NAME, "-o", "wide").split("\n")[0].split()
    assert wide[-2:] == ["VERDICT", "SUMMARY"]
    assert stored.kubectl("get", "memdiagreport", "--ignore-not-found") == ""


def test_diagnoses_are_found_by_their_node(stored: TestCluster) -> None:
    find = ("get", "memdiag", "-o", "name", "--field-selector")
    assert NAME in stored.kubectl(*find, "spec.target.nodeName=node1")
    assert stored.kubectl(*find, "spec.target.nodeName=node2") == ""


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field below a place, as kubectl explain names it."""
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}", part
        yield from fields(part, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], path)


@pytest.mark.parametrize("file_name", list(custom_resource_definitions()))
def test_every_field_is_explained(installed: TestCluster, file_name: str) -> None:
    definition = yaml.safe_load((PROJECT / "crds" / file_name).read_text())
    kind = definition["spec"]["names"]["singular"]
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    unexplained = [
        path for path, part in fields(schema, kind) if not part.get("description", path.endswith(".metadata"))
    ]
    assert unexplained == []
    explained = installed.kubectl("explain", kind)
    assert "DESCRIPTION:" in explained
    assert "<no description>" not in explained


def test_explaining_a_field_says_how_to_use_it(installed: TestCluster) -> None:
    text = " ".join(installed.kubectl("explain", "memorydiagnosis.spec.duration").split())
    assert "Duration of the trace, from 5s to 30m, such as 90s, 10m or 1m30s." in text


def test_a_report_belongs_to_no_user(installed: TestCluster) -> None:
    """None of the roles that memdiag ships for people can write a result."""
    for role in ("memdiag-requester", "memdiag-viewer"):
        rules = json.loads(installed.kubectl("get", "clusterrole", role, "-o", "json"))["rules"]
        for rule in rules:
            writes = set(rule["verbs"]) - {"get", "list", "watch"}
            assert not writes or rule["resources"] == ["memorydiagnoses"]
