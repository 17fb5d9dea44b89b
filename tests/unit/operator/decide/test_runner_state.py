"""How a runner pod stands, one row for every way that it can."""

import re

import pytest

from memdiag_api.conditions import Reason
from memdiag_operator.decide.runner_state import (
    Broken,
    Finished,
    RunnerState,
    Starting,
    Window,
    Working,
    runner_state,
    starts_slowly,
)
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Event, Node, Pod
from support.kubernetes_objects import CONFIG, NODE, NOW, ago, node, pod, running, terminated, timestamp, waiting

UNFIT = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient cpu"}
PLACED = {"type": "PodScheduled", "status": "True"}
EVICTED = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "taint"}


FORMER_BOOT = {naming.BOOT_ID_ANNOTATION: "boot-0"}


def state_of(runner: Pod, where: Node | None, *events: Event) -> RunnerState:
    window = Window(60)
    return runner_state(runner, where, node_name=NODE, window=window, now=NOW, grace=CONFIG.grace, events=events)


def event(reason: str, message: str = "", *, kind: str = "Warning", age: float = 5) -> Event:
    return Event(type=kind, reason=reason, message=message, last_timestamp=ago(age))


def placed(seconds: float) -> list[dict[str, str]]:
    return [{**PLACED, "lastTransitionTime": timestamp(ago(seconds))}]


@pytest.mark.parametrize(
    ("runner", "where", "message"),
    [
        pytest.param(pod(phase="Pending", age=0), node(), "is starting on node node1", id="just created"),
        pytest.param(
            pod(phase="Pending", conditions=[UNFIT], age=59),
            node(),
            "cannot be scheduled.*Insufficient",
            id="unfit, new",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("ContainerCreating")), node(), "ContainerCreating", id="creating"
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("ErrImagePull", "no such host"), age=80),
            node(),
            "cannot pull the runner's image: ErrImagePull: no such host",
            id="pull failed, may heal",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("ErrImagePull"), age=500, conditions=placed(10)),
            node(),
            "cannot pull the runner's image",
            id="pull failed, but only just placed",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("CreateContainerError", "no mount")),
            node(),
            "no mount",
            id="create failed",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("ContainerCreating"), age=500, conditions=placed(119)),
            node(),
            "ContainerCreating",
            id="creating for a while",
        ),
        pytest.param(pod(phase="Pending"), node(ready="False", since=59), "is starting", id="node briefly NotReady"),
    ],
)
def test_starting(runner: Pod, where: Node, message: str) -> None:
    state = state_of(runner, where)
    assert isinstance(state, Starting)
    assert_matches(message, state.message)


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        pytest.param(pod(state=running(12)), "tracing on node1: 12 s of 60 s", id="running"),
        pytest.param(pod(state=running(-3600)), "tracing on node1: 0 s of 60 s", id="node's clock is ahead"),
        pytest.param(pod(state=running(75)), "finished after 60 s; waiting for the result", id="reporting"),
        pytest.param(pod(), "the runner is running", id="no container status"),
        pytest.param(pod(phase="Unknown", state=running(12)), "12 s of 60 s", id="phase unknown"),
        pytest.param(pod(phase="Failed", state=running(12)), "12 s of 60 s", id="failed, its container still ends"),
    ],
)
def test_working(runner: Pod, message: str) -> None:
    state = state_of(runner, node())
    assert isinstance(state, Working)
    assert_matches(message, state.message)


@pytest.mark.parametrize(
    ("runner", "where"),
    [
        pytest.param(pod(phase="Succeeded", state=terminated()), node(), id="done"),
        pytest.param(pod(phase="Failed", state=terminated(exit_code=1)), node(), id="failed"),
        pytest.param(pod(phase="Failed", reason="Evicted"), node(), id="evicted before its container started"),
        pytest.param(pod(phase="Succeeded", state=terminated()), node(ready="Unknown"), id="done, then the node went"),
        pytest.param(
            pod(phase="Failed", state=terminated("a message", exit_code=3), annotations=FORMER_BOOT),
            node(),
            id="failed with a termination message, then the node was rebooted",
        ),
        pytest.param(
            pod(phase="Failed", state=terminated(exit_code=137, reason="OOMKilled"), annotations=FORMER_BOOT),
            node(),
            id="out of memory, then the node was rebooted",
        ),
        pytest.param(pod(phase="Succeeded", state=terminated("a message")), None, id="done, then the node was removed"),
        pytest.param(pod(phase="Succeeded", state=terminated(), deleted=True), node(), id="done and being deleted"),
    ],
)
def test_finished(runner: Pod, where: Node | None) -> None:
    assert state_of(runner, where) == Finished()


@pytest.mark.parametrize(
    ("runner", "where", "reason", "message"),
    [
        pytest.param(
            pod(phase="Pending", conditions=[UNFIT], age=61),
            node(),
            Reason.UNSCHEDULABLE,
            "Insufficient cpu",
            id="unfit",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("ImagePullBackOff", "Back-off"), age=91),
            node(),
            Reason.IMAGE_PULL,
            "ImagePullBackOff: Back-off. Check runner.image",
            id="image cannot be pulled",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("InvalidImageName"), age=1),
            node(),
            Reason.IMAGE_PULL,
            "InvalidImageName",
            id="image name can never be right",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("ErrImageNeverPull"), age=1),
            node(),
            Reason.IMAGE_PULL,
            "ErrImageNeverPull",
            id="image must be there and is not",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("ContainerCreating"), age=500, conditions=placed(121)),
            node(),
            Reason.RUNNER_FAILED,
            "not started within 120 s on node node1: ContainerCreating",
            id="creating for too long",
        ),
        pytest.param(
            pod(phase="Pending", age=500, conditions=placed(121)),
            node(),
            Reason.RUNNER_FAILED,
            "the kubelet reported no reason",
            id="placed, and the kubelet reports nothing",
        ),
        pytest.param(
            pod(phase="Pending", state=waiting("CreateContainerError", "no mount"), age=121),
            node(),
            Reason.RUNNER_FAILED,
            "no mount",
            id="container cannot be created",
        ),
        pytest.param(pod(state=running()), None, Reason.NODE_LOST, "was removed from the cluster", id="node gone"),
        pytest.param(
            pod(state=running(), annotations={naming.NODE_UID_ANNOTATION: "former"}),
            node(),
            Reason.NODE_LOST,
            "was replaced by another node of the same name",
            id="node replaced",
        ),
        pytest.param(
            pod(state=running(), annotations=FORMER_BOOT), node(), Reason.NODE_LOST, "was rebooted", id="node rebooted"
        ),
        pytest.param(
            pod(phase="Failed", state=terminated(exit_code=255, reason="Unknown"), annotations=FORMER_BOOT),
            node(),
            Reason.NODE_LOST,
            "was rebooted",
            id="node rebooted, its kubelet is back and found the container dead",
        ),
        pytest.param(
            pod(phase="Failed", state=running()),
            None,
            Reason.NODE_LOST,
            "was removed",
            id="node gone, pod failed by the garbage collector",
        ),
        pytest.param(
            pod(state=running()),
            node(ready="Unknown", since=61),
            Reason.NODE_LOST,
            "has not been Ready for 61 s.*the kubelet's word",
            id="node silent",
        ),
        pytest.param(
            pod(state=running(), deleted=True, conditions=[EVICTED]),
            node(),
            Reason.RUNNER_EVICTED,
            "is being evicted: DeletionByTaintManager: taint",
            id="evicted by a taint",
        ),
        pytest.param(
            pod(state=running(), deleted=True),
            node(),
            Reason.RUNNER_EVICTED,
            "by someone other than the operator",
            id="deleted by a person",
        ),
    ],
)
def test_broken(runner: Pod, where: Node | None, reason: Reason, message: str) -> None:
    state = state_of(runner, where)
    assert isinstance(state, Broken)
    assert state.reason is reason
    assert_matches(message, state.message)


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


SANDBOX = event("FailedCreatePodSandBox", "plugin type=cilium: no route")
CREATING = pod(phase="Pending", state=waiting("ContainerCreating"), age=500, conditions=placed(60))


@pytest.mark.parametrize(
    ("events", "said"),
    [
        pytest.param((SANDBOX,), "ContainerCreating: FailedCreatePodSandBox: plugin type=cilium: no route", id="one"),
        pytest.param((event("FailedMount", age=9), SANDBOX, event("Old", age=99)), "FailedCreatePodSandBox", id="last"),
        pytest.param((SANDBOX, event("Pulling", kind="Normal", age=1)), "FailedCreatePodSandBox", id="warnings first"),
        pytest.param((event("Pulling", "the image", kind="Normal"),), "Pulling: the image", id="slow registry"),
        pytest.param((Event(type="Warning", reason="Undated"),), "Undated", id="no time"),
    ],
)
def test_the_events_of_a_pod_say_why_it_does_not_start(events: tuple[Event, ...], said: str) -> None:
    state = state_of(CREATING, node(), *events)
    assert isinstance(state, Starting)
    assert said in state.message
    too_long = pod(phase="Pending", state=waiting("ContainerCreating"), age=500, conditions=placed(121))
    over = state_of(too_long, node(), *events)
    assert isinstance(over, Broken)
    assert said in over.message


@pytest.mark.parametrize(
    ("runner", "slowly"),
    [
        pytest.param(CREATING, True, id="creating"),
        pytest.param(pod(phase="Pending", conditions=placed(60)), True, id="no word of the kubelet"),
        pytest.param(pod(phase="Pending", conditions=placed(9)), False, id="just placed"),
        pytest.param(pod(phase="Pending", conditions=[UNFIT], node_name=""), False, id="unfit"),
        pytest.param(pod(phase="Pending", state=waiting("ErrImagePull"), age=60), False, id="says why itself"),
        pytest.param(pod(state=running(12), age=60), False, id="running"),
    ],
)
def test_who_is_asked_for_events(runner: Pod, slowly: bool) -> None:
    assert starts_slowly(runner, NOW, CONFIG.grace) is slowly
