"""`make demo`: one real diagnosis from an empty machine to the result, step by step."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from local_cluster.cluster import Cluster
from local_cluster.paths import PROJECT
from local_cluster.shell import run
from local_cluster.status_report import render_status
from local_cluster.steps import StepError, step

OPERATOR_TIMEOUT_SECONDS = 120
PLANT_TIMEOUT_SECONDS = 60
PLANTED_BYTES = 64_000
"""Unread bytes to wait for before the diagnosis starts: a thousand messages, 32 KiB pinned by each."""
DIAGNOSIS = "where-is-the-memory"


def run_demo(cluster: Cluster, *, keep: bool) -> None:
    """Start `cluster`, create a stuck socket, diagnose it and show the result; then take the cluster down.

    Raises StepError for a step that failed.
    """
    was_up = cluster.is_running()
    try:
        cluster.up(api_only=False, owner_pid=None)
        install(cluster)
        _plant(cluster)
        _diagnose(cluster)
        _show(cluster)
    finally:
        if keep or was_up:
            _say_how_to_use(cluster)
        else:
            with step("everything taken down"):
                cluster.down()


def install(cluster: Cluster) -> None:
    """Install memdiag and wait until its operator is available."""
    with step("memdiag installed"):
        kubectl(cluster, "apply", "--server-side", "-k", str(PROJECT / "manifests/overlays/embedded"))
        kubectl(
            cluster, "-n", "memdiag-system", "rollout", "status", "deployment/memdiag-operator",
            f"--timeout={OPERATOR_TIMEOUT_SECONDS}s",
        )  # fmt: skip


def _plant(cluster: Cluster) -> None:
    with step("stuck socket created") as current:
        kubectl(cluster, "apply", "-k", str(PROJECT / "examples/demo"))
        deadline = time.monotonic() + PLANT_TIMEOUT_SECONDS
        while (sent_bytes := _sent_bytes(cluster)) < PLANTED_BYTES:
            if time.monotonic() > deadline:
                raise StepError(
                    f"the sender sent only {sent_bytes} bytes in {PLANT_TIMEOUT_SECONDS} s",
                    remedy="KEEP=1 make demo, then kubectl -n demo describe pods",
                )
            time.sleep(0.5)
        current.outcome = f"done, {sent_bytes} bytes unread and more coming"


def _sent_bytes(cluster: Cluster) -> int:
    try:
        log = kubectl(cluster, "-n", "demo", "logs", "sender", "--tail=1")
    except StepError:  # not started yet
        return 0
    match = re.search(r"(\d+) bytes sent", log)
    return int(match[1]) if match else 0


def _diagnose(cluster: Cluster) -> None:
    kubectl(cluster, "delete", "memorydiagnosis", DIAGNOSIS, "--ignore-not-found")
    kubectl(cluster, "apply", "-f", str(PROJECT / "examples/memdiag.yaml"))
    follow(cluster)


def follow(cluster: Cluster, request: str = "") -> None:
    """Show the progress of the diagnosis, or of its rerun `request` (memdiag.dev/requestedAt), until it ends.

    Raises StepError unless it succeeds.
    """
    with _progress() as show:
        while True:
            found = diagnosis(cluster)
            handled = found.get("status", {}).get("lastHandledRequest", "")
            conditions = {one["type"]: one for one in found.get("status", {}).get("conditions", [])}
            succeeded = conditions.get("Succeeded", {"status": "Unknown"})
            if succeeded["status"] != "Unknown" and handled == request:
                break
            show(conditions.get("Reconciling", succeeded).get("message", "waiting for the operator"))
            time.sleep(1)
        show(f"{succeeded['reason']}: {succeeded.get('message', '')}")
    if succeeded["status"] != "True":
        raise StepError(
            f"the diagnosis ended with {succeeded['reason']}: {succeeded.get('message', '')}",
            remedy=f"repeat it with KEEP=1, then kubectl describe memorydiagnosis {DIAGNOSIS}",
        )


@contextmanager
def _progress() -> Iterator[Any]:
    """Prints one line per new message; on a terminal, all messages are shown on the same line."""
    last = ""

    def show(message: str) -> None:
        nonlocal last
        if message == last:
            return
        steady = re.sub(r"\d+ s of", "of", message)
        if sys.stdout.isatty():
            print(f"\r\033[K    {message}", end="", flush=True)
        elif steady != re.sub(r"\d+ s of", "of", last):
            print(f"    {message}", flush=True)
        last = message

    print("==> diagnosis running", flush=True)
    try:
        yield show
    finally:
        if sys.stdout.isatty():
            print()


def _show(cluster: Cluster) -> None:
    print("\n$ kubectl get memorydiagnoses")
    print(kubectl(cluster, "get", "memorydiagnoses"))
    print(render_status(diagnosis(cluster)))


def _say_how_to_use(cluster: Cluster) -> None:
    print(
        f"The cluster is still running. To use it:\n"
        f"  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.kubectl.parent}:$PATH\n"
        f"  kubectl describe memorydiagnosis {DIAGNOSIS}\n"
        f"  kubectl get memorydiagnosisreports\n"
        f"To run the diagnosis again:\n"
        f'  kubectl annotate --overwrite memdiag {DIAGNOSIS} memdiag.dev/requestedAt="$(date -Is)"\n'
        f"To stop it: make cluster-down"
    )


def diagnosis(cluster: Cluster) -> dict[str, Any]:
    """The diagnosis as stored in the API server."""
    answer: dict[str, Any] = json.loads(kubectl(cluster, "get", "memorydiagnosis", DIAGNOSIS, "-o", "json"))
    return answer


def kubectl(cluster: Cluster, *words: str) -> str:
    """Run kubectl as the cluster's admin and return its output. Raises StepError with its error message if it fails."""
    return run([cluster.kubectl, *words], env={"KUBECONFIG": str(cluster.kubeconfig)})
