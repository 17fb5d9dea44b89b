"""What webhooks change in a runner pod is found, and what the API server itself fills in is not taken for that."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from memdiag_operator.decide.mutation import mutations
from support.runner_manifest import runner_manifest


def created() -> dict[str, Any]:
    """The pod as an API server without webhooks answers: with its defaults and tolerations."""
    pod = copy.deepcopy(runner_manifest())
    spec = pod["spec"]
    spec |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "priority": 0, "securityContext": {}}
    spec["tolerations"].append({"key": "node.kubernetes.io/not-ready", "tolerationSeconds": 300})
    spec["containers"][0]["resources"]["limits"]["cpu"] = "0.5"
    spec["containers"][0]["imagePullPolicy"] = "Always"
    return pod


def container(pod: dict[str, Any]) -> dict[str, Any]:
    one: dict[str, Any] = pod["spec"]["containers"][0]
    return one


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a sidecar": (
        lambda pod: pod["spec"]["containers"].append({"name": "istio-proxy"}),
        "container istio-proxy was added",
    ),
    "an init container": (
        lambda pod: pod["spec"].update(initContainers=[{"name": "linkerd-init"}]),
        "init container linkerd-init was added",
    ),
    "a volume": (lambda pod: pod["spec"]["volumes"].append({"name": "dynatrace"}), "volume dynatrace was added"),
    "a variable": (
        lambda pod: container(pod).update(env=[{"name": "LD_PRELOAD", "value": "/x.so"}]),
        "env was added (LD_PRELOAD)",
    ),
    "a mount": (
        lambda pod: container(pod)["volumeMounts"].append({"name": "x", "mountPath": "/vault"}),
        "a mount at /vault was added",
    ),
    "another image": (
        lambda pod: container(pod).update(image="mirror/node-runner:dev"),
        "image is mirror/node-runner:dev instead of memdiag.dev/node-runner:dev",
    ),
    "another command": (lambda pod: container(pod).update(command=["sh"]), "command is ['sh'] instead of"),
    "other capabilities": (
        lambda pod: container(pod)["securityContext"]["capabilities"].update(add=[]),
        "securityContext was changed",
    ),
    "a sandboxed runtime": (
        lambda pod: pod["spec"].update(runtimeClassName="gvisor"),
        "runtimeClassName is gvisor instead of not set",
    ),
    "no sight of the host's processes": (lambda pod: pod["spec"].pop("hostPID"), "hostPID is not set instead of True"),
    "a token": (
        lambda pod: pod["spec"].update(automountServiceAccountToken=True),
        "automountServiceAccountToken was changed",
    ),
    "a probe": (lambda pod: container(pod).update(livenessProbe={"exec": {}}), "livenessProbe was added"),
}


def test_what_the_api_server_fills_in_is_not_a_change() -> None:
    assert mutations(runner_manifest(), created()) == ""


@pytest.mark.parametrize(("change", "reported"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_reported(change: Callable[[dict[str, Any]], Any], reported: str) -> None:
    pod = created()
    change(pod)
    assert reported in mutations(runner_manifest(), pod)


def test_many_changes_are_counted() -> None:
    pod = created()
    pod["spec"]["volumes"] += [{"name": f"volume-{number}"} for number in range(9)]
    assert mutations(runner_manifest(), pod).endswith("volume volume-3 was added and 5 more")


def test_a_variable_beside_the_one_that_was_sent_is_a_change() -> None:
    sent = runner_manifest(container={"env": [{"name": "MEMDIAG_HISTORY", "value": "[]"}]})
    assert mutations(sent, sent) == ""
    changed = copy.deepcopy(sent)
    container(changed)["env"].append({"name": "LD_PRELOAD", "value": "/x.so"})
    assert mutations(sent, changed) == "env was added (LD_PRELOAD)"
    container(changed)["env"] = [{"name": "MEMDIAG_HISTORY", "value": "[1]"}]
    assert mutations(sent, changed) == "env was added (MEMDIAG_HISTORY)"
