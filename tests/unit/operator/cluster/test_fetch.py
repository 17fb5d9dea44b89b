"""What a decision asks for is read once, from the cache where that will do."""

import json
from collections.abc import Iterable
from datetime import timedelta
from math import inf

import pytest

from memdiag_api.diagnosis import Target
from memdiag_api.history import RunSummary
from memdiag_operator.cluster import fetch as module
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import UnavailableError
from memdiag_operator.cluster.fetch import fetch, read_snapshot, reread
from memdiag_operator.decide.snapshot import Needs, Snapshot
from memdiag_operator.decide.stored_reports import Run, StoredReport
from memdiag_operator.kube.objects import Diagnosis, Node, Pod
from support.fake_kubernetes import FakeKubernetes
from support.kubernetes_objects import CONFIG, NAME, NODE, NOW, POD_NAME, RUN, UID, diagnosis, node, pod, running_status

ONE = diagnosis(status=running_status())
KNOWN = Snapshot(diagnosis=ONE)


def cluster_with(
    *, diagnoses: Iterable[Diagnosis] = (ONE,), nodes: Iterable[Node] = (), pods: Iterable[Pod] = ()
) -> tuple[Cluster, FakeKubernetes]:
    """A cluster whose cache is filled, and its API server, which has been asked for nothing since."""
    kubernetes = FakeKubernetes(diagnoses=diagnoses, nodes=nodes, pods=pods)
    cluster = Cluster(kubernetes, CONFIG)
    cluster.refill()
    kubernetes.requests.clear()
    return cluster, kubernetes


# --- the diagnosis and its pods ---------------------------------------------------------------------------------------


def test_a_snapshot_has_the_pods_that_the_diagnosis_owns_and_costs_no_request() -> None:
    own, other = pod(), pod(name="other", owner="somebody")
    cluster, kubernetes = cluster_with(pods=(own, other))
    snapshot = read_snapshot(cluster, NAME)
    assert snapshot
    assert (snapshot.diagnosis, snapshot.pods, snapshot.stored) == (ONE, (own,), None)
    assert kubernetes.requests == []


def test_there_is_no_snapshot_of_what_does_not_exist() -> None:
    assert read_snapshot(cluster_with()[0], "another") is None


def test_a_snapshot_goes_on_from_the_draft_and_keeps_what_is_stored() -> None:
    cluster, _ = cluster_with()
    draft = ONE.status.model_copy(update={"progress": "Tracing 41%"})
    cluster.cache.diagnoses.keep_draft(ONE.model_copy(update={"status": draft}))
    snapshot = read_snapshot(cluster, NAME)
    assert snapshot
    assert (snapshot.diagnosis.status, snapshot.stored) == (draft, ONE.status)


def test_what_a_write_has_shown_to_be_old_is_read_again_and_what_is_gone_dropped() -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.change(NAME, progress="later")
    reread(cluster, NAME)
    found = cluster.cache.diagnoses.get(NAME)
    assert found
    assert found.status.progress == "later"
    del kubernetes.diagnoses[NAME]
    reread(cluster, NAME)
    assert cluster.cache.diagnoses.get(NAME) is None


def test_a_pod_that_the_cache_lacks_is_asked_for_by_name() -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.pods[POD_NAME] = pod()
    snapshot = fetch(cluster, Needs(KNOWN, pods=(POD_NAME, "vanished")), 0)
    assert (snapshot.pods, snapshot.absent_pods) == ((pod(),), frozenset({"vanished"}))
    assert kubernetes.requests == [f"read_pod {POD_NAME}", "read_pod vanished"]


def test_a_pod_of_the_right_name_and_another_owner_is_not_its_runner() -> None:
    cluster, kubernetes = cluster_with(pods=(pod(owner="somebody"),))
    snapshot = fetch(cluster, Needs(KNOWN, pods=(POD_NAME,)), 0)
    assert (snapshot.pods, snapshot.absent_pods) == ((), frozenset({POD_NAME}))
    assert kubernetes.requests == []


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_a_node_is_read_when_no_reading_is_young_enough() -> None:
    cluster, kubernetes = cluster_with(nodes=(node(), node("other")))
    for max_age_seconds in (inf, inf, 3600, -1, inf):
        assert fetch(cluster, Needs(KNOWN, nodes={NODE: max_age_seconds}), 0).nodes == {NODE: node()}
    assert kubernetes.asked("read_node") == [NODE, NODE]


def test_a_node_that_does_not_exist_is_known_not_to() -> None:
    cluster, _ = cluster_with()
    assert fetch(cluster, Needs(KNOWN, nodes={"none": inf}), 0).nodes == {"none": None}


def test_a_node_to_launch_on_is_read_unless_it_was_since_the_diagnosis() -> None:
    cluster, kubernetes = cluster_with(nodes=(node(),))
    needs = Needs(KNOWN, fresh_nodes=(NODE,))
    cluster.cache.nodes.put(node(uid="the one before"))
    snapshot = fetch(cluster, needs, -1)
    assert snapshot.nodes == {NODE: node()}
    assert snapshot.fresh_nodes == {NODE}
    assert fetch(cluster, needs, 3600).nodes == {NODE: node()}
    assert kubernetes.asked("read_node") == [NODE]


def test_what_is_known_of_other_nodes_stays() -> None:
    cluster, _ = cluster_with(nodes=(node(),))
    known = Snapshot(diagnosis=ONE, nodes={"other": None}, fresh_nodes=frozenset({"other"}))
    snapshot = fetch(cluster, Needs(known, nodes={NODE: inf}), 0)
    assert snapshot.nodes == {"other": None, NODE: node()}
    assert snapshot.fresh_nodes == {"other"}


def test_an_api_server_that_does_not_respond_is_not_a_missing_node() -> None:
    cluster, kubernetes = cluster_with(nodes=(node(),))
    kubernetes.fail("read_node", UnavailableError("no answer"))
    with pytest.raises(UnavailableError):
        fetch(cluster, Needs(KNOWN, nodes={NODE: inf}), 0)


# --- what a run is about ----------------------------------------------------------------------------------------------


def test_candidates_are_one_list_and_need_not_be_read_again() -> None:
    nodes = tuple(node(f"node-{number}") for number in range(5))
    cluster, kubernetes = cluster_with(nodes=nodes)
    target = Target.model_validate({"nodeSelector": {"matchLabels": {"pool": "web"}}, "maxNodes": 3})
    snapshot = fetch(cluster, Needs(KNOWN, candidates=target), 0)
    assert snapshot.candidates
    assert (snapshot.candidates.nodes, snapshot.candidates.pod) == (nodes, None)
    fetch(cluster, Needs(KNOWN, fresh_nodes=("node-0", "node-2", "node-3")), 3600)
    assert kubernetes.requests == ["list_nodes pool=web", "read_node node-3"]


@pytest.mark.parametrize("found", [None, pod(name="web-0")])
def test_the_target_pod_is_found_or_known_not_to_exist(found: Pod | None) -> None:
    cluster, kubernetes = cluster_with(pods=(found,) if found else ())
    target = Target.model_validate({"podRef": {"namespace": "shop", "name": "web-0"}})
    snapshot = fetch(cluster, Needs(KNOWN, candidates=target), 0)
    assert snapshot.candidates
    assert snapshot.candidates.pod == found
    assert kubernetes.requests == ["find_pod shop/web-0"]


# --- what runners left ------------------------------------------------------------------------------------------------


def test_only_some_results_are_read_at_once() -> None:
    ended = tuple(pod(name=f"runner-{number}") for number in range(module.RESULTS_AT_ONCE + 3))
    cluster, kubernetes = cluster_with(pods=ended)
    snapshot = fetch(cluster, Needs(KNOWN, outputs=ended), 0)
    assert snapshot.outputs
    assert len(snapshot.outputs) == module.RESULTS_AT_ONCE == len(kubernetes.asked("read_log"))
    assert snapshot.events == {}


def test_a_log_that_cannot_be_read_costs_only_its_own_result() -> None:
    ended = pod(name="bad"), pod(name="good")
    cluster, kubernetes = cluster_with(pods=ended)
    kubernetes.fail("read_log", UnavailableError("no route to the kubelet"))
    outputs = fetch(cluster, Needs(KNOWN, outputs=ended), 0).outputs
    assert outputs
    assert (outputs["bad"].log, outputs["bad"].log_error) == (None, "no route to the kubelet")
    assert (outputs["good"].log, outputs["good"].node_pods) == (b"", ended)


def test_the_room_for_reports_is_what_unfinished_runs_leave_of_the_budget() -> None:
    cluster, _ = cluster_with(pods=(pod(),))
    cluster.cache.reports.put(StoredReport("mine", Run(UID, RUN), NOW, 1000))
    cluster.cache.reports.put(StoredReport("of an ended run", Run("another", "run"), NOW, 500))
    snapshot = fetch(cluster, Needs(KNOWN, outputs=(pod(),)), 0)
    assert snapshot.report_room_bytes == CONFIG.limits.stored_reports_bytes - 1000


def test_events_explain_and_may_be_missing() -> None:
    cluster, kubernetes = cluster_with()
    kubernetes.fail("list_pod_events", UnavailableError("no answer"))
    snapshot = fetch(cluster, Needs(KNOWN, events=(pod(name="a"), pod(name="b"))), 0)
    assert snapshot.events
    assert {name: [event.reason for event in events] for name, events in snapshot.events.items()} == {
        "a": [],
        "b": ["FailedMount"],
    }
    assert snapshot.outputs == {}


# --- earlier runs -----------------------------------------------------------------------------------------------------


def stored(name: str, seconds: int, node_name: str = NODE) -> StoredReport:
    return StoredReport(name, Run("another", name), NOW - timedelta(seconds=seconds), 1000, node_name)


def report_of(run_id: str, node_name: str = NODE) -> bytes:
    run = RunSummary(run_id=run_id, end_time=NOW, boot_id="b", mem_total_bytes=1, alloc_page_bytes=1)
    return json.dumps({"nodeName": node_name, "evidence": {"summary": run.to_json_object()}}).encode()


def with_reports(*reports: StoredReport) -> tuple[Cluster, FakeKubernetes]:
    cluster, kubernetes = cluster_with()
    kubernetes.reports = reports
    return cluster, kubernetes


def test_the_newest_report_of_a_node_has_its_history() -> None:
    cluster, kubernetes = with_reports(stored("old", 60), stored("new", 30), stored("foreign", 10, "other"))
    kubernetes.histories = {"old": report_of("1"), "new": report_of("2"), "foreign": report_of("3", "other")}
    snapshot = fetch(cluster, Needs(KNOWN, histories=(NODE, "unknown")), 0)
    assert {name: [one.run_id for one in runs] for name, runs in snapshot.histories.items()} == {
        NODE: ["2"],
        "unknown": [],
    }
    assert kubernetes.requests == ["list_reports", "read_history new"]
    fetch(cluster, Needs(KNOWN, histories=(NODE,)), 0)
    assert kubernetes.asked("list_reports") == [""], "a list that is known is not read again"


def test_a_deleted_report_leaves_the_one_before_it() -> None:
    cluster, kubernetes = with_reports(stored("old", 60), stored("new", 30))
    kubernetes.histories = {"old": report_of("1")}
    assert [one.run_id for one in fetch(cluster, Needs(KNOWN, histories=(NODE,)), 0).histories[NODE]] == ["1"]


@pytest.mark.parametrize(
    ("method", "report"),
    [("list_reports", report_of("1")), ("read_history", report_of("1")), ("none", report_of("1", "another node"))],
)
def test_a_runner_starts_without_a_history_that_cannot_be_read(method: str, report: bytes) -> None:
    cluster, kubernetes = with_reports(stored("new", 30))
    kubernetes.histories = {"new": report}
    kubernetes.fail(method, UnavailableError("no answer"))
    assert not fetch(cluster, Needs(KNOWN, histories=(NODE,)), 0).histories.get(NODE)


def test_reading_histories_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HISTORIES_SECONDS", -1.0)
    cluster, kubernetes = with_reports(stored("new", 30))
    kubernetes.histories = {"new": report_of("1")}
    assert fetch(cluster, Needs(KNOWN, histories=(NODE,)), 0).histories == {NODE: ()}
    assert kubernetes.asked("read_history") == []
