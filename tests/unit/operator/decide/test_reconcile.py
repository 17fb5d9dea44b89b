"""What is to be done next, one row for every way that the world can be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from memdiag_api.conditions import ConditionStatus, ConditionType, Reason
from memdiag_api.diagnosis import MemoryDiagnosisStatus, NodeResult, RunStep
from memdiag_api.evidence import Evidence, LeakDetected, RunnerError, TerminationMessage, VerdictKind
from memdiag_operator.config import AllowedNodes, OperatorConfig
from memdiag_operator.decide.decision import decide
from memdiag_operator.decide.fleet import Fleet
from memdiag_operator.decide.lifecycle import is_settled
from memdiag_operator.decide.plan import Plan, PodRemoval
from memdiag_operator.decide.reconcile import reconcile
from memdiag_operator.decide.slots import allot
from memdiag_operator.decide.snapshot import Candidates, Needs, Snapshot
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, Node, Pod
from memdiag_operator.results.receive import RunnerOutput
from memdiag_operator.status.states import run_states
from support.evidence import answered, clean, evidence_with, growing_slab, suspicious
from support.kubernetes_objects import (
    CONFIG,
    NODE,
    NOW,
    POD_NAME,
    RUN,
    ago,
    delivered,
    diagnosis,
    fleet,
    node,
    pod,
    running,
    running_status,
    terminated,
    timestamp,
    waiting,
)

EVIDENCE = evidence_with(run_id=RUN)
MESSAGE, LOG = delivered(EVIDENCE)
DONE_POD = pod(phase="Succeeded", state=terminated(MESSAGE))
UNFIT = [{"type": "PodScheduled", "status": "False", "message": "Insufficient memory"}]
BUSY = [pod(name=f"other-{n}", node_name=f"node-{n}") for n in range(3)]


def world(
    one: Diagnosis,
    *,
    pods: tuple[Pod, ...] = (),
    nodes: tuple[Node, ...] = (node(),),
    outputs: Mapping[str, RunnerOutput] | None = None,
    everyone: Fleet | None = None,
    refusals: Mapping[str, str] | None = None,
) -> Snapshot:
    return Snapshot(
        diagnosis=one,
        nodes=dict.fromkeys(run_states(one)) | {there.metadata.name: there for there in nodes},
        pods=pods,
        outputs=outputs,
        allotment=allot(everyone, CONFIG.max_concurrent_runners, NOW) if everyone else None,
        refusals=refusals or {},
    )


def plan_for(snapshot: Snapshot) -> Plan:
    return reconcile(snapshot, CONFIG, NOW)


def wants_slot(snapshot: Snapshot) -> bool:
    answer = decide(snapshot, CONFIG, NOW)
    return isinstance(answer, Needs) and answer.allotment


def pending() -> Diagnosis:
    return diagnosis(status=running_status())


def running_diagnosis(**spec: Any) -> Diagnosis:
    result = NodeResult(node_name=NODE, pod_name=POD_NAME, reason=Reason.RUNNING, message="tracing")
    return diagnosis(status=running_status(result=result), spec=spec)


def finished(
    *, spec: dict[str, Any] | None = None, annotations: dict[str, str] | None = None, **status: Any
) -> Diagnosis:
    result = NodeResult(node_name=NODE, pod_name=POD_NAME, reason=Reason.COMPLETED)
    return diagnosis(
        status=running_status(result=result, completionTime=timestamp(ago(5)), **status),
        spec=spec,
        annotations=annotations,
    )


def condition(status: MemoryDiagnosisStatus | None, kind: ConditionType) -> tuple[ConditionStatus, Reason, str]:
    assert status
    (found,) = [one for one in status.conditions if one.type is kind]
    return found.status, found.reason, found.message


# --- a run from its start to its end ----------------------------------------------------------------------------------


def test_a_new_diagnosis_starts_its_run_and_launches_nothing_yet() -> None:
    plan = plan_for(world(diagnosis()))
    assert plan.status
    assert plan.status.run_id == RUN
    assert plan.status.start_time == NOW
    assert plan.status.observed_generation == 1
    assert plan.launches == ()
    assert condition(plan.status, ConditionType.SUCCEEDED)[:2] == (ConditionStatus.UNKNOWN, Reason.PENDING)
    assert [one.reason for one in plan.announcements] == ["Started"]


def test_with_a_slot_the_runner_is_launched() -> None:
    one = pending()
    plan = plan_for(world(one, everyone=fleet((), (one,))))
    (manifest,) = plan.launches
    assert manifest["metadata"]["name"] == POD_NAME
    assert manifest["spec"]["activeDeadlineSeconds"] == 900 - 20


def test_without_a_slot_it_waits_and_says_for_what() -> None:
    one = pending()
    plan = plan_for(world(one, everyone=fleet(BUSY, (one,))))
    assert plan.launches == ()
    message = "waiting for a slot: all 3 runner slots are in use; 0 node runs ahead in the queue"
    assert condition(plan.status, ConditionType.RECONCILING) == (ConditionStatus.TRUE, Reason.PENDING, message)


def test_without_a_look_at_the_fleet_nothing_is_launched() -> None:
    assert plan_for(world(pending())).launches == ()


def test_progress_is_reported() -> None:
    plan = plan_for(world(running_diagnosis(), pods=(pod(state=running(12)),)))
    assert plan.status
    assert plan.status.nodes
    assert plan.status.nodes.running == 1
    assert condition(plan.status, ConditionType.RECONCILING)[2] == "tracing on node1: 12 s of 60 s"
    assert (plan.status.progress_percent, plan.status.progress) == (23, "Tracing 23%")
    assert (plan.status.results[0].step, plan.status.results[0].progress_percent) == (RunStep.TRACING, 23)
    assert not plan.removals
    assert not plan.stops
    assert not plan.reports


def test_a_result_is_stored_with_its_report_and_the_pod_stays() -> None:
    snapshot = world(running_diagnosis(), pods=(DONE_POD,), outputs={POD_NAME: RunnerOutput(LOG)})
    plan = plan_for(snapshot)
    assert plan.status
    assert plan.status.completion_time == NOW
    assert plan.status.report_refs[0].name == POD_NAME
    assert plan.reports[0]["metadata"]["name"] == POD_NAME
    assert plan.status.suspect == "nginx[4711] fd 11 (no pod): 3.00 MiB unread pins 5.00 GiB"
    assert plan.status.summary
    assert condition(plan.status, ConditionType.SUCCEEDED)[:2] == (ConditionStatus.TRUE, Reason.COMPLETED)
    assert condition(plan.status, ConditionType.LEAK_DETECTED)[1] is Reason.PINNED_BY_UNREAD_SOCKET
    assert plan.removals == ()
    assert [(one.type, one.reason) for one in plan.announcements] == [
        ("Normal", "Completed"),
        ("Warning", "PinnedByUnreadSocket"),
    ]


def test_the_event_about_a_leak_names_the_suspect_and_what_to_do() -> None:
    plan = plan_for(world(running_diagnosis(), pods=(DONE_POD,), outputs={POD_NAME: RunnerOutput(LOG)}))
    assert plan.announcements[1].message == (
        "nginx[4711] fd 11 (no pod): 3.00 MiB unread pins 5.00 GiB. "
        "The node's runner says: Find out why it does not read, and restart or fix it."
    )


@pytest.mark.parametrize(
    ("change", "events"),
    [
        pytest.param(
            clean, {"Completed": "First finding: container cccccccccccc (unattributed): 8.00 GiB of anony"}, id="clean"
        ),
        pytest.param(suspicious, {"Completed": "First finding: AllocPage 6.00 GiB: unexplained."}, id="suspicious"),
        pytest.param(
            lambda one: answered(one, VerdictKind.LEAKED_MEMORY, LeakDetected.TRUE, growing_slab()),
            {
                "Completed": "First finding: SUnreclaim 38.5 GiB: slab cache kmalloc-64, growing 220 KiB/s.",
                "LeakedMemory": "SUnreclaim 38.5 GiB: slab cache kmalloc-64, growing 220 KiB/s. "
                "The node's runner says: ",
            },
            id="leak",
        ),
    ],
)
def test_the_events_of_the_end_name_the_first_finding(
    change: Callable[[Evidence], Evidence], events: dict[str, str]
) -> None:
    message, log = delivered(change(evidence_with(run_id=RUN)))
    done = pod(phase="Succeeded", state=terminated(message))
    plan = plan_for(world(running_diagnosis(), pods=(done,), outputs={POD_NAME: RunnerOutput(log)}))
    said = {one.reason: one.message for one in plan.announcements}
    assert said.keys() == events.keys()
    for reason, words in events.items():
        assert words in said[reason]


def test_the_first_running_runner_is_reported_once() -> None:
    working = pod(state=running())
    plan = plan_for(world(pending(), pods=(working,)))
    (reported,) = plan.announcements
    assert (reported.type, reported.reason) == ("Normal", "Running")
    assert reported.message == f"Runner pod {POD_NAME} is running on node {NODE}."
    assert plan_for(world(running_diagnosis(), pods=(working,))).announcements == ()


def test_when_the_result_is_stored_the_pod_goes() -> None:
    plan = plan_for(world(finished(), pods=(DONE_POD,)))
    assert plan.removals == (PodRemoval(POD_NAME, f"uid-of-{POD_NAME}"),)
    assert plan.reports == ()


def test_a_log_that_cannot_be_read_yet_is_waited_for() -> None:
    plan = plan_for(world(running_diagnosis(), pods=(DONE_POD,), outputs={POD_NAME: RunnerOutput(None, "refused")}))
    assert plan.status
    assert plan.status.completion_time is None
    assert condition(plan.status, ConditionType.RECONCILING)[2].endswith("finished; waiting for its log")


def test_deciding_twice_about_the_same_world_changes_nothing_more() -> None:
    snapshot = world(running_diagnosis(), pods=(pod(state=running(12)),))
    first = plan_for(snapshot)
    assert first.status
    stored = Diagnosis.model_validate(
        {**snapshot.diagnosis.model_dump(by_alias=True), "status": first.status.to_json_object()}
    )
    assert plan_for(replace(snapshot, diagnosis=stored)) == Plan()


# --- everything that can go wrong -------------------------------------------------------------------------------------


@dataclass
class Ending:
    """A world in which a run ends at once, and how."""

    snapshot: Snapshot
    reason: Reason
    message: str
    keeps_result: bool = field(default=False)
    config: OperatorConfig = CONFIG


def unsupported() -> str:
    return TerminationMessage(run_id=RUN, error=RunnerError.KERNEL_UNSUPPORTED, error_message="no BTF").model_dump_json(
        by_alias=True, exclude_none=True
    )


IN_LINE = NodeResult(node_name=NODE, reason=Reason.PENDING, message="waiting in line")
ENDINGS = {
    "no such node": Ending(world(pending(), nodes=()), Reason.NODE_NOT_FOUND, "there is no node node1"),
    "a Windows node": Ending(
        world(pending(), nodes=(node(nodeInfo={"operatingSystem": "windows"}),)),
        Reason.NODE_UNSUPPORTED,
        "runs windows",
    ),
    "a virtual node": Ending(
        world(
            pending(),
            nodes=(Node.model_validate({"metadata": {"name": NODE, "labels": {"type": "virtual-kubelet"}}}),),
        ),
        Reason.NODE_UNSUPPORTED,
        "is virtual",
    ),
    "the API server refuses": Ending(
        world(pending(), refusals={POD_NAME: "violates PodSecurity"}),
        Reason.ADMISSION_DENIED,
        "violates PodSecurity",
    ),
    "no slot until the deadline": Ending(
        world(diagnosis(status=running_status(result=IN_LINE, started=ago(901))), everyone=fleet(BUSY)),
        Reason.DEADLINE_EXCEEDED,
        "(900 s); last seen: waiting in line",
    ),
    "a slot that is won too late to measure": Ending(
        world(diagnosis(status=running_status(result=IN_LINE, started=ago(826))), everyone=fleet()),
        Reason.DEADLINE_EXCEEDED,
        "no runner was started: only 74 s are left of activeDeadlineSeconds (900 s), and a runner needs at least 75 s",
    ),
    "a start that takes until the deadline": Ending(
        world(
            diagnosis(status=running_status(started=ago(901))),
            pods=(pod(phase="Pending", state=waiting("ContainerCreating"), age=30),),
        ),
        Reason.DEADLINE_EXCEEDED,
        "last seen: the runner is starting",
    ),
    "cannot be scheduled": Ending(
        world(pending(), pods=(pod(phase="Pending", conditions=UNFIT, age=61),)),
        Reason.UNSCHEDULABLE,
        "Insufficient memory",
    ),
    "no image": Ending(
        world(pending(), pods=(pod(phase="Pending", state=waiting("ErrImagePull"), age=91),)),
        Reason.IMAGE_PULL,
        "Check runner.image",
    ),
    "no end although the deadline has asked for it": Ending(
        world(diagnosis(status=running_status(started=ago(991))), pods=(pod(state=running(700), deadline_seconds=1),)),
        Reason.DEADLINE_EXCEEDED,
        "last seen: tracing on node1 finished",
    ),
    "the node is rebooted while the runner works": Ending(
        world(running_diagnosis(), nodes=(node(nodeInfo={"bootID": "boot-2"}),), pods=(pod(state=running()),)),
        Reason.NODE_LOST,
        "was rebooted",
    ),
    "the node is rebooted, and its kubelet says that the runner has ended": Ending(
        world(
            running_diagnosis(),
            nodes=(node(nodeInfo={"bootID": "boot-2"}),),
            pods=(pod(phase="Failed", state=terminated(exit_code=255, reason="Unknown")),),
        ),
        Reason.NODE_LOST,
        "was rebooted",
    ),
    "the node is removed, and another takes its name": Ending(
        world(running_diagnosis(), nodes=(node(uid="another"),), pods=(pod(state=running()),)),
        Reason.NODE_LOST,
        "was replaced by another node of the same name",
    ),
    "a node that may not be diagnosed": Ending(
        world(pending()),
        Reason.NODE_NOT_ALLOWED,
        "node node1 may not be diagnosed: the operator's configuration (allowedNodes) requires nodes with pool=web",
        config=CONFIG.model_copy(update={"allowed_nodes": AllowedNodes(match_labels={"pool": "web"})}),
    ),
    "the node is removed": Ending(
        world(running_diagnosis(), nodes=(), pods=(pod(state=running()),)), Reason.NODE_LOST, "was removed"
    ),
    "the node is removed and the pod with it": Ending(
        world(running_diagnosis(), nodes=()), Reason.NODE_LOST, "was removed"
    ),
    "the pod is deleted by someone": Ending(
        world(running_diagnosis()), Reason.RUNNER_EVICTED, "by someone other than the operator"
    ),
    "kernel without BTF": Ending(
        world(
            running_diagnosis(),
            pods=(pod(phase="Failed", state=terminated(unsupported(), exit_code=3)),),
            outputs={POD_NAME: RunnerOutput(b"")},
        ),
        Reason.KERNEL_UNSUPPORTED,
        "no BTF",
    ),
    "out of memory": Ending(
        world(
            running_diagnosis(),
            pods=(pod(phase="Failed", state=terminated(exit_code=137, reason="OOMKilled")),),
            outputs={POD_NAME: RunnerOutput(b"")},
        ),
        Reason.RUNNER_OOM_KILLED,
        "memory limit",
    ),
    "a broken document": Ending(
        world(running_diagnosis(), pods=(DONE_POD,), outputs={POD_NAME: RunnerOutput(LOG.replace(b"nginx", b"NGINX"))}),
        Reason.RESULT_INVALID,
        "SHA-256",
    ),
    "terminated before it started": Ending(
        world(diagnosis(status=running_status(), spec={"terminate": True})), Reason.TERMINATED, "before a runner"
    ),
    "terminated while it started": Ending(
        world(running_diagnosis(terminate=True), pods=(pod(phase="Pending"),)),
        Reason.TERMINATED,
        "before the runner started measuring",
    ),
    "terminated, and it left what it had": Ending(
        world(
            running_diagnosis(terminate=True),
            pods=(pod(phase="Failed", reason="DeadlineExceeded", state=terminated(MESSAGE)),),
            outputs={POD_NAME: RunnerOutput(LOG)},
        ),
        Reason.TERMINATED,
        "terminated (spec.terminate)",
        keeps_result=True,
    ),
    "cut short by the kubelet, and it left what it had": Ending(
        world(
            running_diagnosis(),
            pods=(pod(phase="Failed", reason="DeadlineExceeded", state=terminated(MESSAGE)),),
            outputs={POD_NAME: RunnerOutput(LOG)},
        ),
        Reason.DEADLINE_EXCEEDED,
        "stopped at its deadline",
        keeps_result=True,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_every_fault_ends_the_run_with_its_reason(ending: Ending) -> None:
    plan = reconcile(ending.snapshot, ending.config, NOW)
    assert plan.status
    assert plan.status.completion_time == NOW
    assert plan.status.progress == "Done 100%"
    status, reason, message = condition(plan.status, ConditionType.SUCCEEDED)
    assert (status, reason) == (ConditionStatus.FALSE, ending.reason)
    assert ending.message in message
    assert condition(plan.status, ConditionType.STALLED)[0] is ConditionStatus.TRUE
    assert plan.status.nodes
    assert plan.status.nodes.failed == 1
    assert (plan.status.results[0].verdict is not None) is ending.keeps_result
    assert bool(plan.reports) is ending.keeps_result
    assert plan.launches == ()
    assert next((one.type, one.reason) for one in plan.announcements) == ("Warning", ending.reason)


def test_a_pod_on_a_lost_node_is_removed_without_its_kubelet() -> None:
    lost = NodeResult(node_name=NODE, pod_name=POD_NAME, reason=Reason.NODE_LOST)
    one = diagnosis(status=running_status(result=lost, completionTime=timestamp(NOW)))
    (removal,) = plan_for(world(one, pods=(pod(state=running()),))).removals
    assert removal.force


def test_a_pod_that_is_on_its_way_is_not_removed_again() -> None:
    assert plan_for(world(finished(), pods=(pod(phase="Succeeded", deleted=True),))).removals == ()


def test_a_spec_of_another_version_ends_as_invalid() -> None:
    one = diagnosis(spec={"topN": "many"}, status=running_status())
    plan = plan_for(world(one))
    assert condition(plan.status, ConditionType.SUCCEEDED)[1] is Reason.INVALID_SPEC


# --- what people change on the way ------------------------------------------------------------------------------------


def test_suspension_ends_a_runner_and_stops_the_clock() -> None:
    plan = plan_for(world(running_diagnosis(suspend=True), pods=(pod(state=running()),)))
    assert plan.status
    assert plan.status.start_time is None
    assert [removal.name for removal in plan.removals] == [POD_NAME]
    assert condition(plan.status, ConditionType.SUCCEEDED)[:2] == (ConditionStatus.UNKNOWN, Reason.SUSPENDED)


def test_a_diagnosis_that_was_created_suspended_waits() -> None:
    plan = plan_for(world(diagnosis(spec={"suspend": True})))
    assert plan.status
    assert plan.status.start_time is None
    assert condition(plan.status, ConditionType.RECONCILING)[0] is ConditionStatus.FALSE


def test_after_a_suspension_another_run_starts() -> None:
    one = diagnosis(status={"observedGeneration": 1, "runID": RUN, "conditions": []})
    plan = plan_for(world(one, pods=(pod(state=running()),)))
    assert plan.status
    assert plan.status.start_time == NOW
    assert plan.status.run_id not in (None, RUN)


def test_pods_of_a_former_run_are_removed() -> None:
    former = pod(name="former", run="former-run", state=running())
    assert [one.name for one in plan_for(world(pending(), pods=(former,))).removals] == ["former"]


def test_termination_asks_the_runner_to_end_once() -> None:
    plan = plan_for(world(running_diagnosis(terminate=True), pods=(pod(state=running()),)))
    assert [one.name for one in plan.stops] == [POD_NAME]
    assert plan.status
    assert plan.status.completion_time is None
    asked = pod(state=running(), deadline_seconds=1)
    assert plan_for(world(running_diagnosis(terminate=True), pods=(asked,))).stops == ()


def test_at_the_deadline_the_runner_is_asked_to_end_and_waited_for() -> None:
    overdue = running_diagnosis().model_copy(
        update={"status": MemoryDiagnosisStatus.model_validate(running_status(started=ago(900)))}
    )
    plan = plan_for(world(overdue, pods=(pod(state=running(700)),)))
    assert [one.name for one in plan.stops] == [POD_NAME]
    assert plan.removals == ()
    assert plan.status
    assert plan.status.completion_time is None
    assert "waiting for what the runner has measured" in condition(plan.status, ConditionType.RECONCILING)[2]
    for asked in (pod(state=running(), deadline_seconds=1), DONE_POD):
        again = plan_for(world(overdue, pods=(asked,)))
        assert again.stops == ()
        assert again.status
        assert again.status.completion_time is None


def test_what_the_runner_delivers_after_the_deadline_is_kept() -> None:
    overdue = diagnosis(status=running_status(started=ago(950)))
    cut_short = pod(phase="Failed", reason="DeadlineExceeded", state=terminated(MESSAGE), deadline_seconds=1)
    plan = plan_for(world(overdue, pods=(cut_short,), outputs={POD_NAME: RunnerOutput(LOG)}))
    assert plan.status
    assert condition(plan.status, ConditionType.SUCCEEDED)[1] is Reason.DEADLINE_EXCEEDED
    assert condition(plan.status, ConditionType.LEAK_DETECTED)[:2] == (
        ConditionStatus.TRUE,
        Reason.PINNED_BY_UNREAD_SOCKET,
    )
    assert len(plan.reports) == 1


@pytest.mark.parametrize(
    ("nodes", "spec", "seconds", "reported"),
    [
        pytest.param(1, {}, 900, "", id="one node"),
        pytest.param(1, {"duration": "10m"}, 1260, "", id="a long window"),
        pytest.param(90, {}, 5400, "", id="many nodes"),
        pytest.param(1000, {"duration": "10m"}, 86400, "at least 210420 s", id="more than a run may take"),
        pytest.param(90, {"activeDeadlineSeconds": 1800}, 1800, "allow at least 2700 s", id="too short"),
        pytest.param(90, {"activeDeadlineSeconds": 2700}, 2700, "", id="just long enough"),
        pytest.param(90, {"checks": ["Breakdown"]}, 1800, "", id="no window"),
    ],
)
def test_the_default_deadline_grows_with_the_nodes(
    nodes: int, spec: dict[str, Any], seconds: int, reported: str
) -> None:
    target = {"nodeSelector": {"matchLabels": {"pool": "web"}}, "maxNodes": nodes}
    selected = tuple(node(f"node-{number}") for number in range(nodes))
    plan = plan_for(replace(world(diagnosis(spec={"target": target, **spec})), candidates=Candidates(selected)))
    assert plan.status
    assert plan.status.active_deadline_seconds == seconds
    (started,) = plan.announcements
    assert reported in started.message
    assert ("too short" in started.message) is bool(reported)


def test_a_run_of_0_1_0_has_the_deadline_of_its_spec() -> None:
    one = diagnosis(spec={"activeDeadlineSeconds": 100}, status=running_status(started=ago(101)))
    plan = plan_for(world(one))
    assert condition(plan.status, ConditionType.SUCCEEDED)[1] is Reason.DEADLINE_EXCEEDED


def test_a_request_reruns_a_finished_diagnosis_once() -> None:
    one = finished(annotations={"memdiag.dev/requestedAt": "now"})
    plan = plan_for(world(one))
    assert plan.status
    assert plan.status.last_handled_request == "now"
    assert plan.status.run_id not in (None, RUN)
    assert plan.status.completion_time is None
    handled = finished(annotations={"memdiag.dev/requestedAt": "now"}, lastHandledRequest="now")
    assert plan_for(world(handled)).launches == ()
    assert not wants_slot(world(handled))


def test_a_request_that_was_handled_is_remembered() -> None:
    """GitOps puts Git's older value back over the one that asked for a run by hand."""
    by_hand = plan_for(world(finished(annotations={"memdiag.dev/requestedAt": "by hand"}, lastHandledRequest="in Git")))
    assert by_hand.status
    assert by_hand.status.handled_requests == ["by hand", "in Git"]
    handled = by_hand.status.to_json_object()["handledRequests"]
    restored = finished(
        annotations={"memdiag.dev/requestedAt": "in Git"}, lastHandledRequest="by hand", handledRequests=handled
    )
    assert plan_for(world(restored)).announcements == ()
    assert is_settled(restored)


def test_requests_are_remembered_up_to_a_number() -> None:
    handled = [f"request {number}" for number in range(10)]
    asked = {"memdiag.dev/requestedAt": "another"}
    plan = plan_for(world(finished(annotations=asked, lastHandledRequest="request 0", handledRequests=handled)))
    assert plan.status
    assert plan.status.handled_requests == ["another", *handled[:9]]


def test_a_request_that_is_taken_back_reruns_nothing() -> None:
    plan = plan_for(world(finished(lastHandledRequest="before")))
    assert plan.status is None or plan.status.run_id == RUN


def test_a_request_during_a_run_waits_for_its_end() -> None:
    one = diagnosis(
        status=running_status(result=NodeResult(node_name=NODE, reason=Reason.RUNNING)),
        annotations={"memdiag.dev/requestedAt": "now"},
    )
    plan = plan_for(world(one, pods=(pod(state=running()),)))
    assert plan.status
    assert plan.status.run_id == RUN
    assert plan.status.last_handled_request is None


def test_an_overlong_request_does_not_rerun_endlessly() -> None:
    one = finished(annotations={"memdiag.dev/requestedAt": "x" * 1000}, lastHandledRequest="x" * 256)
    assert not wants_slot(world(one))
    assert plan_for(world(one)).announcements == ()


@pytest.mark.parametrize(("ttl", "deleted"), [(None, False), (6, False), (5, True), (0, True)])
def test_time_to_live(ttl: int | None, deleted: bool) -> None:
    spec = {} if ttl is None else {"ttlSecondsAfterFinished": ttl}
    assert plan_for(world(finished(spec=spec))).delete_diagnosis is deleted


def test_a_diagnosis_that_is_being_deleted_is_left_alone() -> None:
    one = diagnosis(status=running_status(), deleted=True)
    assert plan_for(world(one, pods=(pod(state=running()),))) == Plan()


def test_a_later_generation_is_seen_after_the_end() -> None:
    one = finished(observedGeneration=0)
    plan = plan_for(world(one))
    assert plan.status
    assert plan.status.observed_generation == 1


# --- what is to be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("snapshot", "wants"),
    [
        pytest.param(world(pending()), True, id="waits for a slot"),
        pytest.param(world(diagnosis()), False, id="not started"),
        pytest.param(world(pending(), pods=(pod(phase="Pending"),)), False, id="has its pod"),
        pytest.param(world(pending(), nodes=()), False, id="no node"),
        pytest.param(world(running_diagnosis()), False, id="its pod is gone"),
        pytest.param(world(finished()), False, id="finished"),
        pytest.param(world(diagnosis(status=running_status(), spec={"suspend": True})), False, id="suspended"),
        pytest.param(world(diagnosis(status=running_status(), spec={"terminate": True})), False, id="terminated"),
        pytest.param(world(diagnosis(status=running_status(), spec={"topN": "x"})), False, id="invalid"),
    ],
)
def test_who_wants_a_slot(snapshot: Snapshot, wants: bool) -> None:
    assert wants_slot(snapshot) is wants


@pytest.mark.parametrize(
    ("snapshot", "read"),
    [
        pytest.param(world(running_diagnosis(), pods=(DONE_POD,)), True, id="ended"),
        pytest.param(world(pending(), pods=(DONE_POD,)), True, id="ended before anybody saw it run"),
        pytest.param(world(running_diagnosis(), pods=(pod(state=running()),)), False, id="running"),
        pytest.param(world(finished(), pods=(DONE_POD,)), False, id="stored"),
        pytest.param(world(running_diagnosis(), pods=(pod(name="stray", phase="Succeeded"),)), False, id="another pod"),
    ],
)
def test_whose_log_is_read(snapshot: Snapshot, read: bool) -> None:
    answer = decide(snapshot, CONFIG, NOW)
    assert (isinstance(answer, Needs) and answer.outputs == snapshot.pods) is read


@pytest.mark.parametrize(
    ("one", "settled"),
    [
        pytest.param(finished(), True, id="finished"),
        pytest.param(running_diagnosis(), False, id="running"),
        pytest.param(diagnosis(), False, id="new"),
        pytest.param(finished(spec={"ttlSecondsAfterFinished": 9}), False, id="to be deleted"),
        pytest.param(finished(annotations={"memdiag.dev/requestedAt": "x"}), False, id="to be run again"),
        pytest.param(finished(observedGeneration=0), False, id="changed since"),
    ],
)
def test_what_a_sweep_passes_over(one: Diagnosis, settled: bool) -> None:
    assert is_settled(one) is settled


def test_the_same_run_seen_later_has_the_same_times() -> None:
    snapshot = world(running_diagnosis(), pods=(pod(state=running(12)),))
    later = reconcile(snapshot, CONFIG, NOW + timedelta(seconds=1)).status
    assert later
    assert later.start_time == snapshot.diagnosis.status.start_time


def test_names_are_stable() -> None:
    assert naming.child_name("where", "11111111-1111-1111-1111-111111111111", RUN, NODE) == POD_NAME
