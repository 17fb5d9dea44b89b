"""The sweep reconciles everything that needs work, and nothing else; nothing ends it."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import pytest

from memdiag_api.diagnosis import NodeResult
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import UnavailableError
from memdiag_operator.config import LimitSettings
from memdiag_operator.decide.stored_reports import Run, StoredReport
from memdiag_operator.kube.objects import Diagnosis, Pod
from memdiag_operator.loop import sweep as module
from memdiag_operator.loop.reconciler import Reconciler
from memdiag_operator.loop.sweep import Sweep
from memdiag_operator.metrics import OperatorMetrics
from support.fake_kubernetes import FakeKubernetes
from support.kubernetes_objects import CONFIG, NODE, NOW, ago, diagnosis, node, pod, running_status, timestamp


class Recorder(Reconciler):
    """Records which diagnoses it was asked to reconcile."""

    def __init__(self, kubernetes: FakeKubernetes, **config: Any) -> None:
        super().__init__(Cluster(kubernetes, CONFIG.model_copy(update=config)), OperatorMetrics())
        self.looked: list[str] = []

    async def reconcile(self, name: str) -> None:
        self.looked.append(name)

    def sample(self, name: str) -> float | None:
        """The value of a metric."""
        return self.metrics.registry.get_sample_value(name)


def recorder_of(diagnoses: Iterable[Diagnosis] = (), pods: Iterable[Pod] = (), **config: Any) -> Recorder:
    return Recorder(FakeKubernetes(diagnoses=diagnoses, nodes=[node()], pods=pods), **config)


def api_of(recorder: Recorder) -> FakeKubernetes:
    kubernetes = recorder.cluster.kubernetes
    assert isinstance(kubernetes, FakeKubernetes)
    return kubernetes


def named(name: str, *, node: str = NODE, **fields: Any) -> Diagnosis:
    return diagnosis(name=name, uid=f"uid-{name}", node=node, **fields)


def finished(name: str, **fields: Any) -> Diagnosis:
    result = NodeResult(node_name=NODE, reason="Completed")
    return named(name, status=running_status(result=result, completionTime=timestamp(ago(5))), **fields)


def waiting(name: str, age: float) -> Diagnosis:
    result = NodeResult(node_name=f"node-{name}", reason="Pending", message="waiting")
    return named(name, node=f"node-{name}", status=running_status(result=result, started=ago(age)))


def sweep_times(sweep: Sweep, times: int = 1) -> None:
    async def sweeps() -> None:
        for _ in range(times):
            await sweep._sweep()

    asyncio.run(sweeps())


# --- what it reconciles -----------------------------------------------------------------------------------------------


def test_it_passes_over_those_that_nothing_is_to_be_done_for() -> None:
    recorder = recorder_of(
        [
            finished("settled"),
            finished("has a pod left"),
            finished("to be deleted", spec={"ttlSecondsAfterFinished": 9}),
            finished("asked for again", annotations={"memdiag.dev/requestedAt": "now"}),
            named("new"),
            named("running", status=running_status(result=NodeResult(node_name=NODE, reason="Running"))),
        ],
        pods=[pod(name="left", phase="Succeeded", owner="uid-has a pod left")],
    )
    sweep_times(Sweep(recorder))
    assert sorted(recorder.looked) == ["asked for again", "has a pod left", "new", "running", "to be deleted"]


def test_those_that_only_wait_are_reconciled_less_often() -> None:
    """All the first time; then those alone that get a slot, or whose status is decided and not written."""
    runs = named("runs", status=running_status(result=NodeResult(node_name=NODE, reason="Running")))
    busy = [pod(name=f"busy-{number}", node_name=f"busy-{number}", owner="uid-runs") for number in range(2)]
    recorder = recorder_of([runs, waiting("first", 50), waiting("second", 40), waiting("drafted", 30)], pods=busy)
    sweep = Sweep(recorder)
    sweep_times(sweep)
    assert sorted(recorder.looked) == ["drafted", "first", "runs", "second"]
    recorder.looked.clear()
    drafted = recorder.cluster.cache.diagnoses.get("drafted")
    assert drafted
    recorder.cluster.cache.diagnoses.keep_draft(drafted)
    sweep_times(sweep)
    assert sorted(recorder.looked) == ["drafted", "first", "runs"]
    recorder.looked.clear()
    sweep._all_looked_at -= CONFIG.sweep.idle_seconds
    sweep_times(sweep)
    assert sorted(recorder.looked) == ["drafted", "first", "runs", "second"]


def test_those_that_may_not_start_and_say_so_are_skipped_until_they_may() -> None:
    def held_back(name: str) -> Diagnosis:
        said = {"type": "Reconciling", "status": "True", "reason": "LimitReached", "message": "x"}
        times = {"lastTransitionTime": timestamp(NOW), "observedGeneration": 1}
        return named(name, status={"observedGeneration": 1, "conditions": [said | times]})

    runs = named("runs", status=running_status(result=NodeResult(node_name=NODE, reason="Running")))
    diagnoses = [runs, held_back("silent"), held_back("silent too"), named("unaware")]
    recorder = recorder_of(diagnoses, limits=LimitSettings(unfinished_diagnoses=1))
    sweep = Sweep(recorder)
    sweep_times(sweep)
    assert sorted(recorder.looked) == ["runs", "unaware"]
    assert recorder.sample("memdiag_held_back_diagnoses") == 3
    recorder.looked.clear()
    recorder.cluster.cache.diagnoses.drop("runs", "uid-runs")
    sweep_times(sweep)
    assert sorted(recorder.looked) == ["silent", "unaware"]


# --- what it reads ----------------------------------------------------------------------------------------------------


def test_whole_lists_are_read_rarely() -> None:
    recorder = recorder_of([named("new")])
    sweep = Sweep(recorder)
    sweep_times(sweep, 3)
    assert api_of(recorder).requests == ["list_diagnoses", "list_pods", "list_reports"]
    sweep._pods_relisted_at -= CONFIG.sweep.idle_seconds
    sweep_times(sweep)
    assert api_of(recorder).requests[3:] == ["list_pods"]
    sweep._relisted_at -= module.RELIST_SECONDS
    sweep._reports_due_at -= module.RELIST_SECONDS
    sweep_times(sweep)
    assert api_of(recorder).requests[4:] == ["list_diagnoses", "list_pods", "list_reports"]


def test_what_could_not_be_listed_is_listed_by_the_next_sweep(caplog: pytest.LogCaptureFixture) -> None:
    recorder = recorder_of([named("new")])
    api_of(recorder).fail("list_pods", UnavailableError("no answer"))
    sweep = Sweep(recorder)
    sweep_times(sweep)
    assert "cannot list the cluster" in caplog.text
    assert not recorder.cluster.cache.is_complete
    # Nobody must believe that the operator sees the cluster.
    assert recorder.sample("memdiag_last_sweep_timestamp_seconds") == 0
    assert recorder.looked == ["new"]
    sweep_times(sweep)
    assert recorder.cluster.cache.is_complete
    assert recorder.sample("memdiag_last_sweep_timestamp_seconds")


def test_as_long_as_the_cluster_cannot_be_listed_the_last_sweep_gets_older() -> None:
    recorder = recorder_of([named("new")])
    sweep = Sweep(recorder)
    sweep_times(sweep)
    answered = recorder.sample("memdiag_last_sweep_timestamp_seconds")
    sweep._relisted_at -= module.RELIST_SECONDS
    api_of(recorder).fail("list_diagnoses", UnavailableError("no answer"))
    sweep_times(sweep)
    assert recorder.sample("memdiag_last_sweep_timestamp_seconds") == answered


def test_reports_are_kept_to_their_budget_and_the_list_is_tried_again_after_a_minute() -> None:
    recorder = recorder_of(limits=LimitSettings(stored_reports_mebibytes=1))
    kubernetes = api_of(recorder)
    kubernetes.reports = tuple(
        StoredReport(run, Run("uid", run), ago(age), 600 * 1024) for run, age in (("older", 60), ("newer", 30))
    )
    kubernetes.fail("list_reports", UnavailableError("no answer"))
    sweep = Sweep(recorder)
    sweep_times(sweep, 2)
    assert len(kubernetes.asked("list_reports")) == 1
    sweep._reports_due_at -= module.REPORTS_RETRY_SECONDS
    sweep_times(sweep, 2)
    assert len(kubernetes.asked("list_reports")) == 2
    assert [one.name for one in recorder.cluster.cache.reports.all()] == ["newer"]
    assert recorder.sample("memdiag_stored_reports_bytes") == 600 * 1024
    assert recorder.sample("memdiag_runs_without_reports_total") == 1


def test_what_a_deleted_diagnosis_has_left_does_not_end_the_sweep(caplog: pytest.LogCaptureFixture) -> None:
    recorder = recorder_of([named("new")], pods=[pod(annotations={"memdiag.dev/diagnosis": "gone"})])
    api_of(recorder).fail("read_diagnosis", UnavailableError("no answer"))
    sweep_times(Sweep(recorder))
    assert "cannot remove what deleted diagnoses left behind, will retry on the next sweep: no answer" in caplog.text
    assert recorder.looked == ["new"]


# --- that it goes on --------------------------------------------------------------------------------------------------


def test_a_fault_ends_one_sweep_and_not_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recorder_of([named("new")])
    sweep = Sweep(recorder)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_due", lambda: 1 / 0)
        sweep_times(sweep)
    assert recorder.sample("memdiag_faults_total") == 1
    sweep_times(sweep)
    assert recorder.looked == ["new"]


def test_a_sweep_is_overdue_when_none_has_ended_for_long() -> None:
    sweep = Sweep(recorder_of())
    assert not sweep.is_overdue
    overdue_seconds = module.OVERDUE_FACTOR * CONFIG.sweep.idle_seconds + module.OVERDUE_MARGIN_SECONDS
    sweep._completed_at = time.monotonic() - overdue_seconds
    assert sweep.is_overdue
    sweep_times(sweep)
    assert sweep.age_seconds < overdue_seconds


def test_a_wish_ends_the_pause_and_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_PAUSE_SECONDS", 0)
    recorder = recorder_of()
    sweep = Sweep(recorder)

    async def pause() -> None:
        recorder.sweep_wanted.set()
        await asyncio.wait_for(sweep._pause(3600), timeout=60)
        assert not recorder.sweep_wanted.is_set()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sweep._pause(3600), timeout=0.05)
        await sweep._pause(0.01)

    asyncio.run(pause())


def test_it_sweeps_at_one_pace_while_something_runs_and_at_another_when_nothing_does() -> None:
    for diagnoses, seconds in (([named("new")], CONFIG.sweep.active_seconds), ([], CONFIG.sweep.idle_seconds)):
        sweep = Sweep(recorder_of(diagnoses))
        pauses: list[float] = []

        async def stop(seconds: float, pauses: list[float] = pauses) -> None:
            pauses.append(seconds)
            raise asyncio.CancelledError

        sweep._pause = stop  # type: ignore[method-assign] # one sweep will do
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(sweep.run())
        assert pauses == [seconds]
