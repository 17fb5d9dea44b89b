"""The limits of a requester: how much may be in progress at once, and how much space reports may take."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from memdiag_api.evidence import Evidence
from support.cluster import TestCluster
from support.evidence import evidence_with
from support.hollow_node import HollowNode, eventually
from support.kubernetes_objects import delivered
from support.operator_process import OperatorProcess, running_operator
from support.operator_world import CONFIG, World, pod_of, run_id

LIMITS = {"limits": {"unfinishedDiagnoses": 2, "storedReportsMebibytes": 1}}
BUDGET_BYTES = 1 << 20
HOLDERS, STACKS = 70, 30

Record = Any


@pytest.fixture(scope="module")
def operator_config() -> dict[str, Any]:
    return LIMITS


@pytest.mark.fault("more diagnoses than the operator may have under way", reason="LimitReached")
def test_more_than_the_limit_wait_and_start_in_their_order(world: World, record_property: Record) -> None:
    nodes = {name: world.node(f"node-{name}") for name in "abcd"}
    for name, node in nodes.items():
        world.diagnose(name, node.name)
        eventually(partial(has_a_reason, world, name))
    status, reason, message = world.condition("c")
    record_property("seen", reason)
    assert (status, reason) == ("Unknown", "LimitReached")
    assert "at most 2 diagnoses (limits.unfinishedDiagnoses in the operator's configuration)" in message
    assert world.condition("c", "Reconciling")[:2] == ("True", "LimitReached")
    assert world.condition("d")[1] == "LimitReached"
    assert "startTime" not in world.read("c")["status"]
    assert len(world.pods()) == 2
    # A sweep measures these, and "d" said that it waits right when it came.
    eventually(lambda: gauge(world.operator.scrape(), "memdiag_held_back_diagnoses") == 2)
    assert gauge(world.operator.scrape(), "memdiag_unfinished_diagnoses") == 2

    # One that waits costs nothing: its status is not written again.
    version = world.read("d")["metadata"]["resourceVersion"]
    world.run(nodes["a"])
    assert world.end("a")[:2] == ("True", "Completed")
    eventually(lambda: world.condition("c")[1] in ("Pending", "Running"))
    assert world.read("d")["metadata"]["resourceVersion"] == version
    # One that is terminated ends although there is no room, and a deleted one makes room.
    world.change("d", terminate=True)
    assert world.end("d")[:2] == ("False", "Terminated")
    world.run(nodes["c"])
    assert world.end("c")[:2] == ("True", "Completed")


def test_a_rerun_waits_too_and_keeps_its_answer(world: World) -> None:
    nodes = {name: world.node(f"node-{name}") for name in "xyz"}
    world.diagnose("again", "node-x")
    world.run(nodes["x"])
    assert world.end("again")[:2] == ("True", "Completed")
    for name in "yz":
        world.diagnose(name, f"node-{name}")
        eventually(partial(has_a_reason, world, name, "Pending"))
    world.cluster.kubectl("annotate", "memdiag", "again", "memdiag.dev/requestedAt=now")
    eventually(lambda: world.condition("again", "Reconciling")[1] == "LimitReached")
    assert world.condition("again")[:2] == ("True", "Completed")
    world.run(nodes["y"])
    world.end("y")
    eventually(lambda: world.condition("again")[1] == "Pending")
    assert world.read("again")["status"]["lastHandledRequest"] == "now"


def test_the_oldest_reports_go_and_those_of_an_unfinished_run_stay(
    world: World, installed: TestCluster, tmp_path: Path
) -> None:
    one, other = world.node("first-1"), world.node("first-2")
    for node in (one, other):
        node.label("pool=first")
    world.ask("unfinished", {"nodeSelector": {"matchLabels": {"pool": "first"}}, "maxNodes": 2})
    deliver_much(world, one)
    other.run(other.runner())
    eventually(lambda: len(world.reports("unfinished")) == 1)
    size_bytes = len(json.dumps(world.reports("unfinished")[0], separators=(",", ":")))
    count = BUDGET_BYTES // size_bytes
    assert 4 < count < 9
    for number in range(count):  # with the unfinished run's, one more than there is room for
        node = world.node(f"n{number}")
        world.diagnose(f"d{number}", node.name)
        deliver_much(world, node)
        assert world.end(f"d{number}")[:2] == ("True", "Completed")
    eventually(lambda: world.reports("d0") == [])
    assert [len(world.reports(f"d{number}")) for number in range(1, count)] == [1] * (count - 1)
    assert len(world.reports("unfinished")) == 1
    summary = world.read("d0")["status"]["summary"]
    assert summary

    # The next operator knows it from a list.
    world.operator.stop()
    smaller = {"limits": {**LIMITS["limits"], "unfinishedDiagnoses": 1}}
    with running_operator(installed, tmp_path, CONFIG | smaller) as operator:
        eventually(lambda: gauge(operator.scrape(), "memdiag_stored_reports_bytes") > 0)
        reported = gauge(operator.scrape(), "memdiag_stored_reports_bytes")
        assert reported == pytest.approx(count * size_bytes, rel=0.02)
        assert runs_deleted(operator) == 0


def has_a_reason(world: World, name: str, reason: str = "") -> bool:
    said = world.condition(name)[1]
    return said == reason if reason else said != ""


def gauge(scraped: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", scraped, re.MULTILINE)
    assert found, name
    return float(found[1])


def runs_deleted(operator: OperatorProcess) -> float:
    return gauge(operator.scrape(), "memdiag_runs_without_reports_total")


def deliver_much(world: World, node: HollowNode) -> None:
    """Let a node's runner end with a document of some 200 KiB."""
    runner = node.runner()
    node.run(runner)
    template = evidence_with(run_id=run_id(pod_of(world, runner)), holders=HOLDERS, stacks=STACKS)
    host = template.host.model_copy(update={"node_name": node.name})
    much: Evidence = template.model_copy(update={"host": host})
    node.finish(runner, *delivered(much))
