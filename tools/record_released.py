"""Record the objects that this version stores: `record_released.py VERSION`, as root, once, before VERSION is released.

Writes tests/fixtures/released/VERSION: the CustomResourceDefinitions, and from a real API server the objects at each
step of one run on one node. Tests of later versions load them.
"""

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from support.cluster import TestCluster, running_cluster  # noqa: E402 - found by the line above
from support.hollow_node import RUNNERS, HollowNode, container, eventually, log_endpoint, now  # noqa: E402 - as above
from support.kubernetes_objects import delivered  # noqa: E402 - as above
from support.operator_process import running_operator  # noqa: E402 - as above
from support.operator_world import CONFIG, World, evidence_of, pod_of, run_id  # noqa: E402 - as above

NAME, NODE = "where", "node1"


class Recorder:
    """Writes objects in kubectl's output format."""

    def __init__(self, cluster: TestCluster, folder: Path) -> None:
        self._cluster = cluster
        self.folder = folder

    def keep(self, file_name: str, *what: str) -> None:
        """Write the object that `kubectl get` finds with these arguments."""
        document = json.loads(self._cluster.kubectl("get", *what, "-o", "json"))
        (self.folder / f"{file_name}.json").write_text(json.dumps(document, indent=1) + "\n")


def record(version: str) -> Path:
    """Record into tests/fixtures/released/`version`; returns that folder."""
    target = PROJECT / "tests" / "fixtures" / "released" / version
    for part in ("crds", "objects"):
        (target / part).mkdir(parents=True, exist_ok=True)
    for path in (PROJECT / "crds").glob("memdiag.dev_*.yaml"):
        (target / "crds" / path.name).write_bytes(path.read_bytes())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = stack.enter_context(running_cluster("record", "--api-only"))
        cluster.kubectl("apply", "--server-side", "-k", str(PROJECT / "manifests/overlays/embedded"))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        address = stack.enter_context(log_endpoint(cluster, folder))
        record_run(cluster, Recorder(cluster, target / "objects"), folder, address)
    return target


def record_run(cluster: TestCluster, recorder: Recorder, folder: Path, address: str) -> None:
    """One complete run, together with one that occupies its node at first, and one that is suspended."""
    with running_operator(cluster, folder / "operator", CONFIG) as operator:
        world = World(cluster, operator, folder, address)
        node = HollowNode(cluster, NODE, folder)
        node.register(address, nodeInfo=_node_info())
        recorder.keep("node", "node", NODE)
        world.diagnose("suspended", NODE, suspend=True)
        eventually(lambda: world.condition("suspended")[1] == "Suspended")
        recorder.keep("diagnosis-suspended", "memdiag", "suspended")

        world.diagnose("before", NODE, duration="60s")
        first = node.runner()
        node.run(first)
        world.diagnose(NAME, NODE, duration="60s")
        eventually(lambda: "another runner is" in world.condition(NAME)[2])
        recorder.keep("diagnosis-pending", "memdiag", NAME)
        node.finish(first, *delivered(evidence_of(NODE, run_id(pod_of(world, first)))))
        world.end("before")

        runner = eventually(lambda: _runner_of(world, NAME))
        node.run(runner)
        eventually(lambda: world.condition(NAME)[1] == "Running")
        operator.kill()
        recorder.keep("diagnosis-running", "memdiag", NAME)
        recorder.keep("pod-running", "-n", RUNNERS, "pod", runner)
        message, log = delivered(evidence_of(NODE, run_id(pod_of(world, runner))))
        (folder / runner).write_bytes(log)
        (recorder.folder / "pod-succeeded.log").write_bytes(log)
        state = {"terminated": {"exitCode": 0, "reason": "Completed", "message": message, "finishedAt": now()}}
        node.say(runner, {"phase": "Succeeded", **container(state)})
        recorder.keep("pod-succeeded", "-n", RUNNERS, "pod", runner)
    with running_operator(cluster, folder / "operator", CONFIG):
        world.end(NAME)
        recorder.keep("diagnosis-finished", "memdiag", NAME)
        recorder.keep("report", "memdiagreport", runner)


def _runner_of(world: World, name: str) -> str:
    mine = (pod for pod in world.pods() if pod["metadata"]["annotations"]["memdiag.dev/diagnosis"] == name)
    return next((str(pod["metadata"]["name"]) for pod in mine if "deletionTimestamp" not in pod["metadata"]), "")


def _node_info() -> dict[str, Any]:
    names = ("architecture", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion", "kubeletVersion")
    return {
        "bootID": "4f7c6a0e-0000-4000-8000-000000000000",
        "operatingSystem": "linux",
        **dict.fromkeys((*names, "machineID", "osImage", "systemUUID"), ""),
    }


if __name__ == "__main__":
    (asked_version,) = sys.argv[1:]
    print(record(asked_version))
