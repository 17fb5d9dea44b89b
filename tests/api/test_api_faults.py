"""Bad days, made real: each run ends right, once, and nothing of it is left.

A proxy before the API server answers errors, loses answers, cuts and freezes watches; etcd and the API server are
killed; the operator is killed at each of its requests; its clock is wrong by hours.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from local_cluster.paths import PROJECT
from memdiag_api.evidence import VerdictKind
from support.cluster import TestCluster
from support.control_plane import ControlPlane
from support.fault_proxy import Fault, FaultProxy, fault_proxy
from support.hollow_node import RUNNERS, HollowNode, eventually, log_endpoint, now
from support.operator_process import OperatorProcess, running_operator
from support.operator_world import CONFIG, World, evidence_of, pod_of, run_id, sweep_away

BAD_DAY_SECONDS = 120
BAD_CONFIG: dict[str, Any] = CONFIG | {
    "allowedNodes": {"matchExpressions": [{"key": "off-limits", "operator": "DoesNotExist"}]},
    "grace": CONFIG["grace"] | {"logSeconds": 60},  # longer than the API server takes to start, on a busy machine too
}
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
WRITES = ("POST", "PUT", "PATCH", "DELETE")
Record = Callable[[str, Any], None]


@dataclass
class Stage:
    """The cluster, its operators, and what stands between them."""

    cluster: TestCluster
    proxy: FaultProxy
    plane: ControlPlane
    folder: Path
    operators: ExitStack
    world: World

    def start_operator(self, **options: Any) -> OperatorProcess:
        """Start an operator, which reaches the API server through the proxy unless `options` say otherwise."""
        options = {"server": self.proxy.url, "config": BAD_CONFIG, **options}
        operator = self.operators.enter_context(running_operator(self.cluster, self.folder, **options))
        self.world.operator = operator
        return operator

    def ended_once(self, name: str, runner: str) -> None:
        """See the run end with its result, once, and leave nothing but that."""
        world = self.world
        eventually(lambda: world.condition(name, "Reconciling")[0] == "False", BAD_DAY_SECONDS)
        assert world.condition(name)[:2] == ("True", "Completed"), world.condition(name)
        eventually(lambda: world.pods() == [], BAD_DAY_SECONDS)
        assert [report["metadata"]["name"] for report in world.reports(name)] == [runner]
        reported = world.events(name)
        assert sorted(set(reported)) == reported
        assert "internal error" not in self.world.operator.log


@pytest.fixture(scope="module")
def stage(installed: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with ExitStack() as stack:
        logs, folder = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("operator")
        address = stack.enter_context(log_endpoint(installed, logs))
        plane = ControlPlane(installed)
        upstream = installed.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
        proxy = stack.enter_context(fault_proxy(upstream, plane.pki))
        operators = stack.enter_context(ExitStack())
        first = operators.enter_context(running_operator(installed, folder, BAD_CONFIG, server=proxy.url))
        yield Stage(installed, proxy, plane, folder, operators, World(installed, first, logs, address))


@pytest.fixture
def bad_day(stage: Stage) -> Iterator[Stage]:
    yield stage
    stage.proxy.set()
    sweep_away(stage.cluster)


@pytest.fixture
def world(bad_day: Stage) -> World:
    return bad_day.world


@contextmanager
def an_operator(stage: Stage, **options: Any) -> Iterator[OperatorProcess]:
    """Have another operator than the usual one, for as long as the body takes."""
    stage.world.operator.stop()
    try:
        yield stage.start_operator(**options)
    finally:
        stage.operators.close()
        stage.start_operator()


def faults(table: dict[str, Any], reason: str = "Completed") -> Any:
    """The rows of `table` as parameters, each a fault that is expected to end with `reason`."""
    return [pytest.param(row, marks=pytest.mark.fault(name, reason=reason), id=name) for name, row in table.items()]


# --- answers ----------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, Callable[[], Fault]] = {
    "429 with Retry-After, twice to each kind of request": lambda: Fault(429, times=2, headers={"Retry-After": "1"}),
    "429 without Retry-After": lambda: Fault(429, times=2),
    "500 to each kind of request": lambda: Fault(500, times=2),
    "503 to each kind of request": lambda: Fault(503, times=1),
    "409 to each write of a status": lambda: Fault(409, ("PUT",), "/status$", times=3, reason="Conflict"),
    "connection refused": lambda: Fault("refuse", times=2),
    "answer lost after the write was done": lambda: Fault("lose", WRITES, times=1),
}


@pytest.mark.parametrize("fault", faults(ANSWERS))
def test_errors_delay_a_run_and_no_more(bad_day: Stage, fault: Callable[[], Fault], record_property: Record) -> None:
    node = bad_day.world.node("node-a")
    bad_day.proxy.set(fault())
    bad_day.world.diagnose("run", "node-a")
    runner = bad_day.world.run(node)
    bad_day.ended_once("run", runner)
    record_property("seen", bad_day.world.condition("run")[1])


# --- watches ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("watch connections cut after each step", reason="Completed")
def test_watches_that_are_cut_cost_nothing(bad_day: Stage, record_property: Record) -> None:
    world, node = bad_day.world, bad_day.world.node("node-a")
    world.diagnose("run", "node-a")
    bad_day.proxy.cut_watches()
    runner = node.runner()
    bad_day.proxy.cut_watches()
    node.run(runner)
    bad_day.proxy.cut_watches()
    world.deliver(node, runner)
    bad_day.proxy.cut_watches()
    bad_day.ended_once("run", runner)
    record_property("seen", world.condition("run")[1])


@pytest.mark.fault("watches refused while a runner works and ends", reason="Completed")
def test_a_run_ends_without_any_watch(bad_day: Stage, record_property: Record) -> None:
    world, node = bad_day.world, bad_day.world.node("node-a")
    world.diagnose("run", "node-a")
    runner = node.runner()
    with bad_day.proxy.without_watches():
        node.run(runner)
        world.deliver(node, runner)
        bad_day.ended_once("run", runner)
    record_property("seen", world.condition("run")[1])


@pytest.mark.fault("watches silent, connections open", reason="Completed")
def test_a_run_ends_although_the_watches_have_gone_silent(bad_day: Stage, record_property: Record) -> None:
    world, node = bad_day.world, bad_day.world.node("node-a")
    world.diagnose("run", "node-a")
    runner = node.runner()
    with bad_day.proxy.frozen_watches():
        node.run(runner)
        world.deliver(node, runner)
        bad_day.ended_once("run", runner)
    record_property("seen", world.condition("run")[1])


@pytest.mark.fault("watches silent, and the runner's pod deleted by someone", reason="RunnerEvicted")
def test_a_deletion_that_no_watch_reports_is_found(bad_day: Stage, record_property: Record) -> None:
    world, node = bad_day.world, bad_day.world.node("node-a")
    world.diagnose("run", "node-a")
    runner = node.runner()
    node.run(runner)
    eventually(lambda: world.condition("run")[1] == "Running")
    with bad_day.proxy.frozen_watches():
        world.cluster.kubectl("-n", RUNNERS, "delete", "pod", runner, "--force", "--grace-period=0")
        assert world.end("run")[:2] == ("False", "RunnerEvicted")
    record_property("seen", world.condition("run")[1])


# --- the control plane ------------------------------------------------------------------------------------------------

OUTAGES = {
    f"{name} killed while a runner {step}": (name, step)
    for name in ("kube-apiserver", "etcd")
    for step in ("works", "has ended")
}


@pytest.mark.parametrize("outage", faults(OUTAGES))
def test_an_outage_of_the_control_plane_is_waited_for(
    bad_day: Stage, outage: tuple[str, str], record_property: Record
) -> None:
    (program, step), world = outage, bad_day.world
    node = world.node("node-a")
    world.diagnose("run", "node-a")
    runner = node.runner()
    node.run(runner)
    eventually(lambda: world.condition("run")[1] == "Running")
    if step == "has ended":
        world.deliver(node, runner)
        bad_day.plane.restart(program)
    else:
        with bad_day.plane.without(program):
            eventually(lambda: re.search("cannot list the cluster|next sweep", world.operator.log), BAD_DAY_SECONDS)
        world.deliver(node, runner)
    bad_day.ended_once("run", runner)
    record_property("seen", world.condition("run")[1])


# --- the operator -----------------------------------------------------------------------------------------------------

REQUESTS: dict[str, tuple[str, str]] = {
    "the run's start": ("PUT", "/status$"),
    "its runner pod": ("POST", "/pods$"),
    "its report": ("POST", "/memorydiagnosisreports$"),
    "the run's end": ("PUT", "/status$"),
    "the removal of its pod": ("DELETE", "/pods/"),
    "its first event": ("POST", "/events$"),
}


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(
            one, marks=pytest.mark.fault(f"operator killed right after {one} was written", reason="Completed"), id=one
        )
        for one in REQUESTS
    ],
)
def test_the_operator_may_die_at_each_of_its_writes(bad_day: Stage, step: str, record_property: Record) -> None:
    world, (method, path) = bad_day.world, REQUESTS[step]
    node = world.node("node-a")
    reports = bad_day.proxy.requests["POST apis/memdiag.dev/v1alpha1/memorydiagnosisreports"]

    def is_its_time() -> bool:
        reported = bad_day.proxy.requests["POST apis/memdiag.dev/v1alpha1/memorydiagnosisreports"]
        return step != "the run's end" or reported > reports

    killed: list[OperatorProcess] = []

    def kill() -> None:
        killed.append(world.operator)
        world.operator.kill()

    bad_day.proxy.set(Fault("lose", (method,), path, when=is_its_time, then=kill))
    world.diagnose("run", "node-a")
    if step in ("the run's start", "its runner pod", "its first event"):
        eventually(lambda: killed)
        bad_day.start_operator()
        runner = world.run(node)
    else:
        runner = world.run(node)
        eventually(lambda: killed)
        bad_day.start_operator()
    bad_day.ended_once("run", runner)
    record_property("seen", world.condition("run")[1])


@pytest.mark.fault("two operators at once, by accident", reason="Completed")
def test_two_operators_do_the_work_of_one(bad_day: Stage, record_property: Record) -> None:
    world = bad_day.world
    with running_operator(bad_day.cluster, bad_day.folder.with_name("second"), BAD_CONFIG) as second:
        nodes = [world.node(f"node-{number}") for number in range(3)]
        for number, node in enumerate(nodes):
            world.diagnose(f"run-{number}", node.name)
        runners = [world.run(node) for node in nodes]
        for number, runner in enumerate(runners):
            bad_day.ended_once(f"run-{number}", runner)
        assert "internal error" not in second.log
    record_property("seen", world.condition("run-0")[1])


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def faketime() -> Path:
    if not FAKETIME.exists():
        pytest.skip(f"needs Debian's package libfaketime: {FAKETIME} is not there")
    return FAKETIME


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


@pytest.mark.parametrize(
    "offset",
    [
        pytest.param(
            offset, marks=pytest.mark.fault(f"operator's clock {reported}", reason="DeadlineExceeded"), id=offset
        )
        for offset, reported in (("+2h", "two hours ahead"), ("-2h", "two hours behind"))
    ],
)
def test_deadlines_go_by_the_api_servers_clock(
    bad_day: Stage, faketime: Path, offset: str, record_property: Record
) -> None:
    world = bad_day.world
    wrong = {"LD_PRELOAD": str(faketime), "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1"}
    # The runner never ends: the run ends when the time to deliver is over, too.
    runner = CONFIG["runner"] | {"terminationGraceSeconds": 2}
    impatient = BAD_CONFIG | {"runner": runner, "grace": CONFIG["grace"]}
    with an_operator(bad_day, config=impatient, environment=wrong, trusting=True):
        stuck, good = world.node("node-a"), world.node("node-b")
        started = now()
        world.diagnose("stuck", stuck.name, activeDeadlineSeconds=30)
        world.diagnose("good", good.name)
        stuck.run(stuck.runner())
        world.run(good)
        assert world.end("good")[:2] == ("True", "Completed")
        eventually(lambda: world.condition("stuck", "Reconciling")[0] == "False", BAD_DAY_SECONDS)
        status = world.read("stuck")["status"]
        record_property("seen", world.condition("stuck")[1])
        assert world.condition("stuck")[1] == "DeadlineExceeded"
        assert abs(seconds_between(started, status["startTime"])) < 30
        assert 30 <= seconds_between(status["startTime"], status["completionTime"]) < 90


# --- every reason -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(one, marks=pytest.mark.fault(f"none: the verdict is {one}", reason=one.value), id=one.value)
        for one in VerdictKind
    ],
)
def test_every_verdict_becomes_the_reason_of_leak_detected(
    world: World, kind: VerdictKind, record_property: Record
) -> None:
    node = world.node("node-a")
    world.diagnose("run", "node-a")
    runner = node.runner()
    node.run(runner)
    usual = evidence_of("node-a", run_id(pod_of(world, runner))).verdict
    world.deliver(node, runner, verdict=usual.model_copy(update={"kind": kind}))
    assert world.end("run")[:2] == ("True", "Completed")
    record_property("seen", world.condition("run", "LeakDetected")[1])
    assert world.condition("run", "LeakDetected")[1] == kind


def windows(world: World) -> None:
    world.node("node-a", nodeInfo=dict.fromkeys(NODE_INFO, "") | {"operatingSystem": "windows"})
    world.diagnose("run", "node-a")


def off_limits(world: World) -> None:
    world.node("node-a")
    world.cluster.kubectl("label", "node", "node-a", "off-limits=yes")
    world.diagnose("run", "node-a")


def no_such_pod(world: World) -> None:
    ask_about(world, {"podRef": {"namespace": "default", "name": "no-such-pod"}})


def waiting_pod(world: World) -> None:
    world.cluster.kubectl("-n", "default", "run", "waits", "--image=x", "--restart=Never")
    ask_about(world, {"podRef": {"namespace": "default", "name": "waits"}})


def no_such_node(world: World) -> None:
    world.diagnose("run", "no-such-node")


NODE_INFO = (
    *("architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion", "kubeletVersion"),
    *("machineID", "operatingSystem", "osImage", "systemUUID"),
)
REFUSALS: dict[str, tuple[Callable[[World], None], str]] = {
    "a node that does not exist": (no_such_node, "NodeNotFound"),
    "a Windows node": (windows, "NodeUnsupported"),
    "a node that the configuration does not allow": (off_limits, "NodeNotAllowed"),
    "a pod that does not exist": (no_such_pod, "PodNotFound"),
    "a pod that is on no node": (waiting_pod, "PodNotRunning"),
}


@pytest.mark.parametrize(
    ("ask", "reason"),
    [pytest.param(*row, marks=pytest.mark.fault(name, reason=row[1]), id=name) for name, row in REFUSALS.items()],
)
def test_what_cannot_be_diagnosed_is_said_at_once(
    world: World, ask: Callable[[World], None], reason: str, record_property: Record
) -> None:
    ask(world)
    status, found, message = world.end("run")
    record_property("seen", found)
    assert (status, found) == ("False", reason), message
    assert world.pods() == []
    world.cluster.kubectl("-n", "default", "delete", "pods", "--all", "--force", "--grace-period=0")


def ask_about(world: World, target: dict[str, Any]) -> None:
    world.ask("run", target)


def not_ready(node: HollowNode, address: str) -> None:
    node.report(address, ready="Unknown")


def rebooted(node: HollowNode, address: str) -> None:
    node.report(address, nodeInfo=dict.fromkeys(NODE_INFO, "") | {"bootID": "another"})


def replaced(node: HollowNode, address: str) -> None:
    node.leave()
    node.register(address)


LOSSES: dict[str, tuple[Callable[[HollowNode, str], None], str]] = {
    "kubelet down: the node is not Ready": (not_ready, "has not been Ready"),
    "node rebooted": (rebooted, "was rebooted"),
    "node replaced by another of its name": (replaced, "was replaced by another node of the same name|was removed"),
}


@pytest.mark.parametrize(
    ("lose", "said"),
    [pytest.param(*row, marks=pytest.mark.fault(name, reason="NodeLost"), id=name) for name, row in LOSSES.items()],
)
def test_a_lost_node_ends_its_run(
    world: World, lose: Callable[[HollowNode, str], None], said: str, record_property: Record
) -> None:
    node = world.node("node-a", nodeInfo=dict.fromkeys(NODE_INFO, "") | {"bootID": "first"})
    world.diagnose("run", "node-a")
    node.run(node.runner())
    eventually(lambda: world.condition("run")[1] == "Running")
    lose(node, world.address)
    status, reason, message = world.end("run")
    record_property("seen", reason)
    assert (status, reason) == ("False", "NodeLost")
    assert re.search(said, message)
    eventually(lambda: world.pods() == [])


@pytest.mark.fault("one of two nodes fails", reason="PartialResults")
def test_what_one_node_delivered_is_kept_when_another_fails(world: World, record_property: Record) -> None:
    nodes = [world.node("node-a"), world.node("node-b")]
    for node in nodes:
        world.cluster.kubectl("label", "node", node.name, "pool=web")
    world.ask("run", {"nodeSelector": {"matchLabels": {"pool": "web"}}, "maxNodes": 2})
    world.run(nodes[0])
    runner = nodes[1].runner()
    nodes[1].run(runner)
    nodes[1].finish(runner, "", b"", exit_code=1)
    status, reason, _ = world.end("run")
    record_property("seen", reason)
    assert (status, reason) == ("False", "PartialResults")
    assert world.condition("run", "LeakDetected")[:2] == ("True", "PinnedByUnreadSocket")
    assert len(world.reports("run")) == 1


@pytest.mark.fault("nothing was delivered: the reason of LeakDetected", reason="NoResult")
def test_without_a_result_no_leak_is_said_to_be_absent(world: World, record_property: Record) -> None:
    world.diagnose("run", "no-such-node")
    world.end("run")
    record_property("seen", world.condition("run", "LeakDetected")[1])
    assert world.condition("run", "LeakDetected")[:2] == ("Unknown", "NoResult")


@pytest.mark.fault("a spec that was stored under a laxer schema", reason="InvalidSpec")
def test_a_spec_of_another_schema_is_refused_by_the_operator(world: World, record_property: Record) -> None:
    path = "crd/memorydiagnoses.memdiag.dev"
    laxer = json.loads(world.cluster.kubectl("get", path, "-o", "json"))
    properties = laxer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    selector = properties["spec"]["properties"]["target"]["properties"]["nodeSelector"]
    properties["spec"]["properties"]["target"]["properties"]["nodeSelector"] = without_rules(selector)
    laxer["metadata"] = {"name": laxer["metadata"]["name"]}
    world.cluster.kubectl("replace", "-f", "-", input=json.dumps(laxer))
    try:
        eventually(lambda: stored(world, {"nodeSelector": {"matchLabels": {"not a key": "x"}}, "maxNodes": 1}))
        assert world.end("run")[:2] == ("False", "InvalidSpec")
    finally:
        overlay = str(PROJECT / "manifests/overlays/embedded")
        world.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", overlay)
    record_property("seen", world.condition("run")[1])
    assert world.pods() == []


def without_rules(schema: Any) -> Any:
    """A schema without its CEL rules."""
    if isinstance(schema, dict):
        return {key: without_rules(part) for key, part in schema.items() if key != "x-kubernetes-validations"}
    return [without_rules(part) for part in schema] if isinstance(schema, list) else schema


def stored(world: World, target: dict[str, Any]) -> bool:
    """Whether the API server takes a diagnosis of this target by now."""
    try:
        world.ask("run", target)
    except AssertionError:
        return False
    return True


# --- many at once -----------------------------------------------------------------------------------------------------


@dataclass
class Overlap:
    """How many requests were in progress at the same time."""

    now: int = 0
    most: int = 0
    total: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pause(self) -> None:
        """Be under way for a while."""
        with self.lock:
            self.now, self.total = self.now + 1, self.total + 1
            self.most = max(self.most, self.now)
        time.sleep(0.5)
        with self.lock:
            self.now -= 1


def test_runs_that_choose_from_all_nodes_start_one_after_the_other(bad_day: Stage) -> None:
    """A list of thousands of nodes takes much memory: the operator must not have several at once."""
    lists = Overlap()
    bad_day.proxy.set(Fault(503, ("GET",), "^/api/v1/nodes$", times=4, then=lists.pause))
    names = [f"of-many-{number}" for number in range(4)]
    for name in names:
        bad_day.world.ask(name, {"nodeSelector": {"matchLabels": {"pool": "none"}}, "maxNodes": 1000})
    for name in names:
        assert bad_day.world.end(name)[:2] == ("False", "NodeNotFound")
    assert (lists.total, lists.most) == (4, 1)
