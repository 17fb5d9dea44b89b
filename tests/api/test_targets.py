"""Runs on nodes by label and on the node of a pod: who is chosen, what each node delivers, how far it is."""

import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from support.evidence import MIB
from support.hollow_node import HollowNode, container, eventually
from support.kubernetes_objects import timestamp
from support.operator_world import World, evidence_of, pod_of, run_id

WEB = {"nodeSelector": {"matchLabels": {"pool": "web"}}, "maxNodes": 2}
APP = "c" * 64


@pytest.fixture(scope="module")
def operator_config() -> dict[str, Any]:
    allowed = {"matchExpressions": [{"key": "private", "operator": "DoesNotExist"}]}
    return {"allowedNodes": allowed, "keepReportsOfRuns": 1}


@pytest.fixture
def world(world: World) -> Iterator[World]:
    """The targets of some tests are pods of others: they go as well."""
    yield world
    world.cluster.kubectl("delete", "-n", "default", "pods", "--all", "--force", "--grace-period=0")


def labelled(world: World, *names: str, labels: tuple[str, ...] = ("pool=web",), **status: Any) -> list[HollowNode]:
    """Nodes with labels."""
    nodes = [world.node(name, **status) for name in names]
    for node in nodes:
        node.label(*labels)
    return nodes


def states(world: World, name: str) -> dict[str, str]:
    """Each node's reason."""
    return {one["nodeName"]: one["reason"] for one in world.read(name)["status"].get("nodeStates", [])}


def row(world: World, name: str) -> str:
    """What kubectl shows of a diagnosis."""
    return world.cluster.kubectl("get", "memdiag", name, "--no-headers")


# --- nodes by their labels --------------------------------------------------------------------------------------------


def test_nodes_by_label_are_chosen_once_and_what_arrives_is_kept(world: World) -> None:
    labelled(world, "web-a", nodeInfo={"operatingSystem": "windows"})
    labelled(world, "web-b", labels=("pool=web", "private=yes"))
    second, first = labelled(world, "web-d", "web-c")
    labelled(world, "web-e")
    labelled(world, "db-a", labels=("pool=db",))
    world.ask("web", WEB)
    runner = first.runner()
    assert states(world, "web") == {"web-c": "Pending", "web-d": "Pending"}
    assert "2 of 5 with pool=web" in row(world, "web")

    # One that joins later and would have come first, and one that loses its label, change nothing.
    labelled(world, "web-0")
    second.label("pool=other")
    first.run(runner)
    world.deliver(first, runner)
    eventually(lambda: world.condition("web", "LeakDetected")[0] == "True")
    assert world.condition("web")[0] == "Unknown"
    assert world.read("web")["status"]["suspect"].startswith("web-c: nginx[4711]")

    other = second.runner()
    second.run(other)
    second.finish(other, "", b"", exit_code=137, reason="OOMKilled")
    status, reason, message = world.end("web")
    assert (status, reason) == ("False", "PartialResults")
    assert "1 of 2 nodes delivered a result; the runner on node web-d was killed at its memory limit" in message
    assert world.condition("web", "LeakDetected")[:2] == ("True", "PinnedByUnreadSocket")
    assert states(world, "web") == {"web-c": "Completed", "web-d": "RunnerOOMKilled"}
    found = world.read("web")["status"]
    assert found["nodes"] == {"total": 2, "pending": 0, "running": 0, "succeeded": 1, "failed": 1}
    assert [one["nodeName"] for one in found["results"]] == ["web-c", "web-d"]
    assert [one["nodeName"] for one in world.reports("web")] == ["web-c"]
    assert found["summary"].startswith("A leak on 1 of 2 nodes. On node web-c")
    assert "2/2 nodes 100%" in row(world, "web")
    eventually(lambda: world.pods() == [])


@pytest.mark.parametrize(
    ("labels", "status", "reason", "said"),
    [
        ((), {}, "NodeNotFound", "no node has the labels pool=web"),
        (("pool=web",), {"nodeInfo": {"operatingSystem": "windows"}}, "NodeUnsupported", "runs windows"),
        (("pool=web", "private=yes"), {}, "NodeNotAllowed", "requires nodes with !private"),
    ],
    ids=["no match", "none can be served", "none is allowed"],
)
def test_labels_without_a_node_say_why(
    world: World, labels: tuple[str, ...], status: dict[str, Any], reason: str, said: str
) -> None:
    node = world.node("only", **status)
    if labels:
        node.label(*labels)
    world.ask("none", WEB)
    succeeded = world.end("none")
    assert succeeded[:2] == ("False", reason)
    assert said in succeeded[2]
    world.await_events("none", reason)
    assert world.pods() == []


def test_a_named_node_that_may_not_be_diagnosed_is_refused(world: World) -> None:
    labelled(world, "secret", labels=("private=yes",))
    world.diagnose("curious", "secret")
    status, reason, message = world.end("curious")
    assert (status, reason) == ("False", "NodeNotAllowed")
    assert "the operator's configuration (allowedNodes) requires nodes with !private" in message
    assert world.pods() == []


def test_a_run_on_many_nodes_does_not_keep_others_from_theirs(world: World) -> None:
    many = labelled(world, *(f"web-{number}" for number in range(6)))
    world.ask("many", WEB | {"maxNodes": 6})
    for node in many[:3]:
        node.run(node.runner())
    alone = world.node("alone")
    world.diagnose("one", "alone")
    eventually(lambda: "all 3 runner slots" in world.condition("one")[2])
    world.deliver(many[0], many[0].runner())
    world.run(alone)
    assert world.end("one")[:2] == ("True", "Completed")
    assert states(world, "many")["web-3"] == "Pending"


# --- the node of a pod ------------------------------------------------------------------------------------------------


def app(world: World, name: str = "nginx") -> str:
    """A pod that nobody has scheduled yet."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "x"}]},
    }
    world.cluster.kubectl("create", "-n", "default", "-f", "-", input=json.dumps(pod))
    return name


def running_app(node: HollowNode, name: str, phase: str = "Running") -> None:
    """Run a pod on a node."""
    node.bind(name, "default")
    (one,) = container({"running": {}})["containerStatuses"]
    one |= {"name": "app", "containerID": f"containerd://{APP}"}
    node.say(name, {"phase": phase, "containerStatuses": [one]}, "default")


def test_the_node_of_a_pod_is_diagnosed_and_the_pod_comes_first(world: World) -> None:
    world.node("elsewhere")
    node = world.node("here")
    running_app(node, app(world))
    world.ask("of-pod", {"podRef": {"namespace": "default", "name": "nginx"}})
    runner = node.runner()
    node.run(runner)
    (largest,) = evidence_of("here", run_id(pod_of(world, runner))).holders
    owner = largest.owners[0].model_copy(update={"pid": 99, "container_id": APP})
    its_own = largest.model_copy(update={"owners": [owner], "pinned_bytes": 7 * MIB, "unread_bytes": MIB})
    world.deliver(node, runner, holders=[largest, its_own])
    assert world.end("of-pod")[:2] == ("True", "Completed")
    status = world.read("of-pod")["status"]
    assert status["target"] == "default/nginx on here"
    (result,) = status["results"]
    assert [one["pid"] for one in result["topHolders"]] == [99, 4711]
    assert result["targetPod"] == {
        "namespace": "default",
        "name": "nginx",
        "message": "Pod default/nginx pins 7.00 MiB, with 1.00 MiB unread",
        "unreadBytes": MIB,
        "pinnedBytes": 7 * MIB,
    }
    assert status["summary"].startswith("Pod default/nginx pins 7.00 MiB, with 1.00 MiB unread. On node here")


def unscheduled(world: World) -> None:
    app(world)


def ended(world: World) -> None:
    running_app(world.node("there"), app(world), phase="Succeeded")


@pytest.mark.parametrize(
    ("prepare", "reason", "said"),
    [
        (lambda _: None, "PodNotFound", "there is no pod default/nginx"),
        (unscheduled, "PodNotRunning", "is not on a node yet"),
        (ended, "PodNotRunning", "has ended"),
    ],
    ids=["no such pod", "not scheduled", "ended"],
)
def test_a_pod_without_a_node_says_why(world: World, prepare: Callable[[World], None], reason: str, said: str) -> None:
    prepare(world)
    world.ask("of-pod", {"podRef": {"namespace": "default", "name": "nginx"}})
    succeeded = world.end("of-pod")
    assert succeeded[:2] == ("False", reason)
    assert said in succeeded[2]
    assert world.pods() == []


def test_a_pod_on_a_node_that_may_not_be_diagnosed_is_refused(world: World) -> None:
    (node,) = labelled(world, "secret", labels=("private=yes",))
    running_app(node, app(world))
    world.ask("of-pod", {"podRef": {"namespace": "default", "name": "nginx"}})
    assert world.end("of-pod")[:2] == ("False", "NodeNotAllowed")


# --- what becomes of nodes on the way ---------------------------------------------------------------------------------


def rebooted(world: World, node: HollowNode, runner: str) -> None:
    node.run(runner)
    eventually(lambda: states(world, "gone")["web-a"] == "Running")
    node.report(world.address, nodeInfo=boot("second"))


def rebooted_and_reported(world: World, node: HollowNode, runner: str) -> None:
    node.run(runner)
    eventually(lambda: states(world, "gone")["web-a"] == "Running")
    node.report(world.address, nodeInfo=boot("second"))
    node.finish_after_reboot(runner)


def replaced(world: World, node: HollowNode, runner: str) -> None:
    node.run(runner)
    eventually(lambda: states(world, "gone")["web-a"] == "Running")
    node.leave()
    node.register(world.address, nodeInfo=boot("first"))


def removed_while_it_waited(world: World, node: HollowNode, _runner: str) -> None:
    node.leave()


def boot(boot_id: str) -> dict[str, str]:
    return {
        "bootID": boot_id,
        "operatingSystem": "linux",
        **dict.fromkeys(
            (
                "architecture",
                "containerRuntimeVersion",
                "kernelVersion",
                "kubeProxyVersion",
                "kubeletVersion",
                "machineID",
                "osImage",
                "systemUUID",
            ),
            "",
        ),
    }


@pytest.mark.parametrize(
    ("happen", "said"),
    [
        (rebooted, "was rebooted"),
        (rebooted_and_reported, "was rebooted"),
        (replaced, "was replaced by another node of the same name|was removed"),
        (removed_while_it_waited, "was removed"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_node_that_goes_on_the_way_is_lost_and_the_other_is_kept(
    world: World, happen: Callable[[World, HollowNode, str], None], said: str
) -> None:
    lost, kept = labelled(world, "web-a", "web-b", nodeInfo=boot("first"))
    world.ask("gone", WEB)
    runner = lost.runner()
    happen(world, lost, runner)
    world.run(kept)
    status, reason, message = world.end("gone")
    assert (status, reason) == ("False", "PartialResults")
    assert states(world, "gone") == {"web-a": "NodeLost", "web-b": "Completed"}
    assert any(words in message for words in said.split("|")), message
    eventually(lambda: world.pods() == [])


# --- how far it is ----------------------------------------------------------------------------------------------------


def test_a_person_sees_it_move(world: World) -> None:
    """`kubectl get -w` is what a person watches: every change of the column arrives there, in order."""
    node = world.node("node-a")
    watch = subprocess.Popen(
        [
            world.cluster.kubectl_binary,
            f"--kubeconfig={world.cluster.kubeconfig}",
            *("get", "memdiag", "-w", "-o", "custom-columns=P:.status.progress", "--no-headers"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        world.diagnose("seen", "node-a", duration="60s")
        runner = node.runner()
        node.bind(runner)
        node.say(runner, {"phase": "Pending", **container({"waiting": {"reason": "ContainerCreating"}})})
        eventually(lambda: "Starting 5%" in row(world, "seen"))
        for percent, elapsed in ((5, 0), (50, 30), (95, 61)):
            state = {"running": {"startedAt": seconds_ago(elapsed)}}
            node.say(runner, {"phase": "Running", **container(state)})
            eventually(partial(has_come_to, world, "seen", percent))
        world.deliver(node, runner)
        world.end("seen")
        assert world.read("seen")["status"]["progress"] == "Done 100%"
    finally:
        watch.terminate()
        reported = watch.communicate()[0].splitlines()
    steps = [line.split()[0] for line in reported if "%" in line]
    assert list(dict.fromkeys(steps)) == ["Waiting", "Starting", "Tracing", "Collecting", "Done"]
    percents = [int(line.split()[1].rstrip("%")) for line in reported if "%" in line]
    assert percents == sorted(percents)


def has_come_to(world: World, name: str, percent: int) -> bool:
    """Whether a run is at least so far."""
    return bool(world.read(name)["status"].get("progressPercent", 0) >= percent)


def has_begun_for(world: World, name: str, requested_at: str) -> bool:
    """Whether the run that a request asks for has started."""
    return bool(world.read(name)["status"].get("lastHandledRequest") == requested_at)


def seconds_ago(seconds: int) -> str:
    return timestamp(datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=seconds))


# --- again ------------------------------------------------------------------------------------------------------------


def test_the_previous_run_is_reported_and_reports_of_old_runs_are_deleted(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("again", "node-a")
    runners = [world.run(node)]
    world.end("again")
    first = world.read("again")["status"]
    for number in range(2):
        world.cluster.kubectl("annotate", "--overwrite", "memdiag", "again", f"memdiag.dev/requestedAt={number}")
        eventually(partial(has_begun_for, world, "again", str(number)))
        eventually(lambda: node.runner() not in runners)
        runners.append(world.run(node))
        world.end("again")
        if number == 0:
            last = world.read("again")["status"]["lastRun"]
            assert {key: last[key] for key in ("runID", "startTime", "completionTime", "summary", "suspect")} == {
                key: first[key] for key in ("runID", "startTime", "completionTime", "summary", "suspect")
            }
            assert (last["reason"], last["leakDetected"], last["verdict"]) == (
                "Completed",
                "True",
                "PinnedByUnreadSocket",
            )
            assert sorted(one["podName"] for one in world.reports("again")) == sorted(runners)
    # keepReportsOfRuns is 1: with the third run the first one's reports are gone.
    assert sorted(one["podName"] for one in world.reports("again")) == sorted(runners[1:])
