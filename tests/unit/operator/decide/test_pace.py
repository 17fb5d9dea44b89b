"""Who is looked at less often, and what is told less often."""

from typing import Any

import pytest

from memdiag_api.diagnosis import MemoryDiagnosisStatus, NodeResult
from memdiag_operator.decide.pace import is_only_progress, only_waiting
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.slots import allot
from memdiag_operator.kube.objects import Diagnosis
from memdiag_operator.status.events import Announcement
from support.kubernetes_objects import NODE, NOW, ago, diagnosis, fleet, pod, running_status, timestamp


def status(written: dict[str, Any]) -> MemoryDiagnosisStatus:
    return MemoryDiagnosisStatus.model_validate(written)


def waiting(name: str, age: float) -> Diagnosis:
    node = f"node-{name}"
    status = running_status(result=NodeResult(node_name=node, reason="Pending"), started=ago(age))
    return diagnosis(name=name, uid=f"uid-{name}", node=node, status=status)


def test_those_who_get_no_slot_and_have_no_runner_only_wait() -> None:
    diagnoses = tuple(waiting(name, age) for name, age in (("works", 50), ("next", 40), ("later", 30), ("last", 20)))
    works = pod(name="runner", owner="uid-works", node_name="node-works")
    everyone = fleet((works,), diagnoses)
    assert only_waiting(everyone, allot(everyone, 2, NOW)) == {"uid-later", "uid-last"}
    assert only_waiting(everyone, allot(everyone, 4, NOW)) == frozenset()


def at_work(message: str = "tracing", reason: str = "Running", **more: Any) -> dict[str, Any]:
    return running_status(result=NodeResult(node_name=NODE, reason=reason, message=message), **more)


@pytest.mark.parametrize(
    ("before", "plan", "is_progress"),
    [
        pytest.param(at_work(), Plan(status=status(at_work("tracing on"))), True, id="another message"),
        pytest.param(at_work(reason="Pending"), Plan(status=status(at_work())), True, id="from Pending to Running"),
        pytest.param(at_work(), Plan(), False, id="nothing"),
        pytest.param(at_work(), Plan(status=status(at_work(completionTime=timestamp(NOW)))), False, id="the end"),
        pytest.param(at_work(), Plan(status=status(at_work(observedGeneration=2))), False, id="a change of the spec"),
        pytest.param(
            at_work(), Plan(status=status(at_work("x")), launches=({},)), False, id="a runner that is launched"
        ),
        pytest.param(
            at_work(nodes={"total": 2, "running": 2}),
            Plan(status=status(at_work(nodes={"total": 2, "running": 1, "succeeded": 1}))),
            False,
            id="one node's end",
        ),
    ],
)
def test_what_nobody_waits_for_is_mere_progress(before: dict[str, Any], plan: Plan, is_progress: bool) -> None:
    assert is_only_progress(diagnosis(status=before), plan) is is_progress


def test_a_plan_and_the_one_after_it_are_one_write() -> None:
    first = Plan(status=status(at_work("begins")), announcements=(Announcement("Normal", "Started", "x"),))
    pod_manifest = {"metadata": {"name": "runner"}}
    both = first.then(Plan(status=status(at_work("is created")), launches=(pod_manifest,)))
    assert both.status == status(at_work("is created"))
    assert (both.launches, both.announcements) == ((pod_manifest,), first.announcements)
    assert first.then(Plan()) == first
