"""A node without a kubelet: the test reports the state of its pods to the API server."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from local_cluster.cluster import Cluster
from local_cluster.sandbox import Network
from support.cluster import TestCluster

RUNNERS = "memdiag-runners"
LOG_PORT = 10250
WEBHOOK_PORT = 10260
TIMEOUT_SECONDS = 30
Answer = TypeVar("Answer")


def eventually(look: Callable[[], Answer], timeout_seconds: float = TIMEOUT_SECONDS) -> Answer:
    """The first result of `look` that is true."""
    deadline = time.monotonic() + timeout_seconds
    while not (answer := look()):
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s; last: {answer!r}"
        time.sleep(0.1)
    return answer


@dataclass(frozen=True)
class HollowNode:
    """A Node object, with the scheduler's and kubelet's actions on its pods."""

    cluster: TestCluster
    name: str
    logs: Path

    def register(self, address: str, **status: Any) -> None:
        """Join the cluster, Ready, with 24 GiB."""
        self.cluster.kubectl("create", "-f", "-", input=json.dumps(_node(self.name)))
        self.report(address, **status)

    def report(self, address: str, *, ready: str = "True", **status: Any) -> None:
        """Report the node's status."""
        document = {
            "capacity": {"memory": "24Gi", "cpu": "2", "pods": "110"},
            "addresses": [{"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": LOG_PORT}},
            "conditions": [
                {
                    "type": "Ready",
                    "status": ready,
                    "reason": "Test",
                    "message": "as the test says",
                    "lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
            ],
            **status,
        }
        self._patch("node", self.name, {"status": document}, "--subresource=status")

    def label(self, *labels: str) -> None:
        """Set labels, as `key=value`."""
        self.cluster.kubectl("label", "--overwrite", "node", self.name, *labels)

    def leave(self) -> None:
        """Leave the cluster."""
        self.cluster.kubectl("delete", "node", self.name)

    def runner(self) -> str:
        """Wait for a runner pod of this node that has not ended; returns its name."""
        return eventually(self._find_runner)

    def bind(self, pod: str, namespace: str = RUNNERS) -> None:
        """Schedule a pod here."""
        binding = {"metadata": {"name": pod}, "target": {"kind": "Node", "name": self.name}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/binding"
        body = {"apiVersion": "v1", "kind": "Binding", **binding}
        self.cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(body))

    def say(self, pod: str, status: dict[str, Any], namespace: str = RUNNERS) -> None:
        """Report a pod's status."""
        self._patch("pod", pod, {"status": status}, "--subresource=status", f"--namespace={namespace}")

    def run(self, pod: str) -> None:
        """Schedule a runner here and report it as running."""
        self.bind(pod)
        self.say(pod, {"phase": "Running", **container({"running": {"startedAt": now()}})})

    def finish(self, pod: str, message: str, log: bytes, *, exit_code: int = 0, **terminated: Any) -> None:
        """Report a runner as ended, with this termination message and log."""
        (self.logs / pod).write_bytes(log)
        self.say(pod, ended(message, exit_code, **terminated))

    def finish_after_reboot(self, pod: str) -> None:
        """Report that a runner did not survive the node's reboot, unless the operator has already deleted it."""
        options = ["--type=merge", "--subresource=status", f"--namespace={RUNNERS}"]
        patch = json.dumps({"status": ended("", 255, reason="Unknown")})
        done = self.cluster.try_kubectl("patch", "pod", pod, *options, "-p", patch)
        assert done.returncode == 0 or "(NotFound)" in done.stderr, done.stderr

    def stream(self, pod: str, *, total_bytes: int, chunk_bytes: int, pause_seconds: float) -> None:
        """Serve the given number of bytes as the log of `pod`, ignoring the limit in requests."""
        how = {"totalBytes": total_bytes, "chunkBytes": chunk_bytes, "pauseSeconds": pause_seconds}
        (self.logs / f"{pod}.stream").write_text(json.dumps(how))

    def _find_runner(self) -> str:
        pods = json.loads(self.cluster.kubectl("-n", RUNNERS, "get", "pods", "-o", "json"))["items"]
        return live_runner(pods, self.name)

    def _patch(self, kind: str, name: str, patch: dict[str, Any], *options: str) -> None:
        # From stdin: a node may report more than fits into a command line.
        options = ("--type=merge", "--patch-file=/dev/stdin", *options)
        self.cluster.kubectl("patch", kind, name, *options, input=json.dumps(patch))


def live_runner(pods: list[dict[str, Any]], node_name: str) -> str:
    """The name of the runner pod for this node that has not ended and is not being deleted; empty if there is none.

    The operator writes the end of a run into the status before it deletes the pod. So after a run has ended, its pod
    may still be there: it cannot be bound a second time.
    """
    for pod in pods:
        meta = pod["metadata"]
        if meta["annotations"].get("memdiag.dev/node") != node_name or "deletionTimestamp" in meta:
            continue
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            name: str = meta["name"]
            return name
    return ""


def ended(message: str, exit_code: int, **terminated: Any) -> dict[str, Any]:
    """The status of a runner pod that has ended."""
    state = {"exitCode": exit_code, "message": message, "finishedAt": now(), **terminated}
    return {"phase": "Succeeded" if exit_code == 0 else "Failed", **container({"terminated": state})}


def container(state: dict[str, Any]) -> dict[str, Any]:
    """The statuses of a runner pod whose container is in this state."""
    one = {
        "name": "node-runner",
        "image": "",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "containerID": "containerd://" + "a" * 64,
        "state": state,
    }
    return {"containerStatuses": [one]}


def now() -> str:
    """The time in the API server's format."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextmanager
def log_endpoint(cluster: TestCluster, logs: Path) -> Iterator[str]:
    """Serve the files in `logs` like a kubelet; returns the address that nodes must report."""
    with _serving(cluster, "kubelet_logs.py", LOG_PORT, logs) as address:
        yield address


@contextmanager
def injector(cluster: TestCluster, file: Path, patch: list[dict[str, Any]], namespace: str = RUNNERS) -> Iterator[None]:
    """Make a webhook apply this JSON patch to every pod that is created in the namespace."""
    file.write_text(json.dumps(patch))
    certificate = base64.b64encode((cluster.kubeconfig.parent / "ca.crt").read_bytes()).decode()
    with _serving(cluster, "injector.py", WEBHOOK_PORT, file) as address:
        webhook = {
            "name": "injector.example.com",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "clientConfig": {"url": f"https://{address}:{WEBHOOK_PORT}/", "caBundle": certificate},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
        }
        kind = "MutatingWebhookConfiguration"
        meta = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "injector"}}
        cluster.kubectl("create", "-f", "-", input=json.dumps({**meta, "webhooks": [webhook]}))
        try:
            yield
        finally:
            cluster.kubectl("delete", kind, "injector")


@contextmanager
def _serving(cluster: TestCluster, script: str, port: int, file: Path) -> Iterator[str]:
    """Run one of these scripts in the cluster's network; returns its address there."""
    made = Cluster(cluster.kubeconfig.parent.parent.name)
    pki = cluster.kubeconfig.parent
    record = made.record()
    assert record
    address = Network(record.slot).node_address
    server = subprocess.Popen(
        [
            *made.sandbox().enter(),
            *(sys.executable, Path(__file__).with_name(script), address, str(port)),
            *(pki / "apiserver.crt", pki / "apiserver.key", file),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.stdout
        assert server.stdout.readline() == b"serving\n"
        yield address
    finally:
        server.kill()
        server.communicate()


def _node(name: str) -> dict[str, Any]:
    labels = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
