"""Nothing drifts: applied objects stay as they were applied, by any client, while the operator is running."""

import json
from typing import Any

import pytest

from local_cluster.paths import PROJECT
from support.cluster import TestCluster
from support.hollow_node import eventually
from support.operator_world import World, pod_of

EXAMPLES = ("memdiag.yaml", "gitops/memdiag.yaml", "gitops/argocd/post-sync-gate.yaml", "gitops/job/memdiag.yaml")
MODES = {"client-side": (), "server-side": ("--server-side",)}

# What tools put on the objects that they own. On a child it would make them take it for theirs, and prune it.
OWNERS_LABELS = {
    "app.kubernetes.io/instance": "my-application",
    "argocd.argoproj.io/instance": "my-application",
    "kustomize.toolkit.fluxcd.io/name": "my-kustomization",
    "kustomize.toolkit.fluxcd.io/namespace": "flux-system",
    "team": "payments",
}
OWNERS_ANNOTATIONS = {
    "argocd.argoproj.io/tracking-id": "my-application:memdiag.dev/MemoryDiagnosis:/owned",
    "argocd.argoproj.io/sync-wave": "5",
    "example.com/note": "mine",
}


def diagnosis(name: str, node: str, **meta: Any) -> str:
    document = {
        "apiVersion": "memdiag.dev/v1alpha1",
        "kind": "MemoryDiagnosis",
        "metadata": {"name": name, **meta},
        "spec": {"target": {"nodeName": node}, "duration": "5s"},
    }
    return json.dumps(document)


def version(world: World, name: str) -> str:
    """The resource version once the operator has nothing more to write."""
    found: str = world.read(name)["metadata"]["resourceVersion"]
    return found


@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_applied_twice_is_changed_by_neither_side(
    world: World, example: str, options: tuple[str, ...]
) -> None:
    """The node is missing, so each ends at once; what is compared is the same for every end."""
    path = str(PROJECT / "examples" / example)
    name = world.cluster.kubectl("create", "--dry-run=client", "-f", path, "-o", "jsonpath={.metadata.name}")
    world.cluster.kubectl("apply", *options, "-f", path)
    world.end(name)
    before = version(world, name)
    assert world.cluster.kubectl("diff", *options, "-f", path) == ""
    assert "serverside-applied" in (said := world.cluster.kubectl("apply", *options, "-f", path)) or "unchanged" in said
    assert version(world, name) == before


@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
def test_a_run_that_goes_on_is_not_disturbed_by_applying_again(world: World, options: tuple[str, ...]) -> None:
    node = world.node("node-a")
    apply = ("apply", *options, "-f", "-")
    world.cluster.kubectl(*apply, input=diagnosis("busy", node.name))
    runner = node.runner()
    node.run(runner)
    eventually(lambda: world.condition("busy")[1] == "Running")
    run = world.read("busy")["status"]["runID"]
    world.cluster.kubectl(*apply, input=diagnosis("busy", node.name))
    world.deliver(node, runner)
    assert world.end("busy")[:2] == ("True", "Completed")
    world.cluster.kubectl(*apply, input=diagnosis("busy", node.name))
    assert world.read("busy")["status"]["runID"] == run
    assert world.read("busy")["metadata"]["generation"] == 1


def managers(world: World, name: str) -> dict[str, set[str]]:
    """Who owns what of an object: its parts, `f:status` and so on, by `manager` or `manager/subresource`."""
    text = world.cluster.kubectl("get", "memdiag", name, "-o", "json", "--show-managed-fields")
    owned: dict[str, set[str]] = {}
    for entry in json.loads(text)["metadata"]["managedFields"]:
        who = "/".join(filter(None, (entry["manager"], entry.get("subresource", ""))))
        owned.setdefault(who, set()).update(entry["fieldsV1"])
    return owned


def test_the_operator_owns_the_status_and_nothing_else(world: World) -> None:
    node = world.node("node-a")
    world.cluster.kubectl(
        "apply", "--server-side", "--field-manager=git", "-f", "-", input=diagnosis("owned", "node-a")
    )
    world.run(node)
    world.end("owned")
    owned = managers(world, "owned")
    assert owned.pop("git") == {"f:spec"}
    (operator,) = owned
    assert operator.endswith("/status")
    assert owned[operator] == {"f:status"}


def test_two_managers_and_the_operator_do_not_conflict(world: World) -> None:
    """One applies the spec, another a label and the request for a rerun; neither needs --force-conflicts."""
    node = world.node("node-a")
    by_git = ("apply", "--server-side", "--field-manager=git", "-f", "-")
    by_person = ("apply", "--server-side", "--field-manager=person", "-f", "-")
    mine = {
        "apiVersion": "memdiag.dev/v1alpha1",
        "kind": "MemoryDiagnosis",
        "metadata": {"name": "two", "labels": {"team": "a"}, "annotations": {"memdiag.dev/requestedAt": "again"}},
    }
    world.cluster.kubectl(*by_git, input=diagnosis("two", node.name))
    world.run(node)
    world.end("two")
    # The spec's required field must be there; the same value is not a conflict but shared.
    mine["spec"] = {"target": {"nodeName": node.name}}
    world.cluster.kubectl(*by_person, input=json.dumps(mine))
    world.run(node)
    eventually(lambda: world.read("two")["status"].get("lastHandledRequest") == "again")
    world.end("two")
    world.cluster.kubectl(*by_git, input=diagnosis("two", node.name))
    after = world.read("two")
    assert after["metadata"]["labels"] == {"team": "a"}
    assert after["metadata"]["annotations"] == {"memdiag.dev/requestedAt": "again"}
    assert after["spec"]["duration"] == "5s"


def test_a_status_in_a_manifest_is_dropped(world: World) -> None:
    """A manifest saved by `kubectl get -o yaml` has one: applying it does not make the applier own the status."""
    world.cluster.kubectl("apply", "--server-side", "-f", "-", input=diagnosis("saved", "no-such-node"))
    world.end("saved")
    status = world.read("saved")["status"]
    saved = json.loads(diagnosis("saved", "no-such-node")) | {"status": {"summary": "all is well"}}
    world.cluster.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(saved))
    assert world.read("saved")["status"] == status


def test_nothing_of_the_owner_is_copied_to_its_children(world: World) -> None:
    node = world.node("node-a")
    document = diagnosis("owned", node.name, labels=OWNERS_LABELS, annotations=OWNERS_ANNOTATIONS)
    world.cluster.kubectl("apply", "-f", "-", input=document)
    runner = node.runner()
    pod = pod_of(world, runner)
    world.run(node)
    world.end("owned")
    (report,) = world.reports("owned")
    events = json.loads(world.cluster.kubectl("get", "events", "-o", "json"))["items"]
    assert len(events) >= 2
    for child in (pod, report, *events):
        meta = child["metadata"]
        assert not meta.get("labels", {}).keys() & OWNERS_LABELS.keys()
        annotations = {*OWNERS_ANNOTATIONS, "kubectl.kubernetes.io/last-applied-configuration"}
        assert not meta.get("annotations", {}).keys() & annotations
    # and the diagnosis still has exactly what it was applied with
    after = world.read("owned")["metadata"]
    assert after["labels"] == OWNERS_LABELS
    assert after["annotations"].keys() - OWNERS_ANNOTATIONS.keys() == {
        "kubectl.kubernetes.io/last-applied-configuration"
    }


def test_the_installation_applied_again_changes_nothing(installed: TestCluster) -> None:
    overlay = str(PROJECT / "manifests/overlays/embedded")
    found = installed.try_kubectl("diff", "--server-side", "-k", overlay)  # its status is 1 if there is a difference
    assert (found.stdout, found.stderr) == ("", "")

    def versions() -> dict[str, str]:
        listed = installed.kubectl("get", "--ignore-not-found", "-k", overlay, "-o", "json")
        return {
            f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["resourceVersion"]
            for one in json.loads(listed)["items"]
        }

    before = versions()
    assert len(before) > 15
    installed.kubectl("apply", "--server-side", "-k", overlay)
    assert versions() == before
