"""What an operator of a released version has left, this one carries on.

tests/fixtures/released/VERSION/objects has what that version stored at each step of one run on one node: the diagnosis,
its runner pod, and the log that the runner left; tools/record_released.py wrote them.
"""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memdiag_api.conditions import ConditionType
from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_api.evidence import Evidence
from memdiag_operator.decide.decision import decide
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.slots import Slot, allot
from memdiag_operator.decide.snapshot import Needs, Snapshot
from memdiag_operator.kube.objects import Diagnosis, Node, Pod
from memdiag_operator.results.receive import RunnerOutput
from support.kubernetes_objects import CONFIG, fleet

OBJECTS = Path(__file__).parents[2] / "fixtures" / "released" / "0.1.0" / "objects"
NODE = Node.model_validate_json((OBJECTS / "node.json").read_text())
NODE_NAME = NODE.metadata.name


def diagnosis(name: str, **changes: Any) -> Diagnosis:
    return Diagnosis.model_validate(json.loads((OBJECTS / f"diagnosis-{name}.json").read_text()) | changes)


def runner(name: str) -> Pod:
    return Pod.model_validate_json((OBJECTS / f"pod-{name}.json").read_text())


def twelve_seconds_into_the_trace() -> datetime:
    container = runner("running").main_container
    assert container
    assert container.state.running
    assert container.state.running.started_at
    return container.state.running.started_at + timedelta(seconds=12)


NOW = twelve_seconds_into_the_trace()


def decided(one: Diagnosis, *pods: Pod, log: bytes | None = None) -> Plan:
    snapshot = Snapshot(diagnosis=one, pods=pods)
    while isinstance(answer := decide(snapshot, CONFIG, NOW), Needs):
        names = (*answer.nodes, *answer.fresh_nodes)
        snapshot = replace(
            answer.snapshot,
            limit_reached="",
            absent_pods=frozenset(answer.pods),
            nodes={**answer.snapshot.nodes, **dict.fromkeys(names, NODE)},
            fresh_nodes=frozenset(answer.fresh_nodes),
            outputs={pod.metadata.name: RunnerOutput(log) for pod in answer.outputs} or answer.snapshot.outputs,
            allotment=allot(fleet(pods, (one,)), 3, NOW) if answer.allotment else answer.snapshot.allotment,
        )
    return answer


def succeeded(status: MemoryDiagnosisStatus | None) -> str:
    assert status
    return next(one.reason for one in status.conditions if one.type is ConditionType.SUCCEEDED)


def test_the_objects_are_of_a_version_that_knew_one_node_only() -> None:
    for path in OBJECTS.glob("diagnosis-*.json"):
        document = json.loads(path.read_text())
        assert "nodeStates" not in document["status"], path.name
        assert list(document["spec"]["target"]) == ["nodeName"], path.name


def test_a_run_that_waits_for_its_slot_keeps_its_place_and_gets_its_runner() -> None:
    one = diagnosis("pending")
    queue = allot(fleet((), (one,)), 3, NOW)
    assert queue.admitted == {Slot(one.metadata.uid, NODE_NAME)}
    plan = decided(one)
    assert plan.status
    assert (plan.status.run_id, plan.status.start_time) == (one.status.run_id, one.status.start_time)
    (manifest,) = plan.launches
    assert manifest["metadata"]["name"] == runner("running").metadata.name


def test_a_running_runner_is_found_and_not_started_twice() -> None:
    one, pod = diagnosis("running"), runner("running")
    plan = decided(one, pod)
    assert plan.launches == ()
    assert plan.removals == ()
    assert plan.status
    assert plan.status.run_id == one.status.run_id
    assert (plan.status.target, plan.status.progress) == (NODE_NAME, "Tracing 23%")
    assert [(state.node_name, state.reason) for state in plan.status.node_states] == [(NODE_NAME, "Running")]
    assert succeeded(plan.status) == "Running"


def test_the_result_of_a_former_versions_runner_is_taken() -> None:
    plan = decided(diagnosis("running"), runner("succeeded"), log=(OBJECTS / "pod-succeeded.log").read_bytes())
    assert succeeded(plan.status) == "Completed"
    assert [manifest["metadata"]["name"] for manifest in plan.reports] == [runner("succeeded").metadata.name]
    before = json.loads((OBJECTS / "report.json").read_text())
    assert Evidence.model_validate(plan.reports[0]["evidence"]) == Evidence.model_validate(before["evidence"])


def test_a_stored_result_is_left_as_it_is_and_its_pod_removed() -> None:
    plan = decided(diagnosis("finished"), runner("succeeded"))
    assert plan.status is None
    assert [removal.name for removal in plan.removals] == [runner("succeeded").metadata.name]


def test_a_finished_run_is_remembered_when_it_is_run_again() -> None:
    one = diagnosis("finished")
    again = one.model_copy(
        update={"metadata": one.metadata.model_copy(update={"annotations": {"memdiag.dev/requestedAt": "now"}})}
    )
    plan = decided(again)
    assert plan.status
    assert plan.status.last_run
    assert (plan.status.last_run.run_id, plan.status.last_run.reason) == (one.status.run_id, "Completed")
    assert plan.status.last_run.suspect == one.status.suspect
    assert plan.status.previous_run_ids == [one.status.run_id]
    assert plan.report_cleanup is None


def test_a_suspended_one_stays_so() -> None:
    assert decided(diagnosis("suspended")).status is None


@pytest.mark.parametrize("name", ["pending", "running", "finished", "suspended"])
def test_a_former_status_survives_being_read_and_written(name: str) -> None:
    document = json.loads((OBJECTS / f"diagnosis-{name}.json").read_text())["status"]
    status = MemoryDiagnosisStatus.model_validate(document)
    assert status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True) == document
