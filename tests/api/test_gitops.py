"""What Argo CD, Flux and a pipeline's gate make of a diagnosis, on live objects in every phase of a run."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from memdiag_api.evidence import Verdict, VerdictKind
from support.cluster import TestCluster
from support.evidence import clean, suspicious
from support.gitops import FOLDER, HEALTH, RERUN, argo_health, argo_rerun, flux_status
from support.hollow_node import HollowNode, eventually
from support.kubernetes_objects import delivered
from support.operator_process import kubeconfig_with_token
from support.operator_world import World, evidence_of, pod_of, run_id, sweep_away
from support.phases import JUDGEMENTS, recording

NO_LEAK = Verdict(kind=VerdictKind.NO_LEAK, confidence="High", sentence="Nothing grows, nothing is stuck.")
RECORD = "MEMDIAG_RECORD_PHASES"


def as_if(world: World, *command: str, document: str | None = None) -> dict[str, Any]:
    """The object as the API server would store it, before the operator can have seen it."""
    text = world.cluster.kubectl(*command, "--dry-run=server", "-o", "json", input=document)
    item: dict[str, Any] = json.loads(text)
    return item


def rerun_asked(world: World, name: str) -> dict[str, Any]:
    return as_if(world, "annotate", "--overwrite", "memdiag", name, "memdiag.dev/requestedAt=in a moment")


@pytest.fixture(scope="module")
def phases(shared: World) -> dict[str, dict[str, Any]]:
    """A live object of every phase, by the name of the phase."""
    world = shared
    seen: dict[str, dict[str, Any]] = {}
    document = (FOLDER / "argocd/post-sync-gate.yaml").read_text()
    seen["not seen by the operator"] = as_if(world, "create", "-f", "-", document=document)

    node = world.node("node-a")
    world.diagnose("healthy", node.name)
    runner = node.runner()
    eventually(lambda: world.condition("healthy")[1] == "Pending")
    seen["waiting"] = world.read("healthy")
    node.run(runner)
    eventually(lambda: world.condition("healthy")[1] == "Running")
    seen["running"] = world.read("healthy")
    world.deliver(node, runner, verdict=NO_LEAK)
    world.end("healthy")
    seen["done, no leak"] = world.read("healthy")
    seen["done, spec changed since"] = as_if(
        world, "patch", "memdiag", "healthy", "--type=merge", "-p", '{"spec": {"ttlSecondsAfterFinished": 86400}}'
    )
    seen["done, rerun asked"] = rerun_asked(world, "healthy")
    world.change("healthy", suspend=True)
    eventually(lambda: world.read("healthy")["status"]["observedGeneration"] == 2)
    seen["done, suspended"] = world.read("healthy")
    seen["suspended, rerun asked"] = rerun_asked(world, "healthy")
    world.change("healthy", suspend=False)
    world.cluster.kubectl("annotate", "memdiag", "healthy", "memdiag.dev/requestedAt=2026-01-01")
    runner = node.runner()
    eventually(lambda: world.condition("healthy")[1] == "Pending")
    seen["rerun begun"] = world.read("healthy")
    node.run(runner)
    world.deliver(node, runner, verdict=NO_LEAK)
    eventually(lambda: world.condition("healthy")[0] == "True")
    seen["rerun done"] = world.read("healthy")

    for name, fail_on in (("leak found", "Never"), ("gate failed", "LeakDetected")):
        word = name.replace(" ", "-")
        world.diagnose(word, node.name, failOn=fail_on)
        world.run(node)
        world.end(word)
        seen[name] = world.read(word)

    world.diagnose("nowhere", "no-such-node")
    world.end("nowhere")
    seen["failed"] = world.read("nowhere")
    world.diagnose("paused", node.name, suspend=True)
    eventually(lambda: world.condition("paused")[1] == "Suspended")
    seen["suspended"] = world.read("paused")
    world.diagnose("ended", node.name, terminate=True)
    world.end("ended")
    seen["terminated"] = world.read("ended")
    sweep_away(world.cluster)
    if os.environ.get(RECORD):
        _record(seen)
    return seen


def _record(seen: dict[str, dict[str, Any]]) -> None:
    for name, item in seen.items():
        text = json.dumps(item, indent=1, ensure_ascii=False, sort_keys=True)
        recording(name).write_text(text + "\n")


def test_every_phase_is_judged(phases: dict[str, dict[str, Any]]) -> None:
    assert phases.keys() == JUDGEMENTS.keys()


@pytest.mark.parametrize("phase", JUDGEMENTS)
def test_argo_cd_and_flux_judge_live_objects(phases: dict[str, dict[str, Any]], phase: str) -> None:
    expected = JUDGEMENTS[phase]
    status, message = argo_health(phases[phase])
    assert (status, flux_status(phases[phase])) == (expected.argo, expected.flux)
    assert expected.message in message


# --- Argo CD ----------------------------------------------------------------------------------------------------------


def test_the_config_map_for_argo_cd_carries_the_scripts() -> None:
    data = yaml.safe_load((FOLDER / "argocd/argocd-cm.yaml").read_text())["data"]
    assert data.pop("resource.customizations.health.memdiag.dev_MemoryDiagnosis") == HEALTH
    actions = yaml.safe_load(data.pop("resource.customizations.actions.memdiag.dev_MemoryDiagnosis"))
    assert data == {}
    (rerun,) = actions["definitions"]
    assert rerun == {"name": "rerun", "action.lua": RERUN}


def test_argo_cds_action_runs_it_again(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("again", node.name)
    world.run(node)
    world.end("again")
    world.cluster.kubectl("replace", "-f", "-", input=json.dumps(argo_rerun(world.read("again"))))
    world.run(node)
    eventually(lambda: len(world.reports("again")) == 2)
    assert world.end("again")[:2] == ("True", "Completed")


def test_git_may_put_its_older_request_back_after_a_rerun_by_hand(world: World) -> None:
    """Argo CD's self-healing and Flux do, when somebody has used the action "rerun" or `kubectl annotate`."""
    node = world.node("node-a")
    manifest = {
        "apiVersion": "memdiag.dev/v1alpha1",
        "kind": "MemoryDiagnosis",
        "metadata": {"name": "again", "annotations": {"memdiag.dev/requestedAt": "in Git"}},
        "spec": {"target": {"nodeName": node.name}, "duration": "5s"},
    }

    def sync() -> None:
        options = ("--server-side", "--force-conflicts", "--field-manager=gitops")
        world.cluster.kubectl("apply", *options, "-f", "-", input=json.dumps(manifest))

    sync()
    world.run(node)
    world.end("again")
    world.cluster.kubectl("annotate", "--overwrite", "memdiag", "again", "memdiag.dev/requestedAt=by hand")
    world.run(node)
    eventually(lambda: len(world.reports("again")) == 2)
    world.end("again")
    run = world.read("again")["status"]["runID"]
    sync()
    world.change("again", ttlSecondsAfterFinished=3600)  # what the operator has seen of it, it has seen of the request
    eventually(lambda: world.read("again")["status"]["observedGeneration"] == 2)
    restored = world.read("again")
    assert restored["metadata"]["annotations"] == {"memdiag.dev/requestedAt": "in Git"}
    assert restored["status"]["runID"] == run
    assert restored["status"]["handledRequests"] == ["by hand", "in Git"]
    assert (argo_health(restored)[0], flux_status(restored)) == ("Healthy", "Current")
    assert world.end("again")[:2] == ("True", "Completed")


def test_a_sync_replaces_the_hook_and_each_one_is_a_run_of_its_own(world: World) -> None:
    """What Argo CD does by BeforeHookCreation, its hook finalizer included."""
    node = world.node("worker-3")
    hook = yaml.safe_load((FOLDER / "argocd/post-sync-gate.yaml").read_text())
    hook["metadata"]["finalizers"] = ["argocd.argoproj.io/hook-finalizer"]
    hook["spec"]["duration"] = "5s"
    for verdict, health in ((NO_LEAK, "Healthy"), (None, "Degraded")):
        world.cluster.kubectl("create", "-f", "-", input=json.dumps(hook))
        world.run(node, **({"verdict": verdict} if verdict else {}))
        world.end("after-deploy")
        assert argo_health(world.read("after-deploy"))[0] == health
        eventually(lambda: world.pods() == [])
        world.cluster.kubectl("delete", "memdiag", "after-deploy", "--wait=false")
        world.cluster.kubectl(
            "patch", "memdiag", "after-deploy", "--type=merge", "-p", '{"metadata": {"finalizers": null}}'
        )
    assert "after-deploy" not in world.cluster.kubectl("get", "memdiag", "-o", "name")


# --- the gate as a Job ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(shared: World) -> TestCluster:
    """The gate's files applied as docs/gitops.md says."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "pipelines", "labels": restricted}}
    shared.cluster.kubectl("create", "-f", "-", input=json.dumps(namespace))
    shared.cluster.kubectl("apply", "-k", str(FOLDER / "job"))
    return shared.cluster


def run_gate(cluster: TestCluster, folder: Path, request: str) -> "subprocess.Popen[str]":
    """The script that the Job runs, as the Job's service account."""
    (folder / "bin").mkdir(exist_ok=True)
    link = folder / "bin/kubectl"
    if not link.exists():
        link.symlink_to(cluster.kubectl_binary)
    manifest = yaml.safe_load((FOLDER / "job/memdiag.yaml").read_text())
    manifest["spec"]["duration"] = "5s"
    (folder / "memdiag.yaml").write_text(yaml.safe_dump(manifest))
    return subprocess.Popen(
        ["sh", FOLDER / "job/gate.sh"],
        env={
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "KUBECONFIG": str(kubeconfig_with_token(cluster, "pipelines", "memdiag-gate", folder)),
            "MANIFEST": str(folder / "memdiag.yaml"),
            "REQUEST": request,
            "START_TIMEOUT": "60s",
            "RUN_TIMEOUT": "60s",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_gate_passes_without_a_leak_fails_with_one_and_reruns_each_time(
    world: World, pipeline: TestCluster, tmp_path: Path
) -> None:
    node: HollowNode = world.node("worker-3")
    for request, verdict, status, said in (
        ("deploy-1", NO_LEAK, 0, "Completed: "),
        ("deploy-2", None, 1, "LeakFound: On node worker-3"),
        ("deploy-3", NO_LEAK, 0, "Completed: "),
    ):
        gate = run_gate(pipeline, tmp_path, request)
        world.run(node, **({"verdict": verdict} if verdict else {}))
        output, _ = gate.communicate(timeout=90)
        assert gate.returncode == status, output
        assert said in output
        assert world.read("after-deploy")["status"]["lastHandledRequest"] == request
        eventually(lambda: world.pods() == [])
    assert len(world.reports("after-deploy")) == 3


WAITS = {
    "condition=Succeeded": {"leak": 1, "suspicious": 1, "clean": 0},
    "condition=LeakDetected": {"leak": 0, "suspicious": 1, "clean": 1},
    "condition=LeakDetected=False": {"leak": 1, "suspicious": 1, "clean": 0},
    "jsonpath={.status.results[0].leakDetected}=False": {"leak": 1, "suspicious": 1, "clean": 0},
    "condition=Reconciling=False": {"leak": 0, "suspicious": 0, "clean": 0},
}
"""What `kubectl wait` says about ended runs with failOn: NotProvenClean, as documented."""


def test_kubectl_wait_tells_answers_apart_by_its_exit_code(world: World) -> None:
    node = world.node("worker-3")
    for name, change in (("leak", None), ("suspicious", suspicious), ("clean", clean)):
        world.diagnose(name, node.name, failOn="NotProvenClean")
        runner = node.runner()
        node.run(runner)
        evidence = evidence_of(node.name, run_id(pod_of(world, runner)))
        node.finish(runner, *delivered(change(evidence) if change else evidence))
        world.end(name)
        eventually(lambda: world.pods() == [])
    seen = {
        condition: {
            name: world.cluster.try_kubectl("wait", f"memdiag/{name}", f"--for={condition}", "--timeout=0s").returncode
            for name in codes
        }
        for condition, codes in WAITS.items()
    }
    assert seen == WAITS
    gone = world.cluster.try_kubectl("wait", "memdiag/nobody", "--for=condition=Succeeded", "--timeout=0s")
    assert gone.returncode == 1
    assert [argo_health(world.read(name))[0] for name in WAITS["condition=Succeeded"]] == [
        "Degraded",
        "Degraded",
        "Healthy",
    ]
    assert [flux_status(world.read(name)) for name in WAITS["condition=Succeeded"]] == ["Failed", "Failed", "Current"]


def test_the_gates_pod_is_restricted(pipeline: TestCluster) -> None:
    job = json.loads(pipeline.kubectl("-n", "pipelines", "get", "job", "memdiag-gate", "-o", "json"))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "try"}, "spec": job["spec"]["template"]["spec"]}
    pipeline.kubectl("-n", "pipelines", "create", "--dry-run=server", "-f", "-", input=json.dumps(pod))


# --- examples ---------------------------------------------------------------------------------------------------------


def test_every_example_of_a_diagnosis_is_accepted(installed: TestCluster) -> None:
    found = [
        document
        for path in sorted(FOLDER.rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] == "MemoryDiagnosis"
    ]
    assert len(found) == 3
    for document in found:
        installed.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(document))


def test_a_changed_spec_needs_a_new_object_which_flux_creates_when_annotated(world: World) -> None:
    """Flux, with the annotation, deletes and recreates what cannot be changed according to the API server."""
    document = yaml.safe_load((FOLDER / "memdiag.yaml").read_text())
    assert document["metadata"]["annotations"]["kustomize.toolkit.fluxcd.io/force"] == "enabled"
    world.cluster.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(document))
    document["spec"]["duration"] = "90s"
    refused = world.cluster.try_kubectl("apply", "--server-side", "-f", "-", input=json.dumps(document))
    assert refused.returncode != 0
    assert "duration cannot be changed" in refused.stderr
