"""The ledger in a cluster: a pod allocates 544 MiB in three ways while its node is traced, and is named for them."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster.paths import PROJECT
from planted import memory
from planted.memory import MIB
from support.cluster import TestCluster
from support.machine_noise import Noise, measure_alloc_page_noise
from support.runner_process import is_tracing

pytestmark = pytest.mark.timeout(900)

DURATION_SECONDS = 40
PATIENCE_SECONDS = 240
NAMESPACE, POD = "ledger", "loads"
LOADS = {"pipes": 48 * MIB, "tcp-queues": 304 * MIB, "packet-ring": 192 * MIB}
SECURITY: dict[str, dict[str, Any]] = {
    "pipes": {"runAsUser": 4711},  # a separate user: all pipes of one user may have 64 MiB (fs.pipe-user-pages-soft)
    "tcp-queues": {},
    "packet-ring": {"runAsUser": 0, "capabilities": {"add": ["NET_RAW"]}},
}
KINDS = {"pipes": "Pipe", "tcp-queues": "Socket", "packet-ring": "PacketRing"}
PROGRAM = """
import sys, time
sys.path.insert(0, "/programs")
import memory
print("planted", memory.KINDS[sys.argv[1]](int(sys.argv[2])), flush=True)
time.sleep(10**6)
"""


def pod() -> dict[str, Any]:
    """One container for each load; it plants as soon as it starts."""
    containers = [
        {
            "name": name,
            "image": "memdiag.dev/node-runner:dev",
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", PROGRAM, name.replace("-", "_"), str(size_bytes)],
            "securityContext": SECURITY[name],
            "volumeMounts": [{"name": "programs", "mountPath": "/programs"}],
        }
        for name, size_bytes in LOADS.items()
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": containers,
            "volumes": [{"name": "programs", "configMap": {"name": "programs"}}],
        },
    }


def wait_for(what: str, attempt: Any) -> Any:
    """The first result of `attempt` that is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := attempt()):
        assert time.monotonic() < deadline, f"{what} did not happen in {PATIENCE_SECONDS} s"
        time.sleep(0.5)
    return answer


@pytest.fixture(scope="module")
def node(cluster: TestCluster) -> Iterator[TestCluster]:
    """The cluster with memdiag installed, and a namespace for the loads."""
    cluster.kubectl("apply", "--server-side", "-k", str(PROJECT / "manifests/overlays/embedded"))
    cluster.kubectl("-n", "memdiag-system", "rollout", "status", "deployment/memdiag-operator", "--timeout=120s")
    cluster.kubectl("create", "namespace", NAMESPACE)
    program = Path(memory.__file__)
    cluster.kubectl("-n", NAMESPACE, "create", "configmap", "programs", f"--from-file=memory.py={program}")
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=120s")


def planted_bytes(cluster: TestCluster) -> dict[str, int] | None:
    """The size that each container reports as planted; None until all have."""
    said = {}
    for name in LOADS:
        log = cluster.try_kubectl("-n", NAMESPACE, "logs", POD, "-c", name).stdout
        assert "Traceback" not in log, log
        match = re.search(r"planted (\d+)", log)
        if match is None:
            return None
        said[name] = int(match[1])
    return said


@pytest.fixture(scope="module")
def noise_before(node: TestCluster) -> Noise:
    """The noise of the machine, including its idle cluster."""
    assert node
    return measure_alloc_page_noise(DURATION_SECONDS)


@pytest.fixture(scope="module")
def noise(noise_before: Noise, measured: tuple[dict[str, Any], dict[str, Any], dict[str, int]]) -> Noise:
    """The noise before and after the window."""
    assert measured
    return max(noise_before, measure_alloc_page_noise(DURATION_SECONDS), key=lambda noise: noise.moved_bytes)


@pytest.fixture(scope="module")
def measured(node: TestCluster, noise_before: Noise) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Status of the diagnosis, the report's evidence, and what was planted while it traced."""
    assert noise_before
    manifest = yaml.safe_load((PROJECT / "examples/memdiag.yaml").read_text())
    manifest["metadata"]["name"] = "ledger"
    manifest["spec"] |= {"duration": f"{DURATION_SECONDS}s", "topN": 20}
    node.kubectl("apply", "-f", "-", input=yaml.safe_dump(manifest))
    wait_for("tracing", lambda: is_tracing(node, "ledger"))
    node.kubectl("apply", "-f", "-", input=json.dumps(pod()))
    counted = wait_for("planting", lambda: planted_bytes(node))
    assert is_tracing(node, "ledger"), "the loads came too late"
    node.kubectl("wait", "--for=condition=Reconciling=False", "memdiag/ledger", f"--timeout={PATIENCE_SECONDS}s")
    status = json.loads(node.kubectl("get", "memdiag", "ledger", "-o", "json"))["status"]
    report = json.loads(node.kubectl("get", "memorydiagnosisreport", status["reportRefs"][0]["name"], "-o", "json"))
    return status, report["evidence"], counted


def test_at_least_95_percent_of_the_growth_are_explained(
    measured: tuple[dict[str, Any], dict[str, Any], dict[str, int]], noise: Noise
) -> None:
    _, evidence, counted = measured
    growth_bytes = evidence["breakdown"]["allocPageChangeBytes"]
    planted = sum(counted.values())
    assert growth_bytes == pytest.approx(planted, abs=noise.tolerated_bytes(0.1 * planted)), str(noise)
    lines = {line["name"]: line["sizeBytes"] for line in evidence["ledger"]["lines"]}
    named_bytes = sum(lines[f"{kind}s"] for kind in KINDS.values())
    assert growth_bytes - named_bytes <= noise.tolerated_bytes(0.05 * planted), str(noise)


def test_it_is_under_the_right_pod_and_container(
    measured: tuple[dict[str, Any], dict[str, Any], dict[str, int]],
) -> None:
    status, _, counted = measured
    shares = {
        one["container"]: one["pinnedBytes"]
        for one in status["results"][0]["pinnedByPod"]
        if (one["namespace"], one["pod"]) == (NAMESPACE, POD)
    }
    assert shares == {name: pytest.approx(size_bytes, rel=0.05) for name, size_bytes in counted.items()}


def test_the_lines_and_the_rest_are_allocpage(
    measured: tuple[dict[str, Any], dict[str, Any], dict[str, int]],
) -> None:
    _, evidence, _ = measured
    ledger = evidence["ledger"]
    total_bytes = sum(line["sizeBytes"] for line in ledger["lines"]) + ledger["unexplainedBytes"]
    assert total_bytes == ledger["allocPageBytes"] == evidence["breakdown"]["allocPageBytes"]


def test_the_census_charges_the_pipes_to_their_container(
    node: TestCluster, measured: tuple[dict[str, Any], dict[str, Any], dict[str, int]]
) -> None:
    """With the runner's privileges, in its own cgroup namespace."""
    _, evidence, counted = measured
    found = json.loads(node.kubectl("-n", NAMESPACE, "get", "pod", POD, "-o", "json"))["status"]["containerStatuses"]
    container_id = next(one["containerID"] for one in found if one["name"] == "pipes").removeprefix("containerd://")
    (share,) = [one for one in evidence["census"]["charged"] if one["containerID"] == container_id]
    assert share["singleBytes"] == pytest.approx(counted["pipes"], rel=0.02)
    assert share["heldBytes"] == pytest.approx(counted["pipes"], rel=0.02)
