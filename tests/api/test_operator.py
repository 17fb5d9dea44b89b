"""The operator as it runs, against a real API server. Nodes have no kubelet here: the test reports what pods do."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from memdiag_api.evidence import RunnerError, TerminationMessage
from memdiag_operator.kube import naming
from support.cluster import TestCluster
from support.evidence import clean, suspicious
from support.hollow_node import RUNNERS, HollowNode, container, eventually, injector, now
from support.kubernetes_objects import delivered
from support.operator_process import OperatorProcess, running_operator
from support.operator_world import CONFIG, World, evidence_of, pod_of, run_id, sweep_away
from support.runner_manifest import runner_manifest

OPERATOR = "system:serviceaccount:memdiag-system:memdiag-operator"


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("none: a runner works", reason="Running")
def test_a_run_from_the_request_to_the_answer(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("run", "node-a")
    runner = node.runner()
    node.run(runner)
    eventually(lambda: world.condition("run", "Reconciling")[2] == "tracing on node-a for 5 s")
    assert world.condition("run")[:2] == ("Unknown", "Running")

    message, log = delivered(evidence_of("node-a", run_id(pod_of(world, runner))))
    node.finish(runner, message, b"loading\n" + log)
    assert world.end("run")[:2] == ("True", "Completed")

    status = world.read("run")["status"]
    assert world.condition("run", "LeakDetected")[:2] == ("True", "PinnedByUnreadSocket")
    assert status["suspect"] == "nginx[4711] fd 11 (no pod): 3.00 MiB unread pins 5.00 GiB"
    assert status["results"][0]["allocPage"] == "6.00 GiB"
    assert status["nodes"] == {"total": 1, "pending": 0, "running": 0, "succeeded": 1, "failed": 0}
    (report,) = world.reports("run")
    assert report["metadata"]["name"] == status["reportRefs"][0]["name"] == runner
    assert report["metadata"]["ownerReferences"][0]["uid"] == world.read("run")["metadata"]["uid"]
    world.await_events("run", "Completed", "PinnedByUnreadSocket", "Running", "Started")
    eventually(lambda: world.pods() == [])
    row = world.cluster.kubectl("get", "memdiag", "run", "--no-headers").split()
    assert row[:7] == ["run", "node-a", "True", "Completed", "Done", "100%", "True"]


def test_names_come_from_the_pods_that_the_api_server_has_on_the_node(world: World) -> None:
    here, there = world.node("here"), world.node("there")
    for node, name, letter in ((here, "mine", "c"), (there, "foreign", "d")):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "app", "image": "x"}]},
        }
        world.cluster.kubectl("create", "-n", "default", "-f", "-", input=json.dumps(pod))
        node.bind(name, "default")
        one = container({"running": {}})["containerStatuses"][0] | {
            "name": "app",
            "containerID": "containerd://" + letter * 64,
        }
        node.say(name, {"phase": "Running", "containerStatuses": [one]}, "default")
    world.diagnose("who", "here")
    runner = here.runner()
    here.run(runner)
    template = evidence_of("here", run_id(pod_of(world, runner)))
    (holder,) = template.holders

    def held_by(container_id: str) -> Any:
        owner = holder.owners[0].model_copy(update={"container_id": container_id})
        return holder.model_copy(update={"owners": [owner], "filled_by": []})

    holders = [held_by("c" * 64), held_by("d" * 64)]
    here.finish(runner, *delivered(template.model_copy(update={"holders": holders})))
    world.end("who")
    mine, foreign = world.read("who")["status"]["results"][0]["topHolders"]
    assert (mine["namespace"], mine["pod"], mine["container"]) == ("default", "mine", "app")
    assert foreign["pod"] == ""
    assert foreign["unownedReason"].startswith("unattributed")
    world.cluster.kubectl("delete", "-n", "default", "pods", "--all", "--force", "--grace-period=0")


def test_nothing_of_kopf_is_left_on_any_object(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("clean", "node-a")
    runner = node.runner()
    node.run(runner)
    eventually(lambda: world.condition("clean")[1] == "Running")
    pod = pod_of(world, runner)
    node.finish(runner, *delivered(evidence_of("node-a", run_id(pod))))
    world.end("clean")
    for meta in (world.read("clean")["metadata"], pod["metadata"]):
        assert "finalizers" not in meta
        assert "kopf" not in json.dumps(meta)
    assert "annotations" not in world.read("clean")["metadata"]


@pytest.mark.fault("terminal escapes and kernel addresses in a document", reason="Completed")
def test_what_a_hostile_node_says_is_published_without_teeth(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("hostile", "node-a")
    runner = node.runner()
    node.run(runner)
    template = evidence_of("node-a", run_id(pod_of(world, runner)))
    owner = template.holders[0].owners[0].model_copy(update={"comm": "\x1b[2Jsh", "command_line": "ffff888012345678"})
    holders = [template.holders[0].model_copy(update={"owners": [owner]})]
    node.finish(runner, *delivered(template.model_copy(update={"holders": holders, "notes": ["a\nb\x07\u202e"]})))
    world.end("hostile")
    everything = world.cluster.kubectl("get", "memdiag,memdiagreport", "-o", "json")
    assert not re.search(r"\\u00[01]|\\u007f|\\u202e|\x1b|ffff888012345678", everything)
    assert "[2Jsh" in everything


# --- faults -----------------------------------------------------------------------------------------------------------


def cut_log(node: HollowNode, runner: str, run: str) -> None:
    message, log = delivered(evidence_of(node.name, run))
    node.run(runner)
    node.finish(runner, message, log[:3000])


def missing_log(node: HollowNode, runner: str, run: str) -> None:
    message, _ = delivered(evidence_of(node.name, run))
    node.run(runner)
    ended = container({"terminated": {"exitCode": 0, "message": message, "finishedAt": now()}})
    node.say(runner, {"phase": "Succeeded", **ended})


def forged_node(node: HollowNode, runner: str, run: str) -> None:
    node.run(runner)
    node.finish(runner, *delivered(evidence_of("another-node", run)))


def forged_run(node: HollowNode, runner: str, _run: str) -> None:
    node.run(runner)
    node.finish(runner, *delivered(evidence_of(node.name, "another-run")))


def unsupported(node: HollowNode, runner: str, run: str) -> None:
    message = TerminationMessage(run_id=run, error=RunnerError.KERNEL_UNSUPPORTED, error_message="no BTF")
    node.run(runner)
    node.finish(runner, message.model_dump_json(by_alias=True, exclude_none=True), b"", exit_code=3)


def out_of_memory(node: HollowNode, runner: str, _run: str) -> None:
    node.run(runner)
    node.finish(runner, "", b"", exit_code=137, reason="OOMKilled")


def crash(node: HollowNode, runner: str, _run: str) -> None:
    node.run(runner)
    node.finish(runner, "", b"Segmentation fault\n", exit_code=139)


def evicted(node: HollowNode, runner: str, _run: str) -> None:
    node.run(runner)
    node.say(runner, {"phase": "Failed", "reason": "Evicted", "message": "low on memory", "containerStatuses": []})


def no_image(node: HollowNode, runner: str, _run: str) -> None:
    node.bind(runner)
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    node.say(runner, {"phase": "Pending", **container(waiting)})


def unfit(node: HollowNode, runner: str, _run: str) -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "Insufficient memory",
        "lastTransitionTime": now(),
    }
    node.say(runner, {"phase": "Pending", "conditions": [condition]})


def node_removed(node: HollowNode, runner: str, _run: str) -> None:
    node.run(runner)
    eventually(lambda: node.cluster.kubectl("get", "memdiag", "-o", "jsonpath={..reason}").find("Running") >= 0)
    node.leave()


def pod_deleted(node: HollowNode, runner: str, _run: str) -> None:
    node.run(runner)
    eventually(lambda: node.cluster.kubectl("get", "memdiag", "-o", "jsonpath={..reason}").find("Running") >= 0)
    node.cluster.kubectl("-n", RUNNERS, "delete", "pod", runner, "--force", "--grace-period=0")


FAULTS: dict[str, tuple[Callable[[HollowNode, str, str], None], str, str]] = {
    "cut log": (cut_log, "ResultInvalid", "the log is cut off"),
    "missing log": (missing_log, "ResultInvalid", "(not verified) says PinnedByUnreadSocket"),
    "a document of another node": (forged_node, "ResultInvalid", "is about node 'another-node'"),
    "a document of another run": (forged_run, "ResultInvalid", "is from run 'another-run'"),
    "kernel without BTF": (unsupported, "KernelUnsupported", "no BTF"),
    "out of memory": (out_of_memory, "RunnerOOMKilled", "raise runner.memory"),
    "crash": (crash, "RunnerFailed", "(exit code 139): Segmentation fault"),
    "evicted": (evicted, "RunnerEvicted", "low on memory"),
    "no image": (no_image, "ImagePull", "Check runner.image"),
    "unschedulable": (unfit, "Unschedulable", "Insufficient memory"),
    "node removed": (node_removed, "NodeLost", "was removed"),
    "pod deleted": (pod_deleted, "RunnerEvicted", "by someone other than the operator"),
}


@pytest.mark.parametrize(
    ("fault", "reason", "said"),
    [pytest.param(*row, marks=pytest.mark.fault(name, reason=row[1]), id=name) for name, row in FAULTS.items()],
)
def test_a_fault_ends_the_run_with_its_reason(
    world: World,
    fault: Callable[[HollowNode, str, str], None],
    reason: str,
    said: str,
    record_property: Callable[[str, object], None],
) -> None:
    node = world.node("node-a")
    world.diagnose("fault", "node-a")
    runner = node.runner()
    fault(node, runner, run_id(pod_of(world, runner)))
    status, found, message = world.end("fault")
    record_property("seen", found)
    assert (status, found) == ("False", reason)
    assert said in message
    assert world.condition("fault", "Stalled")[:2] == ("True", reason)
    eventually(lambda: reason in world.events("fault"))


def test_an_unknown_node_is_said_at_once(world: World) -> None:
    world.diagnose("nowhere", "no-such-node")
    assert world.end("nowhere")[:2] == ("False", "NodeNotFound")
    assert world.pods() == []


@pytest.mark.fault("pod refused by Pod Security", reason="AdmissionDenied")
def test_a_refusal_of_the_api_server_is_passed_on(world: World) -> None:
    label = "pod-security.kubernetes.io/enforce"
    world.cluster.kubectl("label", "--overwrite", "namespace", RUNNERS, f"{label}=restricted")
    try:
        world.node("node-a")
        world.diagnose("refused", "node-a")
        status, reason, message = world.end("refused")
        assert (status, reason) == ("False", "AdmissionDenied")
        assert 'violates PodSecurity "restricted' in message
    finally:
        world.cluster.kubectl("label", "--overwrite", "namespace", RUNNERS, f"{label}=privileged")


@pytest.mark.fault("pod's name taken by someone else", reason="AdmissionDenied")
def test_a_pod_of_the_same_name_that_is_someone_elses_is_not_adopted(world: World) -> None:
    world.node("node-a")
    world.diagnose("squatted", "node-a", suspend=True)
    eventually(lambda: world.condition("squatted")[1] == "Suspended")
    uid = world.read("squatted")["metadata"]["uid"]
    name = naming.child_name("squatted", uid, naming.run_id(uid, "", None), "node-a")
    pod = runner_manifest(name)
    world.cluster.kubectl("-n", RUNNERS, "create", f"--as={OPERATOR}", "-f", "-", input=json.dumps(pod))
    world.change("squatted", suspend=False)
    status, reason, message = world.end("squatted")
    assert (status, reason) == ("False", "AdmissionDenied")
    assert "has another owner" in message


@pytest.mark.fault("a webhook changes the runner's pod", reason="AdmissionDenied")
def test_a_runner_that_a_webhook_has_changed_is_removed_and_the_change_is_reported(
    world: World, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # The admission policy lets this in, so that only the operator can notice it.
    patch = [{"op": "add", "path": "/spec/volumes/-", "value": {"name": "injected", "emptyDir": {}}}]
    world.node("node-a")
    with injector(world.cluster, tmp_path / "patch.json", patch):
        world.diagnose("injected", "node-a")
        status, reason, message = world.end("injected")
    record_property("seen", reason)
    assert (status, reason) == ("False", "AdmissionDenied")
    assert "volume injected was added" in message
    assert "exempt the namespace memdiag-runners" in message
    eventually(lambda: all("deletionTimestamp" in pod["metadata"] for pod in world.pods()))


def test_what_the_policy_refuses_after_a_webhook_says_so_too(world: World, tmp_path: Path) -> None:
    value = [{"name": "LD_PRELOAD", "value": "/x.so"}]
    world.node("node-a")
    with injector(
        world.cluster, tmp_path / "patch.json", [{"op": "add", "path": "/spec/containers/0/env", "value": value}]
    ):
        world.diagnose("injected", "node-a")
        status, reason, message = world.end("injected")
    assert (status, reason) == ("False", "AdmissionDenied")
    assert "without variables, hooks or probes" in message
    assert "exempt the namespace memdiag-runners" in message


def orphan(world: World, pod: str) -> None:
    """As the garbage collector does for `--cascade=orphan`: this API server has none."""
    patch = json.dumps({"metadata": {"ownerReferences": None}})
    world.cluster.kubectl("-n", RUNNERS, "patch", "pod", pod, "--type=merge", "-p", patch)
    for report in json.loads(world.cluster.kubectl("get", "memdiagreport", "-o", "json"))["items"]:
        world.cluster.kubectl("patch", "memdiagreport", report["metadata"]["name"], "--type=merge", "-p", patch)


def test_a_diagnosis_that_leaves_its_runner_behind_leaves_nothing_running(world: World) -> None:
    done, busy = world.node("done"), world.node("busy")
    world.ask("orphaned", {"nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}}, "maxNodes": 2})
    world.run(done)
    eventually(lambda: world.reports("orphaned"))
    runner = busy.runner()
    busy.run(runner)
    orphan(world, runner)
    world.cluster.kubectl("delete", "memdiag", "orphaned")
    eventually(lambda: all("deletionTimestamp" in pod["metadata"] for pod in world.pods()))
    eventually(lambda: world.reports("orphaned") == [])
    assert "internal error" not in world.operator.log


# --- what people change -----------------------------------------------------------------------------------------------


def test_a_request_runs_a_finished_diagnosis_again(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("again", "node-a")
    first = node.runner()
    node.run(first)
    node.finish(first, *delivered(evidence_of("node-a", run_id(pod_of(world, first)))))
    world.end("again")
    world.cluster.kubectl("annotate", "memdiag", "again", "memdiag.dev/requestedAt=now")
    second = node.runner()
    assert second != first
    node.run(second)
    node.finish(second, *delivered(evidence_of("node-a", run_id(pod_of(world, second)))))
    eventually(lambda: len(world.reports("again")) == 2)
    assert world.end("again")[:2] == ("True", "Completed")
    assert world.read("again")["status"]["lastHandledRequest"] == "now"
    assert [one["name"] for one in world.read("again")["status"]["reportRefs"]] == [second]


@pytest.mark.fault("suspended in the middle", reason="Suspended")
def test_suspending_ends_the_runner_and_resuming_starts_another(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("paused", "node-a")
    first = node.runner()
    node.run(first)
    world.change("paused", suspend=True)
    eventually(lambda: "deletionTimestamp" in pod_of(world, first)["metadata"])
    assert world.condition("paused")[:2] == ("Unknown", "Suspended")
    world.cluster.kubectl("-n", RUNNERS, "delete", "pod", first, "--force", "--grace-period=0")
    world.change("paused", suspend=False)
    assert node.runner() != first


@pytest.mark.fault("terminated in the middle", reason="Terminated")
def test_terminating_asks_the_runner_to_end_and_keeps_what_it_had(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("cut-short", "node-a")
    runner = node.runner()
    node.run(runner)
    eventually(lambda: world.condition("cut-short")[1] == "Running")
    world.change("cut-short", terminate=True)
    eventually(lambda: pod_of(world, runner)["spec"]["activeDeadlineSeconds"] == 1)
    message, log = delivered(evidence_of("node-a", run_id(pod_of(world, runner))))
    (node.logs / runner).write_bytes(log)
    state = {"terminated": {"exitCode": 0, "message": message, "finishedAt": now()}}
    node.say(runner, {"phase": "Failed", "reason": "DeadlineExceeded", **container(state)})
    assert world.end("cut-short")[:2] == ("False", "Terminated")
    assert world.read("cut-short")["status"]["results"][0]["verdict"]["kind"] == "PinnedByUnreadSocket"
    assert len(world.reports("cut-short")) == 1


@pytest.mark.fault("no result until the deadline", reason="DeadlineExceeded")
def test_at_the_deadline_the_runner_is_asked_to_end_and_what_it_had_is_kept(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    node = world.node("node-a")
    world.diagnose("late", "node-a", activeDeadlineSeconds=30)
    runner = node.runner()
    node.run(runner)
    eventually(lambda: pod_of(world, runner)["spec"]["activeDeadlineSeconds"] == 1, timeout_seconds=60)
    message, log = delivered(evidence_of("node-a", run_id(pod_of(world, runner))))
    (node.logs / runner).write_bytes(log)
    state = {"terminated": {"exitCode": 0, "message": message, "finishedAt": now()}}
    node.say(runner, {"phase": "Failed", "reason": "DeadlineExceeded", **container(state)})
    status, reason, reported = world.end("late")
    record_property("seen", reason)
    assert (status, reason) == ("False", "DeadlineExceeded")
    assert "is kept" in reported
    assert world.condition("late", "LeakDetected")[:2] == ("True", "PinnedByUnreadSocket")
    assert len(world.reports("late")) == 1
    eventually(lambda: world.pods() == [])


def test_a_time_to_live_deletes_the_diagnosis(world: World) -> None:
    world.diagnose("brief", "no-such-node", ttlSecondsAfterFinished=0)
    eventually(lambda: "brief" not in world.cluster.kubectl("get", "memdiag", "-o", "name"))


@pytest.mark.fault("none: a leak, and failOn is LeakDetected", reason="LeakFound")
def test_a_gate_fails_on_a_leak(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("gate", "node-a", failOn="LeakDetected")
    runner = node.runner()
    node.run(runner)
    node.finish(runner, *delivered(evidence_of("node-a", run_id(pod_of(world, runner)))))
    assert world.end("gate")[:2] == ("False", "LeakFound")


@pytest.mark.fault("none: a leak is not excluded, and failOn is NotProvenClean", reason="LeakNotExcluded")
def test_a_strict_gate_passes_only_a_node_that_is_shown_to_be_clean(world: World) -> None:
    node = world.node("node-a")
    for name, change, succeeded, leak in (
        ("clean", clean, ("True", "Completed"), ("False", "NoLeak")),
        ("suspicious", suspicious, ("False", "LeakNotExcluded"), ("Unknown", "SuspiciousMemory")),
    ):
        world.diagnose(name, node.name, failOn="NotProvenClean")
        runner = node.runner()
        node.run(runner)
        node.finish(runner, *delivered(change(evidence_of(node.name, run_id(pod_of(world, runner))))))
        assert world.end(name)[:2] == succeeded
        assert world.condition(name, "LeakDetected")[:2] == leak
        eventually(lambda: world.pods() == [])


def test_ranked_findings_are_stored_and_the_first_is_the_column(world: World) -> None:
    node = world.node("node-a")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "app", "image": "x"}]},
    }
    world.cluster.kubectl("create", "-n", "default", "-f", "-", input=json.dumps(pod))
    node.bind("web", "default")
    one = container({"running": {}})["containerStatuses"][0] | {
        "name": "app",
        "containerID": "containerd://" + "c" * 64,
    }
    node.say("web", {"phase": "Running", "containerStatuses": [one]}, "default")
    world.diagnose("ranked", node.name)
    runner = node.runner()
    node.run(runner)
    evidence = evidence_of(node.name, run_id(pod_of(world, runner)))
    node.finish(runner, *delivered(clean(evidence)))
    world.end("ranked")
    status = world.read("ranked")["status"]
    said = "default/web (container app): 8.00 GiB of anonymous memory"
    assert status["suspect"] == status["results"][0]["suspect"] == said
    (finding,) = status["results"][0]["findings"]
    assert (finding["kind"], finding["pod"], finding["freedBytes"]) == ("ProcessMemory", "web", 8 << 30)
    assert status["results"][0]["leakDetected"] == status["nodeStates"][0]["leakDetected"] == "False"
    assert said in world.cluster.kubectl("get", "memdiag", "ranked", "--no-headers")
    (report,) = world.reports("ranked")
    assert report["containers"] == [{"containerID": "c" * 64, "namespace": "default", "pod": "web", "container": "app"}]
    world.cluster.kubectl("delete", "-n", "default", "pods", "--all", "--force", "--grace-period=0")


# --- many at once, and an operator that dies --------------------------------------------------------------------------


@pytest.mark.fault("more runs than slots", reason="Pending")
def test_never_more_runners_than_slots_and_everyone_gets_a_turn(world: World) -> None:
    nodes = {f"node-{number}": world.node(f"node-{number}") for number in range(5)}
    for name in nodes:
        world.diagnose(f"of-{name}", name)
    most, done = 0, 0
    deadline = time.monotonic() + 60
    while done < len(nodes):
        assert time.monotonic() < deadline
        active = [pod for pod in world.pods() if "deletionTimestamp" not in pod["metadata"]]
        most = max(most, len(active))
        for pod in active:
            node = nodes[pod["metadata"]["annotations"]["memdiag.dev/node"]]
            if "nodeName" not in pod["spec"]:
                node.run(pod["metadata"]["name"])
                node.finish(pod["metadata"]["name"], *delivered(evidence_of(node.name, run_id(pod))))
        done = sum(1 for name in nodes if world.condition(f"of-{name}")[0] == "True")
    assert most == 3
    assert world.operator.memory_bytes() < 150 << 20


@pytest.fixture
def own_operator(installed: TestCluster, shared: World, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Starts operators of the test's own; the shared one keeps out of the way."""
    shared.operator.stop()
    with ExitStack() as stack:
        yield lambda: stack.enter_context(running_operator(installed, tmp_path, CONFIG))
    sweep_away(installed)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=pytest.mark.fault(f"operator killed {step}", reason="Completed"), id=step)
        for step in ("when its runner is created", "while its runner works", "when its runner has ended")
    ],
)
def test_a_killed_operator_loses_nothing(shared: World, own_operator: Callable[[], OperatorProcess], step: str) -> None:
    first = own_operator()
    node = shared.node("node-a")
    shared.diagnose("survivor", "node-a")
    runner = node.runner()
    result = delivered(evidence_of("node-a", run_id(pod_of(shared, runner))))
    if step == "when its runner is created":
        first.kill()
        node.run(runner)
    else:
        node.run(runner)
        eventually(lambda: shared.condition("survivor")[1] == "Running")
        first.kill()
    if step == "when its runner has ended":
        node.finish(runner, *result)
    own_operator()
    if step != "when its runner has ended":
        eventually(lambda: shared.condition("survivor")[1] == "Running")
        node.finish(runner, *result)
    assert shared.end("survivor")[:2] == ("True", "Completed")
    eventually(lambda: shared.pods() == [])
    assert [report["podName"] for report in shared.reports("survivor")] == [runner]
    shared.await_events("survivor", "Completed", "PinnedByUnreadSocket", "Running", "Started")


def has_swept(operator: OperatorProcess) -> bool:
    found = re.search(r"^memdiag_last_sweep_timestamp_seconds (\S+)$", operator.scrape(), re.MULTILINE)
    return found is not None and float(found[1]) > 0


def test_health_reports_the_age_of_the_last_sweep_and_the_end_is_clean(
    shared: World, own_operator: Callable[[], OperatorProcess]
) -> None:
    operator = own_operator()
    assert 0 <= operator.health()["lastSweepAgeSeconds"] <= 10
    # It answers before kopf has found its resources; ended in the middle of that, kopf logs the closed connection as an
    # error. After the first sweep only a watch brings a new diagnosis: once it is dealt with, all are open.
    eventually(lambda: has_swept(operator))
    shared.diagnose("nowhere", "no-such-node")
    assert shared.end("nowhere")[1] == "NodeNotFound"
    assert operator.stop() == 0
    for line in operator.log.splitlines():
        assert json.loads(line)["severity"] in ("info", "warn"), line
