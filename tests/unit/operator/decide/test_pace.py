"""What is reconciled less often, and what is written less often."""

from typing import Any

import pytest

from memdiag_api.diagnosis import MemoryDiagnosisStatus, NodeResult
from memdiag_operator.decide.pace import is_only_progress, only_waiting, paced
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.slots import allot
from memdiag_operator.decide.snapshot import Snapshot
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


def in_progress(message: str = "tracing", reason: str = "Running", **more: Any) -> dict[str, Any]:
    return running_status(result=NodeResult(node_name=NODE, reason=reason, message=message), **more)


@pytest.mark.parametrize(
    ("before", "plan", "is_progress"),
    [
        pytest.param(in_progress(), Plan(status=status(in_progress("tracing on"))), True, id="another message"),
        pytest.param(
            in_progress(reason="Pending"), Plan(status=status(in_progress())), True, id="from Pending to Running"
        ),
        pytest.param(in_progress(), Plan(), False, id="nothing"),
        pytest.param(
            in_progress(), Plan(status=status(in_progress(completionTime=timestamp(NOW)))), False, id="the end"
        ),
        pytest.param(
            in_progress(),
            Plan(status=status(in_progress(observedGeneration=2))),
            False,
            id="a change of the spec",
        ),
        pytest.param(
            in_progress(),
            Plan(status=status(in_progress("x")), launches=({},)),
            False,
            id="a runner that is launched",
        ),
        pytest.param(
            in_progress(nodes={"total": 2, "running": 2}),
            Plan(status=status(in_progress(nodes={"total": 2, "running": 1, "succeeded": 1}))),
            False,
            id="one node's end",
        ),
    ],
)
def test_what_nobody_waits_for_is_mere_progress(before: dict[str, Any], plan: Plan, is_progress: bool) -> None:
    assert is_only_progress(diagnosis(status=before), plan) is is_progress


def test_a_plan_and_the_one_after_it_are_one_write() -> None:
    first = Plan(status=status(in_progress("starts")), announcements=(Announcement("Normal", "Started", "x"),))
    pod_manifest = {"metadata": {"name": "runner"}}
    both = first.then(Plan(status=status(in_progress("is created")), launches=(pod_manifest,)))
    assert both.status == status(in_progress("is created"))
    assert (both.launches, both.announcements) == ((pod_manifest,), first.announcements)
    assert first.then(Plan()) == first


# --- what is written now, and what later ------------------------------------------------------------------------------

LONG_NAMES = [f"node-{number:03}-{'x' * 50}" for number in range(300)]
LARGE: dict[str, Any] = {"nodeStates": [{"nodeName": name, "reason": "Pending"} for name in LONG_NAMES]}
"""Some 24 KiB: written every few seconds at most."""
BEFORE = diagnosis(status=in_progress(**LARGE))
DECIDED = status(in_progress("tracing on", **LARGE, nodes={"total": 300, "pending": 298, "succeeded": 1, "running": 1}))
LAUNCH = {"metadata": {"name": "runner"}}


def written(plan: Plan, before: Diagnosis = BEFORE, *, since: float = 3, **known: Any) -> Plan:
    """What is carried out of `plan`, `since` seconds after the latest write."""
    snapshot = Snapshot(diagnosis=before, **known)
    return paced(plan, before, snapshot, since_write_seconds=since, progress_seconds=2.5, now=NOW)


def test_a_small_status_is_written_as_soon_as_it_is_decided() -> None:
    plan = Plan(status=status(in_progress(completionTime=timestamp(NOW))), launches=(LAUNCH,))
    assert written(plan, diagnosis(status=in_progress()), since=0) == plan


def test_a_large_status_becomes_a_draft_and_a_launch_asks_whether_it_still_holds() -> None:
    assert written(Plan(status=DECIDED)) == Plan(draft=DECIDED)
    assert written(Plan(status=DECIDED, launches=(LAUNCH,))) == Plan(draft=DECIDED, confirm=True, launches=(LAUNCH,))
    assert written(Plan(status=DECIDED), since=60) == Plan(status=DECIDED)


def test_a_draft_is_written_when_it_is_time_although_nothing_is_new() -> None:
    drafted, stored = BEFORE.model_copy(update={"status": DECIDED}), BEFORE.status
    assert written(Plan(), drafted, stored=stored) == Plan()
    assert written(Plan(), drafted, stored=stored, since=60) == Plan(status=DECIDED)
    assert written(Plan(), BEFORE, since=60) == Plan()


def test_what_someone_may_wait_for_is_written_at_once() -> None:
    ended = Plan(status=DECIDED.model_copy(update={"completion_time": NOW}))
    assert written(ended, since=0) == ended
    started = Plan(status=DECIDED)
    assert written(started, since=0, start_plan=started) == started


def test_a_runner_that_holds_a_slot_for_nothing_is_waited_for_no_longer_than_a_quarter_of_a_minute() -> None:
    gone = DECIDED.node_states[0].model_copy(update={"reason": "NodeLost"})
    lost = Plan(status=DECIDED.model_copy(update={"node_states": [gone, *DECIDED.node_states[1:]]}))
    old = diagnosis(status=in_progress(**LARGE, startTime=timestamp(ago(8 * 3600))))
    lost = Plan(status=lost.status and lost.status.model_copy(update={"start_time": old.status.start_time}))
    holder = pod(node_name=gone.node_name)
    assert written(lost, old, since=20) == Plan(draft=lost.status)
    assert written(lost, old, since=20, pods=(holder,)) == lost


def test_mere_progress_waits_for_the_next_sweep() -> None:
    small = diagnosis(status=in_progress())
    progress = Plan(status=status(in_progress("tracing on")))
    assert written(progress, small, since=2) == Plan()
    assert written(progress, small, since=3) == progress
