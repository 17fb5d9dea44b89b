"""Whole runs by the decisions alone: on one node, on a thousand, again; how often and how much is written."""

from datetime import timedelta

import pytest

from memdiag_api.conditions import ConditionType, Reason
from memdiag_api.diagnosis import MemoryDiagnosisStatus, NodeResult, VerdictSummary
from memdiag_api.evidence import VerdictKind
from memdiag_api.findings import Confidence
from memdiag_operator.config import OperatorConfig, SweepSettings
from memdiag_operator.decide import pace
from memdiag_operator.decide.pace import pause_seconds, size_bytes
from memdiag_operator.kube import naming
from memdiag_operator.status.progress import tick_seconds, tracing
from memdiag_operator.status.trim import most_relevant
from support.clockwork import HEALTHY, WEB, Clockwork, answers_on, found_on, largest_run, of_many
from support.kubernetes_objects import CONFIG, NAME, NOW, RUN, UID, diagnosis, node, pod


def condition(status: MemoryDiagnosisStatus, kind: ConditionType) -> tuple[str, str, str]:
    (found,) = [one for one in status.conditions if one.type is kind]
    return found.status, found.reason, found.message


# --- one node ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("duration", "seconds"), [("5s", 5), ("60s", 60), ("30m", 1800)])
def test_a_run_on_one_node_writes_its_status_few_times(duration: str, seconds: int) -> None:
    one = diagnosis(spec={"duration": duration, "activeDeadlineSeconds": 86400})
    clock = Clockwork(one, {"node1": node()}, found_on, duration_seconds=seconds)
    clock.run(seconds + 60)
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == Reason.COMPLETED
    # start with the pod created, starting, result; at most 20 of progress
    assert len(clock.statuses) <= 20 + 3


def test_progress_moves_forward_step_by_step_and_ends_at_a_hundred() -> None:
    config = OperatorConfig(runner=CONFIG.runner, sweep=SweepSettings(active_seconds=1))
    clock = Clockwork(diagnosis(), {"node1": node()}, found_on, config)
    clock.run(120)
    reported = [status.progress for status in clock.statuses]
    assert reported[:2] == ["Waiting 0%", "Starting 5%"]  # the run starts, and its pod is created, in one write
    assert reported[2:5] == ["Tracing 5%", "Tracing 23%", "Tracing 41%"]
    assert reported[-2:] == ["Tracing 77%", "Done 100%"]
    percents = [status.progress_percent or 0 for status in clock.statuses]
    assert percents == sorted(percents)
    settled = clock.status.results[0]
    assert (settled.step, settled.progress_percent) == (None, None)


def test_a_check_that_waits_for_nothing_has_no_window() -> None:
    clock = Clockwork(diagnosis(spec={"checks": ["Breakdown"]}), {"node1": node()}, found_on)
    clock.run(30)
    assert clock.status.progress == "Collecting 95%"
    assert condition(clock.status, ConditionType.RECONCILING)[2] == "the runner is running on node node1"


@pytest.mark.parametrize(
    ("window", "nodes", "tick"),
    [(60, 1, 12), (1800, 1, 90), (1800, 5, 450), (60, 3, 60), (60, 1000, 60), (5, 1, 5), (0, 1, 5)],
)
def test_progress_is_seldom_reported(window: int, nodes: int, tick: int) -> None:
    assert tick_seconds(window, nodes) == tick


def test_the_percent_of_a_trace_stays_between_its_neighbours() -> None:
    assert [tracing(seconds, 60).percent for seconds in (0, 30, 60, 6000)] == [5, 50, 95, 95]
    assert tracing(9, 0).percent == 5


# --- gates ------------------------------------------------------------------------------------------------------------

LEAK, SUSPICIOUS = VerdictKind.PINNED_BY_UNREAD_SOCKET, VerdictKind.SUSPICIOUS_MEMORY


@pytest.mark.parametrize(
    ("fail_on", "kinds", "succeeded"),
    [
        ("Never", [LEAK], ("True", "Completed")),
        ("LeakDetected", [LEAK], ("False", "LeakFound")),
        ("LeakDetected", [SUSPICIOUS], ("True", "Completed")),
        ("LeakDetected", [HEALTHY, LEAK], ("False", "LeakFound")),
        ("NotProvenClean", [HEALTHY], ("True", "Completed")),
        ("NotProvenClean", [LEAK], ("False", "LeakFound")),
        ("NotProvenClean", [SUSPICIOUS], ("False", "LeakNotExcluded")),
        ("NotProvenClean", [HEALTHY, HEALTHY], ("True", "Completed")),
        ("NotProvenClean", [HEALTHY, SUSPICIOUS], ("False", "LeakNotExcluded")),
        ("NotProvenClean", [LEAK, SUSPICIOUS], ("False", "LeakFound")),
        ("NotProvenClean", [HEALTHY, None], ("False", "PartialResults")),
        ("NotProvenClean", [None], ("False", "RunnerFailed")),
    ],
)
def test_a_gate_on_whole_runs(fail_on: str, kinds: list[VerdictKind | None], succeeded: tuple[str, str]) -> None:
    nodes = {f"node-{number}": node(f"node-{number}", labels=WEB) for number in range(len(kinds))}
    answers = dict(zip(nodes, kinds, strict=True))
    target = {"nodeSelector": {"matchLabels": WEB}, "maxNodes": len(kinds)}
    clock = Clockwork(
        diagnosis(spec={"target": target, "failOn": fail_on}),
        nodes,
        lambda name, run: answers_on(name, run, kind) if (kind := answers[name]) else None,
    )
    clock.run(300)
    assert condition(clock.status, ConditionType.SUCCEEDED)[:2] == succeeded
    is_clean = all(kind is HEALTHY for kind in kinds)
    assert (condition(clock.status, ConditionType.LEAK_DETECTED)[0] == "False") == is_clean
    stalled = condition(clock.status, ConditionType.STALLED)
    assert stalled[:2] == ("False" if succeeded[0] == "True" else "True", succeeded[1])


def test_the_first_finding_of_the_strongest_node_is_shown_and_all_of_them_are_ranked() -> None:
    nodes = {name: node(name, labels=WEB) for name in ("clean", "doubtful")}
    target = {"nodeSelector": {"matchLabels": WEB}, "maxNodes": 2}
    clock = Clockwork(
        diagnosis(spec={"target": target}),
        nodes,
        lambda name, run: answers_on(name, run, SUSPICIOUS if name == "doubtful" else HEALTHY),
    )
    clock.run(300)
    status = clock.status
    assert status.suspect == "doubtful: AllocPage 6.00 GiB: unexplained"
    assert [(one.node_name, one.leak_detected) for one in status.results] == [
        ("doubtful", "Unknown"),
        ("clean", "False"),
    ]
    assert [one.kind for one in status.results[0].findings] == ["Unexplained", "ProcessMemory"]
    assert {one.node_name: one.leak_detected for one in status.node_states} == {"doubtful": "Unknown", "clean": "False"}
    leak = condition(status, ConditionType.LEAK_DETECTED)
    assert leak[:2] == ("Unknown", "SuspiciousMemory")
    assert "First finding: AllocPage 6.00 GiB: unexplained." in leak[2]
    assert "The answer is SuspiciousMemory." in leak[2]


def test_a_run_on_many_nodes_with_ranked_findings_fits() -> None:
    """Sixteen nodes with a leak and ten findings each."""
    nodes = {f"node-{number:02}": node(f"node-{number:02}", labels=WEB) for number in range(16)}
    target = {"nodeSelector": {"matchLabels": WEB}, "maxNodes": 16}
    clock = Clockwork(
        diagnosis(spec={"target": target}), nodes, lambda name, run: answers_on(name, run, LEAK), duration_seconds=5
    )
    clock.run(900)
    assert size_bytes(clock.status) < 64 * 1024
    assert clock.status.truncated
    assert len(clock.status.results) == 16
    assert all(one.findings for one in clock.status.results)


# --- many nodes -------------------------------------------------------------------------------------------------------


def test_every_node_gets_its_runner_never_more_than_there_are_slots() -> None:
    clock = of_many(10, leaks=(4,))
    clock.run(3600)
    assert clock.most_runners == CONFIG.max_concurrent_runners
    assert len(set(clock.reports)) == len(clock.reports) == 10
    status = clock.status
    assert status.nodes
    assert (status.nodes.total, status.nodes.succeeded, status.nodes.failed) == (10, 10, 0)
    assert status.progress == "10/10 nodes 100%"
    assert status.target == "10 with pool=web"
    assert condition(status, ConditionType.LEAK_DETECTED)[:2] == ("True", "PinnedByUnreadSocket")
    assert status.summary
    assert status.summary.startswith("A leak on 1 of 10 nodes. On node node-004, 6.00 GiB of kernel memory")
    assert status.results[0].node_name == "node-004"
    assert status.suspect == "node-004: nginx[4711] fd 11 (no pod): 3.00 MiB unread pins 5.00 GiB"
    assert {state.verdict for state in status.node_states} == {HEALTHY, VerdictKind.PINNED_BY_UNREAD_SOCKET}


def test_the_nodes_are_chosen_once() -> None:
    """Nodes that join and leave while the run is in progress do not change its nodes."""
    clock = of_many(4)
    clock.run(20)
    clock.nodes["node-000a"] = node("node-000a", labels=WEB)
    del clock.nodes["node-003"]
    clock.run(3600)
    assert {state.node_name: state.reason for state in clock.status.node_states} == {
        "node-000": "Completed",
        "node-001": "Completed",
        "node-002": "Completed",
        "node-003": "NodeLost",
    }
    succeeded = condition(clock.status, ConditionType.SUCCEEDED)
    assert succeeded[:2] == ("False", "PartialResults")
    assert "3 of 4 nodes delivered a result; node node-003 was removed from the cluster before its" in succeeded[2]


def test_what_arrived_is_kept_when_others_fail() -> None:
    clock = of_many(6, leaks=(1,), fails=(0, 5))
    clock.run(3600)
    assert condition(clock.status, ConditionType.SUCCEEDED)[:2] == ("False", "PartialResults")
    assert condition(clock.status, ConditionType.LEAK_DETECTED)[:2] == ("True", "PinnedByUnreadSocket")
    assert clock.status.nodes
    assert (clock.status.nodes.succeeded, clock.status.nodes.failed) == (4, 2)
    reasons = [result.reason for result in clock.status.results]
    assert reasons == ["Completed"] * 4 + ["RunnerFailed"] * 2


def test_a_leak_is_reported_before_the_run_is_over() -> None:
    clock = of_many(9, leaks=(0,))
    clock.run(80)
    assert not clock.diagnosis.is_finished
    assert condition(clock.status, ConditionType.LEAK_DETECTED)[0] == "True"
    assert clock.status.suspect
    assert condition(clock.status, ConditionType.SUCCEEDED)[0] == "Unknown"


def test_a_run_on_many_nodes_ends_in_time_with_what_it_has() -> None:
    clock = of_many(9, spec={"activeDeadlineSeconds": 100})
    clock.run(3600)
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == "PartialResults"
    reasons = [state.reason for state in clock.status.node_states]
    assert reasons.count("Completed") == 3
    assert reasons.count("DeadlineExceeded") == 6


def test_ending_a_run_early_keeps_what_has_come_and_starts_nothing_more() -> None:
    clock = of_many(9)
    clock.run(30)
    stored = clock.diagnosis.model_dump(mode="json", by_alias=True)["spec"]
    clock.store({"spec": {**stored, "terminate": True}})
    clock.run(120)
    reasons = [state.reason for state in clock.status.node_states]
    assert reasons == ["Terminated"] * 9
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == "Terminated"
    assert len(clock.reports) == 3
    assert sum(state.verdict is not None for state in clock.status.node_states) == 3


def test_a_runner_that_is_running_at_the_deadline_delivers_what_it_has() -> None:
    one = diagnosis(spec={"activeDeadlineSeconds": 100})
    clock = Clockwork(one, {"node1": node()}, found_on, duration_seconds=600)
    clock.run(200)
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == "DeadlineExceeded"
    assert clock.status.results[0].verdict
    assert len(clock.reports) == 1
    assert clock.runners == {}


def test_nodes_that_start_nothing_do_not_keep_others_from_theirs() -> None:
    """As many sick nodes as there are slots, which they hold for the grace and no longer."""
    clock = of_many(6, sick=frozenset({"node-000", "node-001", "node-002"}))
    clock.run(600)
    assert {state.node_name: state.reason for state in clock.status.node_states} == {
        "node-000": "RunnerFailed",
        "node-001": "RunnerFailed",
        "node-002": "RunnerFailed",
        "node-003": "Completed",
        "node-004": "Completed",
        "node-005": "Completed",
    }


def test_a_run_on_many_nodes_has_the_time_that_it_takes() -> None:
    """45 nodes by threes take more than the 900 s that are the default for one."""
    clock = of_many(45, spec={"activeDeadlineSeconds": 900})
    clock.run(7200, look_every_seconds=5)
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == "Completed"


def test_many_nodes_are_written_in_proportion_to_their_number() -> None:
    """Each node's turns are written, nothing for nodes whose turn has not come."""
    for count in (15, 30):
        clock = of_many(count)
        clock.run(7200)
        assert clock.diagnosis.is_finished
        assert len(clock.statuses) <= 6 * count


def test_a_thousand_nodes_fit() -> None:
    """The largest run there may be, with names as long as Kubernetes lets them be, and more long answers than fit."""
    one = largest_run()
    assert one.status.nodes
    assert (one.status.nodes.succeeded, one.status.nodes.failed) == (999, 1)
    assert len(one.reports) == 999
    assert len(one.status.results) == 16
    assert len(one.status.report_refs) == 15
    assert one.status.truncated
    assert [result.reason for result in one.status.results].count("RunnerFailed") == 1
    assert max(map(size_bytes, one.statuses)) < 230 * 1024


def test_a_run_on_many_nodes_is_written_in_a_bounded_number_of_bytes() -> None:
    one = of_many(300, leaks=(150,), config=CONFIG.model_copy(update={"max_concurrent_runners": 6}), duration_seconds=5)
    one.run(3600, look_every_seconds=2)
    assert one.status.nodes
    assert one.status.nodes.succeeded == len(one.reports) == 300
    seconds = (one.now - NOW).total_seconds()
    written = sum(map(size_bytes, one.statuses))
    assert written < pace.BYTES_PER_SECOND * seconds + 8 * size_bytes(one.status)
    assert written < 300 * size_bytes(one.status) / 4
    reported = [condition(status, ConditionType.LEAK_DETECTED)[0] for status in one.statuses]
    assert reported == sorted(reported, key=["Unknown", "True"].index)


@pytest.fixture
def written_seldom(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """A run on 40 nodes whose status is written as seldom as that of a thousand."""
    monkeypatch.setattr(pace, "LARGE_STATUS_BYTES", 1024)
    monkeypatch.setattr(pace, "BYTES_PER_SECOND", 256)
    return of_many(40, config=CONFIG.model_copy(update={"max_concurrent_runners": 5}), duration_seconds=5)


def completed(status: MemoryDiagnosisStatus) -> set[str]:
    return {state.node_name for state in status.node_states if state.reason == Reason.COMPLETED}


def test_what_is_not_written_yet_keeps_its_pod_and_is_read_once(written_seldom: Clockwork) -> None:
    one, unwritten = written_seldom, 0
    names = {node: naming.child_name(NAME, UID, RUN, node) for node in one.nodes}
    while not one.diagnosis.is_finished:
        one.run(1)
        stored = completed(one.status)
        without_pod = {node for node, runner in names.items() if runner in one.reports and runner not in one.runners}
        assert without_pod <= stored
        unwritten = max(unwritten, len(one.reports) - len(stored))
    assert unwritten > 10
    assert len(one.reports) == len(set(one.reports)) == 40
    assert completed(one.status) == set(names)


def test_an_operator_that_is_restarted_before_a_write_finds_the_results_again(written_seldom: Clockwork) -> None:
    one = written_seldom
    while one.draft is None or len(completed(one.draft) - completed(one.status)) < 10:
        one.run(1)
    decided = completed(one.draft)
    one.restart_operator()
    one.run(1)
    assert decided <= completed(one.status)
    one.run(600)
    assert len(completed(one.status)) == 40


def test_a_lost_node_does_not_keep_its_slot_until_a_late_write(written_seldom: Clockwork) -> None:
    """Its pod, which nothing ends, is removed after the write: that comes sooner."""
    one = written_seldom
    while one.draft is None or not completed(one.draft) - completed(one.status):
        one.run(1)
    one.nodes = {name: node(name, labels=WEB, ready="False", since=9999) for name in one.nodes}
    one.run(int(pace.PAUSE_WITH_SLOT_SECONDS) + 1)
    assert Reason.NODE_LOST in {state.reason for state in one.status.node_states}


def test_a_change_of_the_spec_is_answered_at_once(written_seldom: Clockwork) -> None:
    one = written_seldom
    while one.draft is None:
        one.run(1)
    spec = one.diagnosis.model_dump(mode="json", by_alias=True)["spec"]
    one.draft = None  # it was made for another version
    one.store({"spec": {**spec, "terminate": True}, "metadata": {"generation": 2}})
    one.run(1)
    assert one.status.observed_generation == 2


@pytest.mark.parametrize(
    ("status_bytes", "hours", "seconds"), [(16 * 1024 - 1, 0, 0), (200 * 1024, 0, 50), (200 * 1024, 8, 450)]
)
def test_a_large_status_is_written_seldom_and_in_a_long_run_more_so(
    status_bytes: int, hours: int, seconds: float
) -> None:
    assert pause_seconds(status_bytes, timedelta(hours=hours)) == seconds


def test_an_answer_that_is_left_off_the_status_is_still_counted() -> None:
    clock = of_many(40, leaks=(7, 39))
    clock.run(7200)
    assert [result.node_name for result in clock.status.results[:2]] == ["node-007", "node-039"]
    assert len(clock.status.results) == 16
    assert clock.status.truncated
    assert clock.status.nodes
    assert clock.status.nodes.succeeded == 40
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == "Completed"


def results(count: int, reason: Reason, verdict: VerdictSummary | None = None) -> list[NodeResult]:
    return [NodeResult(node_name=f"node-{number}", reason=reason, verdict=verdict) for number in range(count)]


def test_failures_are_shown_beside_answers_and_both_beside_what_goes_on() -> None:
    healthy = VerdictSummary(kind=HEALTHY, confidence=Confidence.HIGH, sentence="No leak.")
    answers, lost = results(20, Reason.COMPLETED, healthy), results(9, Reason.NODE_LOST)
    shown = most_relevant([*answers, *lost, *results(9, Reason.RUNNING)])
    assert [one.reason for one in shown] == ["Completed"] * 12 + ["NodeLost"] * 4
    few = most_relevant([*results(2, Reason.RUNNING), *results(20, Reason.PENDING), *lost[:3]])
    assert [one.reason for one in few] == ["NodeLost"] * 3 + ["Running"] * 2 + ["Pending"] * 11


# --- a pod's node -----------------------------------------------------------------------------------------------------


def test_the_node_of_a_pod_is_diagnosed_and_the_pod_is_reported() -> None:
    target = {"podRef": {"namespace": "web", "name": "nginx-7d4"}}
    one = Clockwork(diagnosis(spec={"target": target}), {"node1": node()}, found_on)
    one.target_pod = pod(name="nginx-7d4", node_name="node1")
    one.run(120)
    assert one.status.target == "web/nginx-7d4 on node1"
    assert one.status.results[0].target_pod
    assert one.status.summary
    assert one.status.summary.startswith("Pod web/nginx-7d4 ")


def test_a_pod_that_is_not_there_ends_the_run_at_once_with_one_event() -> None:
    target = {"podRef": {"namespace": "web", "name": "nginx-7d4"}}
    clock = Clockwork(diagnosis(spec={"target": target}), {"node1": node()}, found_on)
    clock.run(1)
    assert clock.diagnosis.is_finished
    assert clock.status.node_states == []
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == "PodNotFound"
    assert condition(clock.status, ConditionType.STALLED)[0] == "True"
    clock.run(5)
    assert len(clock.statuses) == 1


def test_labels_that_can_be_no_nodes_end_the_run_at_once() -> None:
    target = {"nodeSelector": {"matchLabels": {"a in (b)": "c"}}, "maxNodes": 1}
    clock = Clockwork(diagnosis(spec={"target": target}), {}, found_on)
    clock.run(1)
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == "InvalidSpec"


# --- again ------------------------------------------------------------------------------------------------------------


def test_the_run_before_is_remembered_in_short() -> None:
    clock = Clockwork(diagnosis(), {"node1": node()}, found_on)
    clock.run(120)
    first = clock.status
    assert first.last_run is None
    clock.annotate("again")
    clock.run(120)
    last = clock.status.last_run
    assert last
    assert (last.run_id, last.start_time, last.completion_time) == (
        first.run_id,
        first.start_time,
        first.completion_time,
    )
    assert (last.reason, last.leak_detected, last.verdict) == ("Completed", "False", "NoLeak")
    assert last.summary == first.summary
    assert clock.status.run_id != first.run_id
    assert clock.status.last_handled_request == "again"


def test_reports_of_the_last_runs_are_kept_and_older_ones_deleted() -> None:
    config = OperatorConfig(runner=CONFIG.runner, keep_reports_of_runs=2)
    clock = Clockwork(diagnosis(), {"node1": node()}, found_on, config=config)
    runs = []
    for number in range(5):
        clock.annotate(str(number))
        clock.run(120)
        runs.append(clock.status.run_id)
    assert len(set(runs)) == 5
    # The start of the fourth run removed the first one's, that of the fifth the second's.
    assert [cleanup.kept_runs for cleanup in clock.cleanups] == [
        (runs[3], runs[2], runs[1]),
        (runs[4], runs[3], runs[2]),
    ]
    assert clock.status.previous_run_ids == runs[3::-1]


def test_a_run_that_a_suspension_gave_up_is_not_the_run_before() -> None:
    clock = Clockwork(diagnosis(), {"node1": node()}, found_on)
    clock.run(120)
    first = clock.status.run_id
    clock.annotate("again")
    clock.run(10)
    given_up = clock.status.run_id
    clock.store({"spec": {"target": {"nodeName": "node1"}, "suspend": True}})
    clock.run(2)
    assert clock.status.progress is None
    assert clock.runners == {}
    clock.store({"spec": {"target": {"nodeName": "node1"}, "suspend": False}})
    clock.run(120)
    assert clock.status.last_run
    assert clock.status.last_run.run_id == first
    assert clock.status.previous_run_ids == [given_up, first]


def test_a_status_without_nodes_starts_again_instead_of_waiting_endlessly() -> None:
    """A run without nodes, for any reason, would never end."""
    target = {"nodeSelector": {"matchLabels": WEB}, "maxNodes": 1}
    broken = {"observedGeneration": 1, "runID": "x", "startTime": "2026-03-01T11:59:00Z"}
    clock = Clockwork(diagnosis(spec={"target": target}, status=broken), {"node1": node(labels=WEB)}, found_on)
    clock.run(120)
    assert condition(clock.status, ConditionType.SUCCEEDED)[1] == "Completed"
