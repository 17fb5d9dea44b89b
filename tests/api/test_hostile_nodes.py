"""Nodes that harm the operator or others, by all that a node has a say in: logs, the status of pods, doing nothing."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from local_cluster.paths import PROJECT
from support.hollow_node import container, eventually, now
from support.kubernetes_objects import delivered
from support.operator_world import CONFIG, World, evidence_of, pod_of, run_id

MEBIBYTE = 1024 * 1024
SLOW_SECONDS = 120

STREAMS = {
    "a log of 1 GiB": {"total_bytes": 1024 * MEBIBYTE, "chunk_bytes": MEBIBYTE, "pause_seconds": 0},
    "a byte of a log every 29 s": {"total_bytes": 1000, "chunk_bytes": 1, "pause_seconds": 29},
    "4 KiB of a log every 5 s": {"total_bytes": 100 * MEBIBYTE, "chunk_bytes": 4096, "pause_seconds": 5},
}


SLOTS = 4


@pytest.fixture(scope="module")
def operator_config() -> dict[str, Any]:
    grace = CONFIG["grace"] | {"containerStartSeconds": 5}
    runner = CONFIG["runner"] | {"terminationGraceSeconds": 2}
    return {"maxConcurrentRunners": SLOTS, "grace": grace, "runner": runner}


def memory_limit_bytes() -> int:
    """The operator's, as it is deployed."""
    deployment = yaml.safe_load((PROJECT / "manifests/base/operator/deployment.yaml").read_text())
    limit: str = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    return int(limit.removesuffix("Mi")) * MEBIBYTE


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.fault(name, reason="ResultInvalid"), id=name) for name in STREAMS]
)
def test_an_endless_log_costs_that_node_its_result_and_nobody_else(
    world: World, name: str, record_property: Callable[[str, object], None]
) -> None:
    hostile, good = world.node("hostile"), world.node("good")
    world.operator.forget_peak()
    world.diagnose("hostile", "hostile")
    runner = hostile.runner()
    hostile.run(runner)
    hostile.stream(runner, **STREAMS[name])
    hostile.finish(runner, *delivered(evidence_of("hostile", run_id(pod_of(world, runner)))))

    world.diagnose("good", "good")
    world.run(good)
    assert world.end("good")[:2] == ("True", "Completed")

    eventually(lambda: world.condition("hostile", "Reconciling")[0] == "False", SLOW_SECONDS)
    status, reason, message = world.condition("hostile")
    record_property("seen", reason)
    assert (status, reason) == ("False", "ResultInvalid")
    assert "(not verified) says PinnedByUnreadSocket" in message
    eventually(lambda: world.pods() == [])
    assert world.operator.peak_memory_bytes() < memory_limit_bytes()
    assert world.operator.is_up()  # /healthz is an error when the sweep is overdue


def test_three_nodes_that_drip_leave_the_results_of_others_alone(world: World) -> None:
    """As many as there are diagnoses with results that are reconciled at the same time."""
    for number in range(3):
        node = world.node(f"hostile-{number}")
        world.diagnose(f"hostile-{number}", node.name)
        runner = node.runner()
        node.run(runner)
        node.stream(runner, **STREAMS["4 KiB of a log every 5 s"])
        node.finish(runner, *delivered(evidence_of(node.name, run_id(pod_of(world, runner)))))
    good = world.node("good")
    world.diagnose("good", "good")
    world.run(good)
    eventually(lambda: world.condition("good")[:2] == ("True", "Completed"), SLOW_SECONDS)
    hostile = [f"hostile-{number}" for number in range(3)]
    eventually(lambda: {world.condition(name)[1] for name in hostile} == {"ResultInvalid"}, SLOW_SECONDS)


def test_pods_with_an_enormous_status_cost_that_node_its_result(world: World) -> None:
    """The node is the word on all its pods' status: 24 of them with 1 MiB each."""
    node = world.node("hostile")
    for number in range(24):
        pod = f"padding-{number}"
        world.cluster.kubectl("-n", "default", "run", pod, "--image=x", "--restart=Never")
        node.bind(pod, "default")
        node.say(pod, {"phase": "Running", "message": "x" * MEBIBYTE}, "default")
    world.operator.forget_peak()
    world.diagnose("hostile", "hostile")
    world.run(node)
    status, reason, message = world.end("hostile")
    assert (status, reason) == ("False", "ResultInvalid")
    assert "larger than" in message
    assert world.operator.peak_memory_bytes() < memory_limit_bytes()
    world.cluster.kubectl("delete", "-n", "default", "pods", "--all", "--force", "--grace-period=0")


def sandbox_fails(world: World, runner: str, message: str) -> None:
    """What a kubelet says when the network plugin does not work: an event, and nothing in the pod's status."""
    meta = pod_of(world, runner)["metadata"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{runner}.1", "namespace": meta["namespace"]},
        "involvedObject": {"kind": "Pod", "name": runner, "namespace": meta["namespace"], "uid": meta["uid"]},
        "type": "Warning",
        "reason": "FailedCreatePodSandBox",
        "message": message,
        "lastTimestamp": now(),
    }
    world.cluster.kubectl("create", "-f", "-", input=json.dumps(event))


@pytest.mark.fault("nodes that start no container, as many as there are slots", reason="RunnerFailed")
def test_nodes_that_start_nothing_free_their_slots_and_say_why(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    sick = [world.node(f"sick-{number}") for number in range(SLOTS)]
    for node in sick:
        world.diagnose(node.name, node.name, activeDeadlineSeconds=86400)
        runner = node.runner()
        # Before the pod is on the node: from then on the grace runs, and this test may be slower than it.
        sandbox_fails(world, runner, "plugin type=cilium failed\x1b[2J (add): no route to host")
        node.bind(runner)
        node.say(runner, {"phase": "Pending", **container({"waiting": {"reason": "ContainerCreating"}})})
    good = world.node("good")
    world.diagnose("good", "good")
    world.run(good)
    assert world.end("good")[:2] == ("True", "Completed")
    for node in sick:
        status, reason, message = world.end(node.name)
        record_property("seen", reason)
        assert (status, reason) == ("False", "RunnerFailed")
        assert "ContainerCreating: FailedCreatePodSandBox: plugin type=cilium failed[2J (add): no route" in message
