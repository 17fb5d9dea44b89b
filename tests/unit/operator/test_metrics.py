"""Metrics: what a plan, a sweep and a request count as, and that nothing of a user's choice becomes a label."""

import re
from itertools import product
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import NodeResult
from memdiag_operator.cluster.requests import classify
from memdiag_operator.decide.changes import NodeStep, RunEnd, node_steps, run_end, run_starts
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.reconcile import reconcile
from memdiag_operator.decide.slots import allot
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.kube.objects import Diagnosis
from memdiag_operator.metrics import FAILURES, VERDICTS, OperatorMetrics
from memdiag_operator.results.receive import RunnerOutput
from support.evidence import evidence_with
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
    running_status,
    terminated,
)

NEW = diagnosis()
AT_WORK = diagnosis(
    status=running_status(result=NodeResult(node_name=NODE, pod_name=POD_NAME, reason=Reason.RUNNING), started=ago(75))
)


def plan_for(one: Diagnosis, *, with_result: bool = False) -> Plan:
    if not with_result:
        return reconcile(Snapshot(one, nodes={NODE: node()}), CONFIG, NOW)
    message, log = delivered(evidence_with(run_id=RUN))
    done = pod(phase="Succeeded", state=terminated(message))
    outputs = {POD_NAME: RunnerOutput(log=log)}
    return reconcile(Snapshot(one, nodes={NODE: node()}, pods=(done,), outputs=outputs), CONFIG, NOW)


def samples(metrics: OperatorMetrics, family: str) -> dict[tuple[str, ...], float]:
    """The values of a metric, by its labels' values in the order of the labels' names."""
    text = generate_latest(metrics.registry).decode()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for one in text_string_to_metric_families(text)
        for sample in one.samples
        if sample.name == family
    }


# --- what a plan changes ----------------------------------------------------------------------------------------------


def test_a_run_starts_once() -> None:
    plan = plan_for(NEW)
    assert run_starts(NEW, plan)
    assert plan.status
    started = diagnosis(status=plan.status.to_json_object())
    assert not run_starts(started, plan_for(started))


def test_each_nodes_step_is_reported_once_and_progress_is_not_a_step() -> None:
    assert [(step.node_name, step.reason) for step in node_steps(NEW, plan_for(NEW))] == [(NODE, "Pending")]
    (done,) = node_steps(AT_WORK, plan_for(AT_WORK, with_result=True))
    assert (done.node_name, done.reason) == (NODE, "Completed")
    (lost,) = node_steps(AT_WORK, plan_for(AT_WORK))
    assert isinstance(lost, NodeStep)
    assert lost.reason == "RunnerEvicted"
    assert node_steps(AT_WORK, Plan()) == []


def test_the_end_of_a_run_has_its_reason_its_verdict_and_its_duration() -> None:
    assert run_end(AT_WORK, plan_for(AT_WORK, with_result=True)) == RunEnd(
        "succeeded", "Completed", "PinnedByUnreadSocket", 75.0, ("Completed",)
    )
    assert run_end(AT_WORK, plan_for(AT_WORK)) == RunEnd(
        "failed", "RunnerEvicted", "NoResult", 75.0, ("RunnerEvicted",)
    )
    assert run_end(NEW, plan_for(NEW)) is None


def test_a_rerun_that_ends_as_it_starts_is_an_end_too() -> None:
    ended = plan_for(AT_WORK, with_result=True).status
    assert ended
    before = diagnosis(status=ended.to_json_object())
    again = Plan(status=ended.model_copy(update={"run_id": "another", "start_time": NOW}))
    assert run_starts(before, again)
    end = run_end(before, again)
    assert end
    assert end.duration_seconds == 0


def test_a_finished_run_does_not_end_again() -> None:
    ended = plan_for(AT_WORK, with_result=True)
    assert ended.status
    done = diagnosis(status=ended.status.to_json_object())
    assert run_end(done, Plan(status=ended.status)) is None


def test_the_queue_is_who_has_no_runner_yet_and_the_slots_are_held_by_runners() -> None:
    waiting = [
        diagnosis(name=f"d{number}", uid=f"uid-{number}", node=f"node-{number}", status=running_status())
        for number in range(5)
    ]
    busy = [pod(name=f"other-{number}", node_name=f"busy-{number}") for number in range(2)]
    done = pod(name="done", node_name="busy-9", phase="Succeeded", state=terminated())
    allotment = allot(fleet((*busy, done), waiting), 3, NOW)
    assert (allotment.slots_used, allotment.queue_length) == (2, 5)


# --- what is counted --------------------------------------------------------------------------------------------------


def test_a_run_is_counted_at_its_start_and_at_its_end() -> None:
    metrics = OperatorMetrics()
    metrics.applied(NEW, plan_for(NEW))
    assert samples(metrics, "memdiag_runs_started_total") == {(): 1}
    assert sum(samples(metrics, "memdiag_runs_total").values()) == 0
    metrics.applied(AT_WORK, plan_for(AT_WORK, with_result=True))
    metrics.applied(AT_WORK, plan_for(AT_WORK))
    metrics.applied(AT_WORK, Plan())
    runs = {labels: value for labels, value in samples(metrics, "memdiag_runs_total").items() if value}
    assert runs == {("Completed", "succeeded"): 1, ("RunnerEvicted", "failed"): 1}
    assert samples(metrics, "memdiag_run_duration_seconds_sum") == {("failed",): 75, ("succeeded",): 75}
    assert samples(metrics, "memdiag_verdicts_total")[("PinnedByUnreadSocket",)] == 1
    assert samples(metrics, "memdiag_node_results_total")[("RunnerEvicted",)] == 1


def test_every_reason_has_its_series_from_the_start() -> None:
    metrics = OperatorMetrics()
    ends = {("Completed", "succeeded"), *product(FAILURES, ("failed",))}
    assert samples(metrics, "memdiag_runs_total") == dict.fromkeys(ends, 0)
    goes_on = {Reason.PENDING, Reason.LIMIT_REACHED, Reason.RUNNING, Reason.SUSPENDED}
    reported = {*FAILURES, *VERDICTS, Reason.COMPLETED} | goes_on
    assert reported == set(Reason)


def test_a_refused_report_is_counted_and_one_that_is_there_is_not() -> None:
    metrics = OperatorMetrics()
    for code in ("201", "409", "none", "500"):
        metrics.requested("create", "memorydiagnosisreports", code)
    assert samples(metrics, "memdiag_reports_refused_total") == {(): 0}
    metrics.requested("create", "memorydiagnosisreports", "422")
    assert samples(metrics, "memdiag_reports_refused_total") == {(): 1}
    assert len(samples(metrics, "memdiag_api_requests_total")) == 5


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    page = (Path(__file__).parents[3] / "docs/observability.md").read_text()
    documented = {
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(memdiag_\w+)`", line)
    }
    text = generate_latest(OperatorMetrics().registry).decode()
    exposed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE memdiag_")}
    assert documented == exposed


REQUESTS = {
    "one diagnosis": ("GET", "/apis/memdiag.dev/v1alpha1/memorydiagnoses/secret-name", ("get", "memorydiagnoses")),
    "all diagnoses": ("GET", "/apis/memdiag.dev/v1alpha1/memorydiagnoses?limit=500", ("list", "memorydiagnoses")),
    "a status": (
        "PUT",
        "/apis/memdiag.dev/v1alpha1/memorydiagnoses/secret-name/status",
        ("update", "memorydiagnoses/status"),
    ),
    "a pod": ("POST", "/api/v1/namespaces/memdiag-runners/pods", ("create", "pods")),
    "a pod's deadline": ("PATCH", "/api/v1/namespaces/memdiag-runners/pods/secret-name", ("patch", "pods")),
    "a pod's end": ("DELETE", "/api/v1/namespaces/memdiag-runners/pods/secret-name", ("delete", "pods")),
    "a log": (
        "GET",
        "/api/v1/namespaces/memdiag-runners/pods/secret-name/log?limitBytes=9",
        ("get", "pods/log"),
    ),
    "pods of all namespaces": ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dsecret-name", ("list", "pods")),
    "a watch": ("GET", "/api/v1/namespaces/memdiag-runners/pods?watch=true", ("watch", "pods")),
    "a node": ("GET", "/api/v1/nodes/secret-name", ("get", "nodes")),
    "a namespace": ("GET", "/api/v1/namespaces/secret-name", ("get", "namespaces")),
    "an event": ("POST", "/api/v1/namespaces/default/events", ("create", "events")),
}


@pytest.mark.parametrize(("method", "path", "expected"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_is_named_as_rbac_names_it_without_the_objects_name(
    method: str, path: str, expected: tuple[str, str]
) -> None:
    assert classify(method, f"https://10.96.0.1:443{path}") == expected
