"""A plan is carried out in its order, and stops where going on would lose something."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from memdiag_operator.cluster.apply import ADMISSION_POLICY, apply, delete_old_reports
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from memdiag_operator.config import LimitSettings
from memdiag_operator.decide.plan import Plan, PodRemoval, ReportCleanup
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.decide.stored_reports import Run, StoredReport
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Pod
from memdiag_operator.status.events import Announcement
from support.fake_kubernetes import FakeKubernetes
from support.kubernetes_objects import CONFIG, NAME, NOW, POD_NAME, RUN, UID, ago, diagnosis, pod, running_status
from support.runner_manifest import runner_manifest

ONE = diagnosis(status=running_status())
SNAPSHOT = Snapshot(diagnosis=ONE)
STATUS = ONE.status.model_copy(update={"progress": "Starting 5%"})
REPORT = {"metadata": {"name": "report", "labels": {naming.DIAGNOSIS_UID_LABEL: UID, naming.RUN_ID_LABEL: RUN}}}
OLD = PodRemoval("old", "uid-of-old")


def manifest(**meta: Any) -> dict[str, Any]:
    whole = runner_manifest()
    owners = [{"uid": UID}]
    return whole | {"metadata": whole["metadata"] | {"name": POD_NAME, "ownerReferences": owners} | meta}


def cluster_with(*pods: Pod, **config: Any) -> tuple[Cluster, FakeKubernetes]:
    kubernetes = FakeKubernetes(diagnoses=[ONE], pods=pods)
    cluster = Cluster(kubernetes, CONFIG.model_copy(update=config))
    cluster.refill()
    kubernetes.requests.clear()
    return cluster, kubernetes


def names(pods: Iterable[Pod]) -> list[str]:
    return [one.metadata.name for one in pods]


WHOLE = Plan(
    reports=(REPORT,),
    status=STATUS,
    launches=(manifest(),),
    stops=(PodRemoval("works", "uid-of-works"),),
    removals=(OLD,),
    report_cleanup=ReportCleanup(UID, (RUN,)),
    announcements=(Announcement("Normal", "Started", "x"),),
    delete_diagnosis=True,
)
OLD_REPORTS = f"{naming.DIAGNOSIS_UID_LABEL}={UID},{naming.RUN_ID_LABEL} notin ({RUN})"


def test_a_plan_is_carried_out_in_an_order_that_loses_nothing() -> None:
    """The result is stored before the status says so, and the status before the pod is removed that could repeat it."""
    cluster, kubernetes = cluster_with(pod(name="old"), pod(name="works"))
    cluster.cache.reports.put(StoredReport("of another run", Run(UID, "another run"), NOW, 1))
    assert apply(cluster, SNAPSHOT, replace(WHOLE, delete_diagnosis=False)) == {}
    assert kubernetes.requests == [
        "create_report report",
        f"write_status {NAME}",
        f"create_pod {POD_NAME}",
        "set_pod_deadline works",
        "delete_pod old",
        f"delete_reports {OLD_REPORTS}",
        "create_event Started",
    ]
    assert sorted(names(cluster.cache.pods.all())) == sorted([POD_NAME, "works"])
    stored = cluster.cache.diagnoses.get(NAME)
    assert stored
    assert (stored.status, stored.metadata.resource_version) == (STATUS, "8")
    assert [one.name for one in cluster.cache.reports.all()] == ["report"]


def test_an_empty_plan_asks_for_nothing() -> None:
    cluster, kubernetes = cluster_with()
    assert apply(cluster, SNAPSHOT, Plan()) == {}
    assert kubernetes.requests == []


def test_a_diagnosis_that_has_changed_stops_the_plan_after_the_reports() -> None:
    cluster, kubernetes = cluster_with(pod(name="old"))
    kubernetes.change(NAME, progress="by somebody else")
    with pytest.raises(ConflictError):
        apply(cluster, SNAPSHOT, WHOLE)
    assert kubernetes.requests == ["create_report report", f"write_status {NAME}"]


def test_without_a_status_to_write_a_launch_asks_first_whether_the_diagnosis_has_changed() -> None:
    cluster, kubernetes = cluster_with()
    plan = Plan(confirm=True, launches=(manifest(),), draft=STATUS)
    apply(cluster, SNAPSHOT, plan)
    assert kubernetes.requests == [f"confirm_version {NAME}", f"create_pod {POD_NAME}"]
    kubernetes.change(NAME, progress="by somebody else")
    with pytest.raises(ConflictError):
        apply(cluster, SNAPSHOT, plan)
    assert kubernetes.asked("create_pod") == [POD_NAME]


def test_a_draft_is_kept_until_a_status_is_written() -> None:
    cluster, kubernetes = cluster_with()
    apply(cluster, SNAPSHOT, Plan(draft=STATUS))
    assert cluster.cache.diagnoses.draft(ONE) == STATUS
    assert kubernetes.requests == []
    apply(cluster, SNAPSHOT, Plan(status=STATUS))
    assert cluster.cache.diagnoses.drafted() == ()


# --- runner pods ------------------------------------------------------------------------------------------------------


def launch(cluster: Cluster) -> str:
    """Why the runner pod was not created; empty when it was."""
    return apply(cluster, SNAPSHOT, Plan(launches=(manifest(),))).get(POD_NAME, "")


def test_a_pod_that_a_former_operator_has_created_is_found() -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.pods[POD_NAME] = pod()
    assert launch(cluster) == ""
    assert names(cluster.cache.pods.all()) == [POD_NAME]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (AlreadyExistsError("x"), "the API server rejected the runner pod: pod memdiag-runners/where-.* delete it$"),
        (NotFoundError("x"), "there is no namespace memdiag-runners: apply memdiag's manifests"),
        (RefusedError("exceeded quota"), "the API server rejected the runner pod: exceeded quota$"),
        (RefusedError(f"{ADMISSION_POLICY} denied it"), "exempt the namespace memdiag-runners from it"),
    ],
)
def test_a_refusal_is_an_answer_and_what_else_is_planned_goes_on(error: Exception, why: str) -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.pods[POD_NAME] = pod(owner="somebody")
    kubernetes.fail("create_pod", error)
    refusals = apply(cluster, SNAPSHOT, Plan(launches=(manifest(), manifest(name="another"))))
    assert list(refusals) == [POD_NAME]
    assert re.search(why, refusals[POD_NAME])
    assert names(cluster.cache.pods.all()) == ["another"]


def test_a_pod_that_a_webhook_has_changed_is_removed() -> None:
    cluster, kubernetes = cluster_with()
    created = kubernetes.create_pod

    def with_sidecar(manifest: dict[str, Any]) -> tuple[Pod, dict[str, Any]]:
        made, whole = created(manifest)
        whole["spec"]["containers"].append({"name": "proxy", "image": "proxy"})
        return made, whole

    kubernetes.create_pod = with_sidecar  # type: ignore[method-assign] # as a webhook would
    why = launch(cluster)
    assert why.startswith(
        "the runner pod was changed during admission and deleted: container proxy was added. If a webhook"
    )
    assert kubernetes.pods == {}
    assert cluster.cache.pods.all() == ()


def test_an_api_server_that_does_not_answer_refuses_nothing() -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.fail("create_pod", UnavailableError("no answer"))
    with pytest.raises(UnavailableError):
        launch(cluster)


@pytest.mark.parametrize("plan", [Plan(stops=(OLD,)), Plan(removals=(OLD,))], ids=["to be stopped", "to be removed"])
def test_a_pod_that_is_gone_already_is_forgotten(plan: Plan) -> None:
    cluster, kubernetes = cluster_with(pod(name="old"))
    kubernetes.pods.clear()
    apply(cluster, SNAPSHOT, plan)
    assert cluster.cache.pods.all() == ()


def test_another_pod_of_the_same_name_stays() -> None:
    cluster, kubernetes = cluster_with(pod(name="old"))
    another = kubernetes.pods["old"].metadata.model_copy(update={"uid": "another"})
    kubernetes.pods["old"] = kubernetes.pods["old"].model_copy(update={"metadata": another})
    apply(cluster, SNAPSHOT, Plan(removals=(OLD,)))
    assert list(kubernetes.pods) == ["old"]
    assert cluster.cache.pods.all() == ()


def test_a_pod_that_takes_its_time_to_go_is_known_to_be_going() -> None:
    cluster, kubernetes = cluster_with(pod(name="old"))
    leaving = pod(name="old", deleted=True)
    kubernetes.delete_pod = lambda *_, **__: leaving  # type: ignore[method-assign] # its kubelet has yet to end it
    apply(cluster, SNAPSHOT, Plan(removals=(OLD,)))
    assert cluster.cache.pods.get("old") == leaving


# --- what may fail without harm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AlreadyExistsError("is there"), RefusedError("too large")])
def test_a_report_that_is_there_or_is_refused_does_not_stop_the_plan(error: Exception) -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.fail("create_report", error)
    apply(cluster, SNAPSHOT, Plan(reports=(REPORT,), status=STATUS))
    assert kubernetes.asked("write_status") == [NAME]
    assert cluster.cache.reports.all() == ()


def test_a_report_that_may_have_been_lost_stops_the_plan() -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.fail("create_report", UnavailableError("no answer"))
    with pytest.raises(UnavailableError):
        apply(cluster, SNAPSHOT, Plan(reports=(REPORT,), status=STATUS))
    assert kubernetes.asked("write_status") == []


@pytest.mark.parametrize("error", [AlreadyExistsError("is there"), UnavailableError("no answer"), RefusedError("no")])
def test_events_are_a_courtesy(error: Exception) -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.fail("create_event", error)
    apply(cluster, SNAPSHOT, WHOLE)
    assert kubernetes.asked("delete_diagnosis") == [NAME]


def test_reports_of_former_runs_may_stay_for_a_while() -> None:
    cluster, kubernetes = cluster_with()
    former = StoredReport("of a former run", Run(UID, "former"), NOW, 1)
    cluster.cache.reports.put(former)
    kubernetes.fail("delete_reports", UnavailableError("no answer"))
    apply(cluster, SNAPSHOT, Plan(report_cleanup=ReportCleanup(UID, (RUN,))))
    assert cluster.cache.reports.all() == (former,)


def test_an_event_is_one_object_for_a_run_however_often_it_is_created() -> None:
    cluster, kubernetes = cluster_with()
    plan = Plan(announcements=(Announcement("Warning", "Completed", "x" * 2000),))
    apply(cluster, SNAPSHOT, plan)
    apply(cluster, SNAPSHOT, plan)
    first, second = kubernetes.events
    assert first["metadata"] == second["metadata"]
    assert (first["type"], len(first["message"]), first["involvedObject"]["uid"]) == ("Warning", 1024, UID)


# --- the budget of reports --------------------------------------------------------------------------------------------


def test_the_reports_of_the_oldest_ended_runs_go_first() -> None:
    cluster, kubernetes = cluster_with(limits=LimitSettings(stored_reports_mebibytes=1))
    half = 600 * 1024
    unfinished = StoredReport("unfinished", Run(UID, RUN), ago(300), half)
    newer = StoredReport("newer", Run("ended", "newer"), ago(100), 1)
    for report in (unfinished, StoredReport("older", Run("ended", "older"), ago(200), half), newer):
        cluster.cache.reports.put(report)
    assert delete_old_reports(cluster) == 1
    assert kubernetes.requests == [
        f"delete_reports {naming.DIAGNOSIS_UID_LABEL}=ended,{naming.RUN_ID_LABEL}=older",
    ]
    assert set(cluster.cache.reports.all()) == {unfinished, newer}
    assert delete_old_reports(cluster) == 0
