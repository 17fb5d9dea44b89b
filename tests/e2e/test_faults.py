"""Faults on a real node: each ends the run with its reason, and the message of the kubelet or the kernel."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster.paths import PROJECT
from support.cluster import TestCluster
from support.control_plane import ControlPlane
from support.hollow_node import eventually
from support.runner_process import is_tracing

pytestmark = pytest.mark.usefixtures("guests_boot_meanwhile")

EMBEDDED = PROJECT / "manifests/overlays/embedded"
RUNNERS = "memdiag-runners"
IMAGE = "memdiag.dev/node-runner:dev"
PATIENCE_SECONDS = 180
GRACE = {"imagePullSeconds": 3, "unschedulableSeconds": 3, "nodeNotReadySeconds": 3}
Record = Callable[[str, object], None]


def install(cluster: TestCluster, folder: Path, runner: dict[str, Any]) -> None:
    """Install memdiag with these runner settings, and wait until its operator uses them."""
    folder.mkdir()
    config = {"runner": {"image": IMAGE, "allowTags": True, **runner}, "grace": GRACE, "sweep": {"activeSeconds": 1}}
    (folder / "operator.yaml").write_text(yaml.safe_dump(config))
    image = config["runner"]["image"]
    generators: list[dict[str, Any]] = [
        {"name": "memdiag-operator", "namespace": "memdiag-system", "files": ["operator.yaml"]},
        {"name": "memdiag-runner-image", "namespace": RUNNERS, "literals": [f"image={image}", "allowTags=true"]},
    ]
    kustomization = {
        "resources": [os.path.relpath(EMBEDDED, folder)],
        "configMapGenerator": [{**one, "behavior": "replace"} for one in generators],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    cluster.kubectl("apply", "--server-side", "-k", str(folder))
    rollout = ("rollout", "status", "deployment/memdiag-operator", "--timeout=120s")
    cluster.kubectl("-n", "memdiag-system", *rollout)


@pytest.fixture(scope="module", autouse=True)
def as_before(cluster: TestCluster) -> Iterator[None]:
    """Restore memdiag in the cluster as other tests expect it."""
    yield
    cluster.kubectl("apply", "--server-side", "-k", str(EMBEDDED))
    cluster.kubectl("-n", "memdiag-system", "rollout", "status", "deployment/memdiag-operator", "--timeout=120s")


@pytest.fixture(autouse=True)
def nothing_left(cluster: TestCluster) -> Iterator[None]:
    """Delete what a test has created, even if it failed half way."""
    yield
    cluster.kubectl("delete", "memdiag", "--all")
    eventually(lambda: cluster.kubectl("-n", RUNNERS, "get", "pods", "-o", "name") == "", PATIENCE_SECONDS)


def ask(cluster: TestCluster, name: str, **spec: Any) -> None:
    manifest = {
        "apiVersion": "memdiag.dev/v1alpha1",
        "kind": "MemoryDiagnosis",
        "metadata": {"name": name},
        "spec": {"target": {"nodeName": "node1"}, "duration": "60s", **spec},
    }
    cluster.kubectl("create", "-f", "-", input=json.dumps(manifest))


def succeeded(cluster: TestCluster, name: str) -> dict[str, str]:
    """The condition Succeeded."""
    status = json.loads(cluster.kubectl("get", "memdiag", name, "-o", "json"))["status"]
    conditions = status.get("conditions", [{"type": "Succeeded", "status": "Unknown", "reason": "", "message": ""}])
    (found,) = [one for one in conditions if one["type"] == "Succeeded"]
    condition: dict[str, str] = found
    return condition


def end(cluster: TestCluster, name: str) -> dict[str, str]:
    """The condition Succeeded at the end of the run; soon after, nothing of it is left in the runner namespace."""
    eventually(lambda: succeeded(cluster, name)["status"] != "Unknown", PATIENCE_SECONDS)
    eventually(lambda: cluster.kubectl("-n", RUNNERS, "get", "pods", "-o", "name") == "", PATIENCE_SECONDS)
    return succeeded(cluster, name)


SETTINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an image that is nowhere": ({"image": "memdiag.dev/no-such-image:dev"}, "ImagePull", "no-such-image"),
    "more than the node has": ({"cpu": "1000"}, "Unschedulable", "Insufficient cpu"),
    "a class that does not exist": ({"priorityClassName": "no-such-class"}, "AdmissionDenied", "no-such-class"),
}


def faults(table: Mapping[str, tuple[Any, str, str]]) -> Any:
    """The rows of `table` as parameters, each marked as a fault that ends with its reason."""
    return [pytest.param(row, marks=pytest.mark.fault(name, reason=row[1]), id=name) for name, row in table.items()]


@pytest.mark.parametrize("setting", faults(SETTINGS))
def test_a_wrong_setting_ends_with_its_reason(
    cluster: TestCluster, tmp_path: Path, setting: tuple[dict[str, Any], str, str], record_property: Record
) -> None:
    runner, reason, said = setting
    install(cluster, tmp_path / "overlay", runner)
    name = f"fault-{reason.lower()}"
    ask(cluster, name)
    condition = end(cluster, name)
    record_property("seen", condition["reason"])
    assert (condition["status"], condition["reason"]) == ("False", reason), condition["message"]
    assert said in condition["message"]


@pytest.fixture(scope="module")
def ordinary(cluster: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> TestCluster:
    """memdiag with settings that work."""
    install(cluster, tmp_path_factory.mktemp("ordinary") / "overlay", {})
    return cluster


def kill_runner(cluster: TestCluster, pod: str) -> None:
    del cluster
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and pod in environment(entry):
            os.kill(int(entry.name), signal.SIGKILL)


def environment(process: Path) -> str:
    """The environment of a process, in which a pod's name is HOSTNAME; empty if it cannot be read."""
    try:
        return (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def exhaust_memory(cluster: TestCluster, pod: str) -> None:
    """Fill the runner's memory up to its limit, from outside; the kernel then kills the process it prefers."""
    del cluster
    runners = [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal() and pod in environment(entry)]
    for runner in runners:
        (runner / "oom_score_adj").write_text("1000")
    script = "import sys; sys.stdin.readline(); held = bytearray(1 << 30); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as eater:
        assert eater.stdin
        try:
            (memory_cgroup(runners[0]) / "cgroup.procs").write_text(str(eater.pid))
            eater.stdin.write(b"eat\n")
            eater.stdin.flush()
            eventually(lambda: not all((runner / "stat").exists() for runner in runners), PATIENCE_SECONDS)
        finally:
            eater.kill()


def memory_cgroup(process: Path) -> Path:
    """The folder of the cgroup that limits a process's memory (cgroup v1 or v2)."""
    lines = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
    v1 = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
    v2 = next((path for number, _, path in lines if number == "0"), "")
    return Path(f"/sys/fs/cgroup/memory{v1}" if v1 is not None else f"/sys/fs/cgroup{v2}")


def evict(cluster: TestCluster, pod: str) -> None:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": RUNNERS}}
    path = f"/api/v1/namespaces/{RUNNERS}/pods/{pod}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))


def delete(cluster: TestCluster, pod: str) -> None:
    cluster.kubectl("-n", RUNNERS, "delete", "pod", pod, "--wait=false")


DEATHS: dict[str, tuple[Callable[[TestCluster, str], None], str, str]] = {
    "runner killed": (kill_runner, "RunnerFailed", "exit code 137"),
    "runner's memory exhausted": (exhaust_memory, "RunnerOOMKilled", "raise runner.memory"),
    "runner evicted": (evict, "RunnerEvicted", "EvictionByEvictionAPI"),
    "runner's pod deleted by a person": (delete, "RunnerEvicted", "by someone other than the operator"),
}


@pytest.mark.parametrize("fault", faults(DEATHS))
def test_a_runner_that_dies_ends_the_run_with_its_reason(
    ordinary: TestCluster, fault: tuple[Callable[[TestCluster, str], None], str, str], record_property: Record
) -> None:
    death, reason, said = fault
    name = f"death-{said.split(maxsplit=1)[0].lower()}"
    ask(ordinary, name)
    eventually(lambda: succeeded(ordinary, name)["reason"] == "Running", PATIENCE_SECONDS)
    pod = ordinary.kubectl("-n", RUNNERS, "get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
    death(ordinary, pod)
    condition = end(ordinary, name)
    record_property("seen", condition["reason"])
    assert (condition["status"], condition["reason"]) == ("False", reason), condition["message"]
    assert said in condition["message"]


@pytest.mark.fault("terminated in the middle", reason="Terminated")
def test_a_run_that_is_terminated_keeps_what_it_had(ordinary: TestCluster) -> None:
    ask(ordinary, "cut-short", duration="10m")
    eventually(lambda: re.search("tracing on node1", succeeded(ordinary, "cut-short")["message"]), PATIENCE_SECONDS)
    eventually(lambda: is_tracing(ordinary, "cut-short"), PATIENCE_SECONDS)
    time.sleep(3)  # so that something is kept
    ordinary.kubectl("patch", "memdiag", "cut-short", "--type=merge", "-p", '{"spec":{"terminate":true}}')
    condition = end(ordinary, "cut-short")
    assert condition["reason"] == "Terminated", condition
    (result,) = json.loads(ordinary.kubectl("get", "memdiag", "cut-short", "-o", "json"))["status"]["results"]
    assert "verdict" in result, condition
    assert any("ended early" in line for line in result["coverage"]), result["coverage"]
    assert not any("before it started" in line for line in result["coverage"]), result["coverage"]


def test_a_diagnosis_that_is_deleted_takes_its_runner_along(ordinary: TestCluster) -> None:
    ask(ordinary, "dropped", duration="10m")
    eventually(lambda: succeeded(ordinary, "dropped")["reason"] == "Running", PATIENCE_SECONDS)
    ordinary.kubectl("delete", "memdiag", "dropped", "--timeout=10s")
    eventually(lambda: ordinary.kubectl("-n", RUNNERS, "get", "pods", "-o", "name") == "", PATIENCE_SECONDS)


@pytest.mark.fault("operator killed while a runner works", reason="Completed")
def test_a_killed_operator_loses_nothing(ordinary: TestCluster) -> None:
    ask(ordinary, "survivor", duration="20s")
    eventually(lambda: succeeded(ordinary, "survivor")["reason"] == "Running", PATIENCE_SECONDS)
    delete_operator = ("delete", "pods", "-l", "app.kubernetes.io/name=memdiag-operator", "--force", "--grace-period=0")
    ordinary.kubectl("-n", "memdiag-system", *delete_operator)
    condition = end(ordinary, "survivor")
    assert condition["status"] == "True", condition
    names = ordinary.kubectl("get", "memdiagreport", "-o", "jsonpath={.items[*].diagnosis}").split()
    assert names.count("survivor") == 1


@pytest.mark.fault("kubelet killed while a runner works", reason="NodeLost")
def test_a_kubelet_that_is_killed_loses_its_node(ordinary: TestCluster, record_property: Record) -> None:
    """Its node is NotReady after about 50 s; the runner's container is removed when the kubelet is back."""
    plane = ControlPlane(ordinary)
    ask(ordinary, "no-kubelet", duration="10m")
    eventually(lambda: succeeded(ordinary, "no-kubelet")["reason"] == "Running", PATIENCE_SECONDS)
    pod = ordinary.kubectl("-n", RUNNERS, "get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
    with plane.without("kubelet"):
        condition = end(ordinary, "no-kubelet")
    record_property("seen", condition["reason"])
    assert (condition["status"], condition["reason"]) == ("False", "NodeLost"), condition["message"]
    assert "has not been Ready" in condition["message"]
    ordinary.kubectl("wait", "--for=condition=Ready", "node/node1", f"--timeout={PATIENCE_SECONDS}s")
    eventually(
        lambda: not any(pod in environment(one) for one in Path("/proc").iterdir() if one.name.isdecimal()),
        PATIENCE_SECONDS,
    )


@pytest.mark.fault("API server killed while a runner works", reason="Completed")
def test_a_killed_api_server_is_waited_for(ordinary: TestCluster, record_property: Record) -> None:
    plane = ControlPlane(ordinary)
    ask(ordinary, "no-api-server", duration="15s")
    eventually(lambda: succeeded(ordinary, "no-api-server")["reason"] == "Running", PATIENCE_SECONDS)
    plane.restart("kube-apiserver")
    condition = end(ordinary, "no-api-server")
    record_property("seen", condition["reason"])
    assert condition["status"] == "True", condition
    names = ordinary.kubectl("get", "memdiagreport", "-o", "jsonpath={.items[*].diagnosis}").split()
    assert names.count("no-api-server") == 1
