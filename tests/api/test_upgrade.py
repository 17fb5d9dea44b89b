"""An upgrade in the middle of a run: the new definitions replace the old, the new operator carries on what it finds."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster.paths import PROJECT
from memdiag_operator.kube import naming
from support.cluster import TestCluster
from support.hollow_node import HollowNode, eventually, log_endpoint
from support.kubernetes_objects import timestamp
from support.operator_process import running_operator
from support.operator_world import CONFIG, World, operator_world, pod_of, sweep_away
from support.runner_manifest import runner_manifest

RELEASED = PROJECT / "tests" / "fixtures" / "released" / "0.1.0"
OPERATOR = "system:serviceaccount:memdiag-system:memdiag-operator"


@pytest.fixture
def former(installed: TestCluster) -> Iterator[TestCluster]:
    """With the definitions of 0.1.0 and no operator; those of this version are restored in any case."""
    install(installed, RELEASED / "crds")
    yield installed
    install(installed, PROJECT / "crds")
    sweep_away(installed)


def install(cluster: TestCluster, folder: Path) -> None:
    for path in sorted(folder.glob("memdiag.dev_*.yaml")):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))


def recorded(name: str) -> str:
    return (RELEASED / "objects" / f"{name}.json").read_text()


def as_of_now(text: str, origin: datetime) -> str:
    """A recorded text with its times moved so that `origin` is now: deadlines count from them."""
    delta = datetime.now(UTC).replace(microsecond=0) - origin
    return re.sub(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z",
        lambda found: timestamp(datetime.fromisoformat(found[0]) + delta),
        text,
    )


class Former:
    """What 0.1.0 left: its objects under the identities that this API server assigns."""

    def __init__(self, cluster: TestCluster, node_uid: str) -> None:
        self._cluster = cluster
        self._node_uid = node_uid

    def store(self, name: str, file_name: str) -> str:
        """A diagnosis with its status; the name that its runner pod has."""
        document = json.loads(recorded(file_name))
        status = document.pop("status")
        document["metadata"] = {"name": name}
        created = json.loads(self._cluster.kubectl("create", "-o", "json", "-f", "-", input=json.dumps(document)))
        uid = created["metadata"]["uid"]
        runner = naming.child_name(name, uid, status.get("runID", ""), "node1")
        text = json.dumps({"status": status})
        if "startTime" in status:
            text = as_of_now(text, datetime.fromisoformat(status["startTime"]))
        for result in status.get("results", []):
            text = text.replace(result.get("podName") or runner, runner)
        self._cluster.kubectl("patch", "memdiag", name, "--type=merge", "--subresource=status", "-p", text)
        return runner

    def start(self, runner: str, diagnosis: str) -> None:
        """The runner pod of a diagnosis, as 0.1.0 made it."""
        owner = json.loads(self._cluster.kubectl("get", "memdiag", diagnosis, "-o", "json"))["metadata"]
        pod: dict[str, Any] = json.loads(recorded("pod-running"))
        meta, spec = pod["metadata"], pod["spec"]
        node_uid, owner_uid = meta["annotations"][naming.NODE_UID_ANNOTATION], meta["ownerReferences"][0]["uid"]
        kept = {key: meta[key] for key in ("labels", "annotations", "ownerReferences", "namespace")} | {"name": runner}
        del spec["nodeName"]  # only a scheduler may say so
        text = json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": kept, "spec": spec})
        text = text.replace(node_uid, self._node_uid).replace(owner_uid, owner["uid"])
        text = text.replace('"name": "where"', f'"name": "{diagnosis}"')
        text = text.replace('"memdiag.dev/diagnosis": "where"', f'"memdiag.dev/diagnosis": "{diagnosis}"')
        with without_admission(self._cluster):
            self._cluster.kubectl("create", f"--as={OPERATOR}", "-f", "-", input=text)


@contextmanager
def without_admission(cluster: TestCluster) -> Iterator[None]:
    """What is created here was there before this version's admission policy, which lets in no such pod."""

    def refusal() -> str:
        """The policy's answer to another account's pod; empty while it is not in force."""
        return cluster.try_kubectl(*dry_run, input=json.dumps(runner_manifest())).stderr

    dry_run = ("-n", "memdiag-runners", "create", "--dry-run=server", "-f", "-")
    binding = ("validatingadmissionpolicybinding", "memdiag-runners")
    overlay = yaml.safe_load_all(cluster.kubectl("kustomize", str(PROJECT / "manifests/overlays/embedded")))
    (applied,) = [one for one in overlay if (one["kind"].lower(), one["metadata"]["name"]) == binding]
    cluster.kubectl("delete", *binding)
    try:
        eventually(lambda: refusal() == "")
        yield
    finally:
        cluster.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(applied))
        eventually(lambda: "only the memdiag operator" in refusal())


@dataclass(frozen=True)
class Interrupted:
    """A run of 0.1.0, called `running`, whose runner works on node1."""

    old: Former
    node: HollowNode
    runner: str
    logs: Path
    address: str

    @contextmanager
    def upgraded(self, folder: Path) -> Iterator[World]:
        """Have the definitions and the operator of this version, for as long as the body takes."""
        cluster = self.node.cluster
        install(cluster, PROJECT / "crds")
        with running_operator(cluster, folder, CONFIG) as operator:
            yield World(cluster, operator, self.logs, self.address)


@pytest.fixture
def interrupted(former: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    logs = tmp_path_factory.mktemp("logs")
    with log_endpoint(former, logs) as address:
        node = HollowNode(former, "node1", logs)
        node.register(address, nodeInfo=json.loads(recorded("node"))["status"]["nodeInfo"])
        uid = json.loads(former.kubectl("get", "node", "node1", "-o", "json"))["metadata"]["uid"]
        old = Former(former, uid)
        runner = old.store("running", "diagnosis-running")
        old.start(runner, "running")
        node.run(runner)
        yield Interrupted(old, node, runner, logs, address)


def test_what_0_1_0_left_is_carried_on_under_the_new_definitions(
    former: TestCluster, interrupted: Interrupted, tmp_path: Path
) -> None:
    node, runner = interrupted.node, interrupted.runner
    for word in ("finished", "pending", "suspended"):
        interrupted.old.store(word, f"diagnosis-{word}")
    before = json.loads(former.kubectl("get", "memdiag", "pending", "-o", "json"))["status"]
    finished = former.kubectl("get", "memdiag", "finished", "-o", "jsonpath={.status}")

    with interrupted.upgraded(tmp_path) as world:
        # The running runner is found, reported in the new way, and its result read.
        eventually(lambda: world.read("running")["status"].get("progress", "").startswith("Tracing"))
        assert [pod["metadata"]["name"] for pod in world.pods()] == [runner]
        assert "another runner is running on node node1" in world.condition("pending")[2]
        world.deliver(node, runner)
        assert world.end("running")[:2] == ("True", "Completed")
        assert [one["podName"] for one in world.reports("running")] == [runner]

        # Who waited gets the slot, in the run that it waited in.
        world.run(node)
        assert world.end("pending")[:2] == ("True", "Completed")
        after = world.read("pending")["status"]
        assert (after["runID"], after["startTime"]) == (before["runID"], before["startTime"])

        # What had ended, or rested, is not touched; asked to run again, it remembers.
        assert former.kubectl("get", "memdiag", "finished", "-o", "jsonpath={.status}") == finished
        assert world.condition("suspended")[:2] == ("Unknown", "Suspended")
        former.kubectl("annotate", "memdiag", "finished", "memdiag.dev/requestedAt=now")
        world.run(node)
        eventually(lambda: world.read("finished")["status"].get("lastRun"))
        assert world.end("finished")[:2] == ("True", "Completed")
        assert world.read("finished")["status"]["lastRun"]["runID"] == json.loads(finished)["runID"]


def test_a_runner_of_0_1_0_can_be_ended_early_under_the_new_admission_policy(
    former: TestCluster, interrupted: Interrupted, tmp_path: Path
) -> None:
    """It has five capabilities and a path of the host, which this version's policy refuses to new pods."""
    node, runner = interrupted.node, interrupted.runner
    pod = json.loads(former.kubectl("-n", "memdiag-runners", "get", "pod", runner, "-o", "json"))
    assert "SYS_PTRACE" in json.dumps(pod["spec"])
    assert pod["spec"].get("activeDeadlineSeconds", 0) > 1

    with interrupted.upgraded(tmp_path) as world:
        former.kubectl("patch", "memdiag", "running", "--type=merge", "-p", '{"spec": {"terminate": true}}')
        eventually(lambda: pod_of(world, runner)["spec"]["activeDeadlineSeconds"] == 1)
        world.deliver(node, runner)
        world.end("running")
        eventually(lambda: world.pods() == [])


def test_every_object_of_0_1_0_is_valid_under_the_new_definitions(installed: TestCluster) -> None:
    """Nothing that was stored is refused when it is written back."""
    for name in ("pending", "running", "finished", "suspended"):
        text = recorded(f"diagnosis-{name}")
        document = json.loads(text)
        document["metadata"] = {"name": f"of-old-{name}"}
        try:
            installed.kubectl("create", "-f", "-", input=json.dumps(document))
            patch = json.dumps({"status": document["status"]})
            installed.kubectl("patch", "memdiag", f"of-old-{name}", "--type=merge", "--subresource=status", "-p", patch)
            stored = json.loads(installed.kubectl("get", "memdiag", f"of-old-{name}", "-o", "json"))
            assert stored["status"] == document["status"]
            assert stored["spec"] == document["spec"]
        finally:
            installed.kubectl("delete", "--ignore-not-found", "memdiag", f"of-old-{name}")
    report = json.loads(recorded("report"))
    report["metadata"] = {"name": "of-old"}
    installed.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(report))


def test_a_killed_operator_finds_a_run_on_many_nodes_again(
    installed: TestCluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Which nodes were chosen, have ended or have a running pod all follows from the status and the pods."""
    try:
        with operator_world(installed, tmp_path_factory) as world:
            nodes = {name: world.node(name) for name in ("web-a", "web-b", "web-c", "web-d")}
            for node in nodes.values():
                node.label("pool=web")
            world.ask("many", {"nodeSelector": {"matchLabels": {"pool": "web"}}, "maxNodes": 4})
            world.run(nodes["web-a"])
            working = nodes["web-b"].runner()
            nodes["web-b"].run(working)
            eventually(lambda: world.read("many")["status"]["nodes"]["succeeded"] == 1)
            eventually(lambda: world.read("many")["status"]["nodes"]["running"] == 1)
            world.operator.kill()
            run = world.read("many")["status"]["runID"]
            ended = nodes["web-c"].runner()
            nodes["web-c"].run(ended)
            world.deliver(nodes["web-c"], ended)
            installed.kubectl("delete", "node", "web-d")
            with running_operator(installed, tmp_path_factory.mktemp("operator"), CONFIG):
                world.deliver(nodes["web-b"], working)
                status, reason, _ = world.end("many")
            assert (status, reason) == ("False", "PartialResults")
            found = world.read("many")["status"]
            assert found["runID"] == run
            assert {one["nodeName"]: one["reason"] for one in found["nodeStates"]} == {
                "web-a": "Completed",
                "web-b": "Completed",
                "web-c": "Completed",
                "web-d": "NodeLost",
            }
            assert sorted(one["nodeName"] for one in world.reports("many")) == ["web-a", "web-b", "web-c"]
    finally:
        sweep_away(installed)
