"""A running operator with a real API server, and nodes controlled by the test."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memdiag_api.evidence import Evidence
from support.cluster import TestCluster
from support.evidence import evidence_with
from support.hollow_node import RUNNERS, HollowNode, eventually, log_endpoint
from support.kubernetes_objects import delivered
from support.operator_process import OperatorProcess, running_operator

IMAGE = "memdiag.dev/node-runner:dev"
CONFIG: dict[str, Any] = {
    "runner": {"image": IMAGE, "allowTags": True},
    "sweep": {"activeSeconds": 1, "idleSeconds": 1},
    "grace": {
        "unschedulableSeconds": 1,
        "imagePullSeconds": 1,
        "containerStartSeconds": 30,  # longer than a test takes from a pod's binding to its next state
        "nodeNotReadySeconds": 1,
        "logSeconds": 2,
    },
}


@dataclass
class World:
    """A cluster with a running operator, and nodes controlled by the test."""

    cluster: TestCluster
    operator: OperatorProcess
    logs: Path
    address: str
    names: set[str] = field(default_factory=set)

    def node(self, name: str, **status: Any) -> HollowNode:
        """Add a node."""
        node = HollowNode(self.cluster, name, self.logs)
        node.register(self.address, **status)
        return node

    def diagnose(self, name: str, node: str, **spec: Any) -> None:
        """Create a diagnosis of a node."""
        self.ask(name, {"nodeName": node}, **spec)

    def ask(self, name: str, target: dict[str, Any], **spec: Any) -> None:
        """Create a diagnosis of the target's nodes."""
        manifest = {
            "apiVersion": "memdiag.dev/v1alpha1",
            "kind": "MemoryDiagnosis",
            "metadata": {"name": name},
            "spec": {"target": target, "duration": "5s", **spec},
        }
        self.cluster.kubectl("create", "-f", "-", input=json.dumps(manifest))

    def change(self, name: str, **spec: Any) -> None:
        """Change a diagnosis's spec."""
        self.cluster.kubectl("patch", "memdiag", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def read(self, name: str) -> dict[str, Any]:
        """A diagnosis."""
        document: dict[str, Any] = json.loads(self.cluster.kubectl("get", "memdiag", name, "-o", "json"))
        return document

    def condition(self, name: str, kind: str = "Succeeded") -> tuple[str, str, str]:
        """Status, reason and message of a condition."""
        conditions = self.read(name)["status"].get("conditions", [])
        found = next((one for one in conditions if one["type"] == kind), {"status": "", "reason": "", "message": ""})
        return found["status"], found["reason"], found["message"]

    def end(self, name: str) -> tuple[str, str, str]:
        """Wait for the end of a run; the condition Succeeded."""
        eventually(lambda: self.condition(name, "Reconciling")[0] == "False")
        return self.condition(name)

    def reports(self, name: str) -> list[dict[str, Any]]:
        """The reports of a diagnosis."""
        items = json.loads(self.cluster.kubectl("get", "memdiagreport", "-o", "json"))["items"]
        return [one for one in items if one["diagnosis"] == name]

    def events(self, name: str) -> list[str]:
        """Reasons of the events on a diagnosis."""
        selector = f"involvedObject.name={name}"
        items = json.loads(self.cluster.kubectl("get", "events", "--field-selector", selector, "-o", "json"))["items"]
        return sorted(one["reason"] for one in items)

    def await_events(self, name: str, *reasons: str) -> None:
        """Wait until a diagnosis has just these events: the last are created after the status shows the end."""
        eventually(lambda: self.events(name) == sorted(reasons))

    def pods(self) -> list[dict[str, Any]]:
        """All runner pods."""
        items: list[dict[str, Any]] = json.loads(self.cluster.kubectl("-n", RUNNERS, "get", "pods", "-o", "json"))[
            "items"
        ]
        return items

    def deliver(self, node: HollowNode, runner: str, **changes: Any) -> None:
        """Let a runner end with the usual evidence, with some changes."""
        node.finish(runner, *delivered(evidence_of(node.name, run_id(pod_of(self, runner)), **changes)))

    def run(self, node: HollowNode, **changes: Any) -> str:
        """Let a node's runner start, run and end; returns its name."""
        runner = node.runner()
        node.run(runner)
        self.deliver(node, runner, **changes)
        return runner


@contextmanager
def operator_world(cluster: TestCluster, folders: pytest.TempPathFactory, **config: Any) -> Iterator[World]:
    """Start an operator for a module's tests, with these parts of its configuration changed."""
    with ExitStack() as stack:
        logs = folders.mktemp("logs")
        address = stack.enter_context(log_endpoint(cluster, logs))
        operator = stack.enter_context(running_operator(cluster, folders.mktemp("operator"), CONFIG | config))
        yield World(cluster, operator, logs, address)


def sweep_away(cluster: TestCluster) -> None:
    """Delete what a test has created, and everything that was created for it."""
    cluster.kubectl("delete", "memdiag,memdiagreport,nodes", "--all")
    cluster.kubectl("-n", RUNNERS, "delete", "pods", "--all", "--force", "--grace-period=0")
    cluster.kubectl("delete", "events", "--all")


def evidence_of(node: str, run: str, **changes: Any) -> Evidence:
    """The usual evidence, a leak, as delivered by a node's runner."""
    template = evidence_with(run_id=run)
    return template.model_copy(update={"host": template.host.model_copy(update={"node_name": node}), **changes})


def run_id(pod: dict[str, Any]) -> str:
    """The run that a runner pod is for."""
    identifier: str = pod["metadata"]["labels"]["memdiag.dev/run-id"]
    return identifier


def pod_of(world: World, name: str) -> dict[str, Any]:
    """The runner pod of that name."""
    return next(pod for pod in world.pods() if pod["metadata"]["name"] == name)
