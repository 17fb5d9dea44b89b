"""One diagnosis end to end: real API server, kubelet, containerd, images and eBPF, on a healthy and a leaking node."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster.paths import PROJECT
from support.cluster import TestCluster

pytestmark = pytest.mark.usefixtures("guests_boot_meanwhile")

RAW_KERNEL_ADDRESS = re.compile(r"ffff[0-9a-f]{12}")
DURATION_SECONDS = 12


@pytest.fixture(scope="module")
def memdiag(cluster: TestCluster) -> TestCluster:
    """The cluster with memdiag installed and its operator available."""
    cluster.kubectl("apply", "--server-side", "-k", str(PROJECT / "manifests/overlays/embedded"))
    cluster.kubectl(
        "-n", "memdiag-system", "rollout", "status", "deployment/memdiag-operator", "--timeout=120s"
    )  # fmt: skip
    return cluster


@pytest.fixture(scope="module")
def planted(memdiag: TestCluster) -> Iterator[TestCluster]:
    """A pod that never reads, and one that keeps sending to it."""
    memdiag.kubectl("apply", "-k", str(PROJECT / "examples/demo"))
    deadline = time.monotonic() + 60
    while sent_bytes(memdiag) < 64_000:
        assert time.monotonic() < deadline, memdiag.kubectl("-n", "demo", "describe", "pods")
        time.sleep(0.5)
    yield memdiag
    memdiag.kubectl("delete", "-k", str(PROJECT / "examples/demo"), "--wait=true", "--timeout=60s")


def sent_bytes(cluster: TestCluster) -> int:
    """The number of bytes that the planted sender reports as sent to the pod that does not read."""
    log = cluster.try_kubectl("-n", "demo", "logs", "sender", "--tail=1").stdout
    match = re.search(r"(\d+) bytes sent", log)
    return int(match[1]) if match else 0


def diagnose(cluster: TestCluster, name: str, **spec: object) -> dict[str, Any]:
    """Apply the example under another name and wait for its result, like a user."""
    manifest = yaml.safe_load((PROJECT / "examples/memdiag.yaml").read_text())
    manifest["metadata"]["name"] = name
    manifest["spec"] |= {"duration": f"{DURATION_SECONDS}s", **spec}
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump(manifest))
    cluster.kubectl("wait", "--for=condition=Reconciling=False", f"memorydiagnosis/{name}", "--timeout=120s")
    answer: dict[str, Any] = json.loads(cluster.kubectl("get", "memorydiagnosis", name, "-o", "json"))
    return answer


def condition(diagnosis: dict[str, Any], kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = next(one for one in diagnosis["status"]["conditions"] if one["type"] == kind)
    return found["status"], found["reason"]


def test_a_healthy_node_has_no_leak(memdiag: TestCluster) -> None:
    diagnosis = diagnose(memdiag, "healthy")
    assert condition(diagnosis, "Succeeded") == ("True", "Completed"), diagnosis["status"]
    assert condition(diagnosis, "LeakDetected") == ("False", "NoLeak"), diagnosis["status"]["summary"]
    (result,) = diagnosis["status"]["results"]
    assert sum(one["sizeBytes"] for one in result["breakdown"]) == result["memTotalBytes"]


@pytest.fixture(scope="module")
def bytes_sent_before(planted: TestCluster) -> int:
    return sent_bytes(planted)


@pytest.fixture(scope="module")
def diagnosis(planted: TestCluster, bytes_sent_before: int) -> dict[str, Any]:
    assert bytes_sent_before
    return diagnose(planted, "stuck")


def test_a_stuck_socket_is_found(diagnosis: dict[str, Any]) -> None:
    assert condition(diagnosis, "Succeeded") == ("True", "Completed"), diagnosis["status"]
    assert condition(diagnosis, "LeakDetected") == ("True", "PinnedByUnreadSocket"), diagnosis["status"]["summary"]


def test_kubectl_wait_returns(planted: TestCluster, diagnosis: dict[str, Any]) -> None:
    name = diagnosis["metadata"]["name"]
    planted.kubectl("wait", "--for=condition=Succeeded", f"memdiag/{name}", "--timeout=5s")


def test_the_suspect_is_the_pod_that_does_not_read(planted: TestCluster, diagnosis: dict[str, Any]) -> None:
    suspect = diagnosis["status"]["suspect"]
    assert "demo/slow-reader" in suspect
    assert "app" in suspect
    assert "sender" not in suspect
    accepted = planted.kubectl("-n", "demo", "logs", "slow-reader")
    fds = set(re.findall(r"as fd (\d+)", accepted))
    named = re.search(r"fd (\d+)", suspect)
    assert named is not None
    assert named[1] in fds


def test_its_process_is_the_planted_one(diagnosis: dict[str, Any]) -> None:
    holder = diagnosis["status"]["results"][0]["topHolders"][0]
    assert (holder["namespace"], holder["pod"], holder["container"]) == ("demo", "slow-reader", "app")
    command = Path(f"/proc/{holder['pid']}/cmdline").read_bytes()
    assert b"slow_reader.py" in command


def test_what_is_pinned_is_under_the_right_pod(diagnosis: dict[str, Any]) -> None:
    result = diagnosis["status"]["results"][0]
    first = result["pinnedByPod"][0]
    assert (first["namespace"], first["pod"], first["container"]) == ("demo", "slow-reader", "app")
    assert first["pinnedBytes"] > 0.7 * result["pinnedBytes"]  # the rest waits to be sent, in the sender


def test_unread_bytes_are_what_was_sent(
    planted: TestCluster, diagnosis: dict[str, Any], bytes_sent_before: int
) -> None:
    unread = sum(
        one["unreadBytes"] for one in diagnosis["status"]["results"][0]["topHolders"] if one.get("pod") == "slow-reader"
    )
    # The sender counts before and after; it logs every hundredth message.
    assert bytes_sent_before <= unread <= sent_bytes(planted) + 6400


def test_tiny_messages_pin_much_more_than_they_hold(diagnosis: dict[str, Any]) -> None:
    holder = diagnosis["status"]["results"][0]["topHolders"][0]
    assert holder["pinnedBytes"] > 100 * holder["unreadBytes"]


def test_the_join_finds_what_was_sent_in_the_window(diagnosis: dict[str, Any]) -> None:
    result = diagnosis["status"]["results"][0]
    sending = [one for one in result["topStacks"] if any("tcp_sendmsg" in frame for frame in one["frames"])]
    assert sending, result["topStacks"]
    assert sending[0]["heldBy"], sending[0]
    assert "slow-reader" in sending[0]["heldBy"][0]["holder"]
    assert sum(held["share"] for held in sending[0]["heldBy"]) > 0.9


def test_nothing_in_the_object_is_a_kernel_address_or_a_control_character(
    planted: TestCluster, diagnosis: dict[str, Any]
) -> None:
    del diagnosis
    text = planted.kubectl("get", "memorydiagnoses,memorydiagnosisreports", "-o", "yaml")
    assert not RAW_KERNEL_ADDRESS.search(text)
    assert all(character.isprintable() or character == "\n" for character in text)
    strings = json.dumps(json.loads(planted.kubectl("get", "memorydiagnoses,memorydiagnosisreports", "-o", "json")))
    assert not re.search(r"\\u00[01][0-9a-f]|\\u007f|\\u00[89][0-9a-f]", strings)


def test_the_runner_pod_is_gone_and_the_report_stays(planted: TestCluster, diagnosis: dict[str, Any]) -> None:
    deadline = time.monotonic() + 30
    while pods := planted.kubectl("-n", "memdiag-runners", "get", "pods", "-o", "name").split():
        assert time.monotonic() < deadline, pods
        time.sleep(0.5)
    (reference,) = diagnosis["status"]["reportRefs"]
    report = json.loads(planted.kubectl("get", "memorydiagnosisreport", reference["name"], "-o", "json"))
    assert report["metadata"]["ownerReferences"][0]["uid"] == diagnosis["metadata"]["uid"]
    assert report["evidence"]["verdict"]["kind"] == "PinnedByUnreadSocket"


def test_a_rerun_by_annotation_gives_a_new_run(planted: TestCluster, diagnosis: dict[str, Any]) -> None:
    name = diagnosis["metadata"]["name"]
    planted.kubectl("annotate", "--overwrite", "memdiag", name, "memdiag.dev/requestedAt=again")
    planted.kubectl("wait", "--for=jsonpath={.status.lastHandledRequest}=again", f"memdiag/{name}", "--timeout=30s")
    planted.kubectl("wait", "--for=condition=Reconciling=False", f"memdiag/{name}", "--timeout=120s")
    again = json.loads(planted.kubectl("get", "memorydiagnosis", name, "-o", "json"))
    assert again["status"]["runID"] != diagnosis["status"]["runID"]
    assert condition(again, "LeakDetected")[0] == "True"


def test_the_pod_that_is_asked_for_comes_first(planted: TestCluster) -> None:
    answer = diagnose(planted, "of-pod", target={"podRef": {"namespace": "demo", "name": "slow-reader"}})
    assert condition(answer, "Succeeded") == ("True", "Completed"), answer["status"]
    (result,) = answer["status"]["results"]
    shares = [one for one in result["pinnedByPod"] if (one["namespace"], one["pod"]) == ("demo", "slow-reader")]
    assert result["targetPod"]["pinnedBytes"] == sum(one["pinnedBytes"] for one in shares)  # one for each container
    assert result["targetPod"]["pinnedBytes"] > 100 * result["targetPod"]["unreadBytes"] > 0
    assert result["topHolders"][0]["pod"] == "slow-reader"
    assert answer["status"]["target"] == f"demo/slow-reader on {result['nodeName']}"
    assert answer["status"]["summary"].startswith("Pod demo/slow-reader pins ")


def test_a_pod_that_reads_is_told_apart_from_the_culprit_on_its_node(planted: TestCluster) -> None:
    answer = diagnose(planted, "of-reader", target={"podRef": {"namespace": "demo", "name": "healthy-reader"}})
    (result,) = answer["status"]["results"]
    assert result["targetPod"]["name"] == "healthy-reader"
    assert result["targetPod"]["pinnedBytes"] < 0.1 * result["pinnedBytes"]
    assert "demo/slow-reader" in answer["status"]["suspect"]


def test_a_run_on_nodes_by_label_is_seen_to_move(memdiag: TestCluster) -> None:
    watch = subprocess.Popen(
        [
            *(memdiag.kubectl_binary, f"--kubeconfig={memdiag.kubeconfig}"),
            *("get", "memdiag", "--watch", "--no-headers", "-o", "custom-columns=:.metadata.name,:.status.progress"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        target = {"nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}}, "maxNodes": 5}
        answer = diagnose(memdiag, "by-label", target=target)
    finally:
        watch.terminate()
        lines = watch.communicate()[0].splitlines()
    assert condition(answer, "Succeeded") == ("True", "Completed"), answer["status"]
    assert answer["status"]["target"] == "1 with kubernetes.io/os=linux"
    assert [one["reason"] for one in answer["status"]["nodeStates"]] == ["Completed"]
    steps = [line.split()[1] for line in lines if line.startswith("by-label ")]
    assert [step for step in dict.fromkeys(steps) if step in ("Waiting", "Tracing", "Done")] == [
        "Waiting",
        "Tracing",
        "Done",
    ]
