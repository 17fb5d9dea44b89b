"""Planted cases in a cluster, one pod each: the first finding names the pod's container, and the condition fits."""

import dataclasses
import io
import json
import os
import tarfile
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from accuracy.judge import judge
from local_cluster.paths import PROJECT
from planted.cases.case import Answer, PlantedTruth
from support.cluster import TestCluster

pytestmark = pytest.mark.timeout(600)

NAMESPACE = "planted"
DURATION_SECONDS = 12
PATIENCE_SECONDS = 120
SOME = ("slow_reader", "full_pipes", "tmpfs_file")
"""In every run of the tests: what one of each kind needs, a queue, a holder and user memory."""
OTHERS = (
    "unread_tcp",
    "unread_unix",
    "slab_heads",
    "write_queue",
    "packet_ring",
    "io_uring_rings",
    "anonymous_memory",
)
CASES = SOME + (OTHERS if os.environ.get("MEMDIAG_ALL_CASES") else ())
"""`make accuracy-cluster` runs all of them."""
PROGRAM = (
    "tar -xzf /programs/planted.tar.gz -C /tmp && cd /tmp && python3 -m planted.cases {case} {seconds} || echo failed"
)


def programs() -> bytes:
    """The package `planted` as a compressed archive, small enough for a ConfigMap."""
    folder = PROJECT / "tests/planted"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*.py")):
            archive.add(path, Path("planted") / path.relative_to(folder))
    return packed.getvalue()


def pod(case: str) -> dict[str, Any]:
    """It plants as soon as it starts. Privileged, because some cases enter namespaces of their own."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod_name(case), "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "case",
                    "image": "memdiag.dev/node-runner:dev",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", PROGRAM.replace("{case}", case).replace("{seconds}", "600")],
                    "securityContext": {"privileged": True, "runAsUser": 0, "readOnlyRootFilesystem": False},
                    "volumeMounts": [{"name": "programs", "mountPath": "/programs"}],
                }
            ],
            "volumes": [{"name": "programs", "configMap": {"name": "programs"}}],
        },
    }


def pod_name(case: str) -> str:
    """Of the pod, and of the diagnosis."""
    return case.replace("_", "-")


@pytest.fixture(scope="module")
def node(cluster: TestCluster) -> Iterator[TestCluster]:
    """The cluster with memdiag installed, and a namespace for the cases."""
    cluster.kubectl("apply", "--server-side", "-k", str(PROJECT / "manifests/overlays/embedded"))
    cluster.kubectl("-n", "memdiag-system", "rollout", "status", "deployment/memdiag-operator", "--timeout=120s")
    cluster.kubectl("create", "namespace", NAMESPACE)
    packed = {"planted.tar.gz": b64encode(programs()).decode()}
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "programs", "namespace": NAMESPACE},
        "binaryData": packed,
    }
    cluster.kubectl("create", "-f", "-", input=json.dumps(manifest))
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=120s")


@pytest.fixture
def planted_case(node: TestCluster, request: pytest.FixtureRequest) -> Iterator[tuple[str, PlantedTruth]]:
    """The name of a case that runs in a pod, and its truth: the pod's container has it."""
    case: str = request.param
    node.kubectl("create", "-f", "-", input=json.dumps(pod(case)))
    try:
        said = planted_truth(node, case)
        (status,) = json.loads(node.kubectl("-n", NAMESPACE, "get", "pod", pod_name(case), "-o", "json"))["status"][
            "containerStatuses"
        ]
        container_id = status["containerID"].removeprefix("containerd://")
        yield case, dataclasses.replace(said, pids=(), fds=(), names=(), container_id=container_id)
    finally:
        node.kubectl("-n", NAMESPACE, "delete", "pod", pod_name(case), "--wait=true", "--timeout=60s")


def planted_truth(node: TestCluster, case: str) -> PlantedTruth:
    """What the pod says that it has planted. Its process IDs are those of the pod."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        log = node.try_kubectl("-n", NAMESPACE, "logs", pod_name(case)).stdout
        assert "failed" not in log, log
        if log.startswith("{"):
            said: dict[str, Any] = json.loads(log.splitlines()[0])
            break
        assert time.monotonic() < deadline, node.kubectl("-n", NAMESPACE, "describe", "pod", pod_name(case))
        time.sleep(0.5)
    del said["case"]
    fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in said.items()}
    fields["answer"] = Answer(said["answer"])
    return PlantedTruth(**fields)


@pytest.mark.parametrize("planted_case", CASES, indirect=True)
def test_the_first_finding_names_the_container(node: TestCluster, planted_case: tuple[str, PlantedTruth]) -> None:
    case, truth = planted_case
    manifest = yaml.safe_load((PROJECT / "examples/memdiag.yaml").read_text())
    manifest["metadata"]["name"] = name = pod_name(case)
    manifest["spec"] |= {"duration": f"{DURATION_SECONDS}s"}
    node.kubectl("apply", "-f", "-", input=yaml.safe_dump(manifest))
    node.kubectl("wait", "--for=condition=Reconciling=False", f"memdiag/{name}", f"--timeout={PATIENCE_SECONDS}s")
    status = json.loads(node.kubectl("get", "memdiag", name, "-o", "json"))["status"]
    report = json.loads(node.kubectl("get", "memorydiagnosisreport", status["reportRefs"][0]["name"], "-o", "json"))
    judged = judge(report["evidence"], truth)
    assert judged.is_right, (judged, report["evidence"]["findings"][:3])
    said = next(one["status"] for one in status["conditions"] if one["type"] == "LeakDetected")
    assert said == judged.leak_detected
