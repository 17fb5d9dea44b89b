"""What the reconciler does for all diagnoses together: locks, limits, retries, and what it computes only once."""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from memdiag_api.conditions import ConditionType
from memdiag_api.diagnosis import NodeResult
from memdiag_operator.cluster.clock import ServerClock
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import ConflictError, RefusedError, UnavailableError
from memdiag_operator.cluster.fetch import read_snapshot
from memdiag_operator.config import LimitSettings
from memdiag_operator.decide.slots import Allotment, allot
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis
from memdiag_operator.loop import reconciler as module
from memdiag_operator.loop.reconciler import ATTEMPTS, Reconciler
from memdiag_operator.metrics import OperatorMetrics
from support.fake_kubernetes import FakeKubernetes
from support.kubernetes_objects import (
    CONFIG,
    NAME,
    NODE,
    NOW,
    POD_NAME,
    UID,
    ago,
    diagnosis,
    node,
    pod,
    running,
    running_status,
)

MINE = {naming.DIAGNOSIS_ANNOTATION: NAME}


def numbered(number: int, **fields: Any) -> Diagnosis:
    return diagnosis(name=f"d{number}", uid=f"uid-{number}", node=f"node-{number}", **fields)


def reconciler_of(kubernetes: FakeKubernetes, **config: Any) -> Reconciler:
    """A reconciler whose cache holds what `kubernetes` does."""
    cluster = Cluster(kubernetes, CONFIG.model_copy(update=config))
    cluster.refill()
    kubernetes.requests.clear()
    return Reconciler(cluster, OperatorMetrics())


def one_run(*pods: Any, **fields: Any) -> tuple[FakeKubernetes, Reconciler]:
    """One diagnosis of one node, and its reconciler."""
    kubernetes = FakeKubernetes(diagnoses=[diagnosis(**fields)], nodes=[node()], pods=pods)
    return kubernetes, reconciler_of(kubernetes)


def run(*steps: Coroutine[Any, Any, object]) -> None:
    """All at once."""

    async def all_of_them() -> None:
        await asyncio.gather(*steps)

    asyncio.run(all_of_them())


def condition(kubernetes: FakeKubernetes, name: str = NAME, kind: ConditionType = ConditionType.SUCCEEDED) -> str:
    return next((one.reason for one in kubernetes.diagnoses[name].status.conditions if one.type is kind), "")


def faults(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("memdiag_faults_total") or 0


# --- one diagnosis ----------------------------------------------------------------------------------------------------


def test_a_run_starts_and_launches_its_runner_by_one_write() -> None:
    kubernetes, reconciler = one_run()
    run(reconciler.reconcile(NAME))
    assert kubernetes.requests == [
        f"read_node {NODE}",
        "list_reports",  # once after the operator's start: the node has none
        f"write_status {NAME}",
        f"create_pod {POD_NAME}",
        "create_event Started",
    ]
    assert reconciler.sweep_wanted.is_set()
    assert reconciler.metrics.registry.get_sample_value("memdiag_runs_started_total") == 1
    assert not reconciler.starting


def test_nothing_is_decided_before_the_cluster_was_listed() -> None:
    kubernetes = FakeKubernetes(diagnoses=[diagnosis()], nodes=[node()])
    reconciler = Reconciler(Cluster(kubernetes, CONFIG), OperatorMetrics())
    reconciler.cluster.cache.diagnoses.put(diagnosis())
    run(reconciler.reconcile(NAME))
    assert kubernetes.requests == []


def test_after_a_conflict_the_diagnosis_is_read_again_and_decided_again() -> None:
    kubernetes, reconciler = one_run()
    kubernetes.change(NAME, target="by somebody else")
    run(reconciler.reconcile(NAME))
    assert kubernetes.asked("write_status") == [NAME, NAME]
    assert kubernetes.asked("read_diagnosis") == [NAME]
    assert kubernetes.asked("create_pod") == [POD_NAME]


def test_a_diagnosis_that_keeps_changing_is_left_to_the_next_sweep(caplog: pytest.LogCaptureFixture) -> None:
    kubernetes, reconciler = one_run()
    kubernetes.fail("write_status", *(ConflictError("changed") for _ in range(ATTEMPTS + 1)))
    run(reconciler.reconcile(NAME))
    assert len(kubernetes.asked("write_status")) == ATTEMPTS == 5
    assert kubernetes.asked("create_pod") == []
    assert f"diagnosis {NAME} keeps changing" in caplog.text
    assert not reconciler.starting


def test_a_diagnosis_that_was_deleted_meanwhile_is_forgotten() -> None:
    kubernetes, reconciler = one_run()
    del kubernetes.diagnoses[NAME]
    run(reconciler.reconcile(NAME))
    assert kubernetes.asked("write_status") == [NAME]
    assert kubernetes.asked("create_pod") == []
    assert reconciler.cluster.cache.diagnoses.all() == ()


def test_a_refused_runner_leads_to_a_second_decision() -> None:
    kubernetes, reconciler = one_run()
    kubernetes.fail("create_pod", RefusedError("exceeded quota"))
    run(reconciler.reconcile(NAME))
    assert condition(kubernetes) == "AdmissionDenied"
    assert kubernetes.asked("write_status") == [NAME, NAME]
    assert kubernetes.asked("create_pod") == [POD_NAME]


def test_an_api_server_that_does_not_answer_is_left_to_the_next_sweep(caplog: pytest.LogCaptureFixture) -> None:
    kubernetes, reconciler = one_run()
    kubernetes.fail("read_node", UnavailableError("no answer"))
    run(reconciler.reconcile(NAME))
    assert f"cannot reconcile diagnosis {NAME}, will retry on the next sweep: no answer" in caplog.text
    assert faults(reconciler.metrics.registry) == 0
    assert kubernetes.asked("write_status") == []
    run(reconciler.reconcile(NAME))
    assert condition(kubernetes) == "Pending"


def test_mere_progress_is_written_at_most_once_in_half_a_sweep() -> None:
    result = NodeResult(node_name=NODE, pod_name=POD_NAME, reason="Running", message="earlier")
    kubernetes, reconciler = one_run(pod(state=running(12), annotations=MINE), status=running_status(result=result))
    run(reconciler.reconcile(NAME))
    assert kubernetes.asked("write_status") == [NAME]
    reconciler.cluster.cache.pods.put(pod(state=running(50), annotations=MINE))
    run(reconciler.reconcile(NAME))
    assert kubernetes.asked("write_status") == [NAME]
    reconciler.written_at[UID] -= CONFIG.sweep.active_seconds / 2
    run(reconciler.reconcile(NAME))
    assert kubernetes.asked("write_status") == [NAME, NAME]


# --- several at once --------------------------------------------------------------------------------------------------


def test_events_that_come_during_a_step_lead_to_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    kubernetes, reconciler = one_run()
    looked: list[str] = []

    def counted(cluster: Cluster, name: str) -> Any:
        looked.append(name)
        return read_snapshot(cluster, name)

    monkeypatch.setattr(module, "read_snapshot", counted)
    is_writing, may_write = threading.Event(), threading.Event()

    def wait() -> None:
        is_writing.set()
        assert may_write.wait(60)

    kubernetes.before("write_status", wait)

    async def event_after_event() -> None:
        first = reconciler.wake(NAME)
        await asyncio.to_thread(is_writing.wait, 60)
        others = [reconciler.wake(NAME) for _ in range(5)]
        await asyncio.sleep(0)
        may_write.set()
        await asyncio.gather(first, *others)

    run(event_after_event())
    assert looked == [NAME, NAME]
    assert kubernetes.asked("write_status") == [NAME]


def test_two_runs_that_start_never_both_take_the_last_slot() -> None:
    """Each would find the slot free, were it not for the lock: the other's run is not stored yet."""
    kubernetes = FakeKubernetes(
        diagnoses=[numbered(0), numbered(1)], nodes=[node("node-0"), node("node-1")], pods=[pod(name="other")]
    )
    reconciler = reconciler_of(kubernetes, max_concurrent_runners=2)
    both_write = threading.Barrier(2)

    def wait_for_the_other() -> None:
        try:
            both_write.wait(0.5)
        except threading.BrokenBarrierError:
            return

    kubernetes.before("write_status", wait_for_the_other)
    run(reconciler.reconcile("d0"), reconciler.reconcile("d1"))
    assert len(kubernetes.asked("create_pod")) == 1
    waits = [one for one in kubernetes.diagnoses.values() if "all 2 runner slots" in one.status.results[0].message]
    assert len(waits) == 1


def test_two_runs_that_start_never_both_take_the_last_place_within_the_limits() -> None:
    kubernetes = FakeKubernetes(diagnoses=[numbered(0), numbered(1)], nodes=[node("node-0"), node("node-1")])
    reconciler = reconciler_of(kubernetes, limits=LimitSettings(unfinished_diagnoses=1))
    run(reconciler.reconcile("d1"), reconciler.reconcile("d0"))
    # The older request comes first: of equal age, by name.
    assert condition(kubernetes, "d0") == "Pending"
    assert condition(kubernetes, "d1", ConditionType.RECONCILING) == "LimitReached"
    assert len(kubernetes.asked("create_pod")) == 1


def test_a_run_that_starts_counts_before_it_is_stored() -> None:
    """Even if the other is older: a run that is being started is in progress."""
    kubernetes = FakeKubernetes(diagnoses=[numbered(1)], nodes=[node("node-0"), node("node-1")])
    reconciler = reconciler_of(kubernetes, limits=LimitSettings(unfinished_diagnoses=1))
    is_starting, may_start = threading.Event(), threading.Event()

    def wait() -> None:
        is_starting.set()
        assert may_start.wait(60)

    kubernetes.before("read_node", wait)

    async def an_older_one_arrives() -> None:
        first = reconciler.wake("d1")
        await asyncio.to_thread(is_starting.wait, 60)
        kubernetes.diagnoses["d0"] = numbered(0)
        reconciler.cluster.cache.diagnoses.put(numbered(0))
        await reconciler.reconcile("d0")
        may_start.set()
        await first

    run(an_older_one_arrives())
    assert condition(kubernetes, "d0") == "LimitReached"
    assert condition(kubernetes, "d1") == "Pending"
    assert not reconciler.starting


def test_a_fault_met_with_one_diagnosis_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    kubernetes = FakeKubernetes(
        diagnoses=[numbered(number) for number in range(3)], nodes=[node(f"node-{number}") for number in range(3)]
    )
    reconciler = reconciler_of(kubernetes)
    kubernetes.fail("read_node", ZeroDivisionError("a fault"))
    with caplog.at_level(logging.ERROR):
        run(*(reconciler.reconcile(f"d{number}") for number in range(3)))
    assert len(kubernetes.asked("create_pod")) == 2
    assert faults(reconciler.metrics.registry) == 1
    assert "ZeroDivisionError" in caplog.text
    assert not reconciler.launch_lock.locked()
    run(*(reconciler.reconcile(f"d{number}") for number in range(3)))
    assert len(kubernetes.asked("create_pod")) == 3


def test_steps_at_once_are_bounded() -> None:
    count = module.DIAGNOSES_AT_ONCE + 4
    nodes = [node(f"node-{number}") for number in range(count)]
    kubernetes = FakeKubernetes(diagnoses=[numbered(number) for number in range(count)], nodes=nodes)
    reconciler = reconciler_of(kubernetes)
    under_way, most = 0, 0
    step = reconciler._step

    async def counted(name: str, refusals: Mapping[str, str]) -> Mapping[str, str]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await step(name, refusals)
        finally:
            under_way -= 1

    reconciler._step = counted  # type: ignore[method-assign] # counted on the way
    run(*(reconciler.reconcile(f"d{number}") for number in range(count)))
    assert most == module.DIAGNOSES_AT_ONCE
    assert len(kubernetes.asked("write_status")) == count


# --- what the watches deliver -----------------------------------------------------------------------------------------


def test_a_runners_event_wakes_its_diagnosis() -> None:
    kubernetes, reconciler = one_run(status=running_status())

    async def watch() -> None:
        reconciler.saw_pod(pod(state=running(12), annotations=MINE), deleted=False)
        await asyncio.gather(*reconciler._woken)

    run(watch())
    assert kubernetes.diagnoses[NAME].status.results[0].reason == "Running"


def test_what_a_deleted_diagnosis_has_left_is_removed_when_the_api_server_answers() -> None:
    kubernetes, reconciler = one_run(pod(annotations=MINE))

    async def watch() -> None:
        del kubernetes.diagnoses[NAME]
        reconciler.saw_diagnosis(diagnosis(), deleted=True)
        kubernetes.fail("delete_reports", UnavailableError("no answer"))
        with pytest.raises(UnavailableError):
            await reconciler.remove_orphans()
        await reconciler.remove_orphans()
        await reconciler.remove_orphans()

    run(watch())
    assert reconciler.sweep_wanted.is_set()
    assert kubernetes.asked("delete_pod") == [POD_NAME]
    # Once without effect, once for the diagnosis, once with its pod.
    assert kubernetes.asked("delete_reports") == [f"{naming.DIAGNOSIS_UID_LABEL}={UID}"] * 3


def test_stopping_drops_what_was_asked_for() -> None:
    kubernetes, reconciler = one_run()
    release = threading.Event()
    kubernetes.before("read_node", lambda: release.wait(60))

    async def stop() -> None:
        task = reconciler.wake(NAME)
        await asyncio.sleep(0.05)
        await reconciler.stop()
        assert task.cancelled()
        release.set()

    run(stop())
    assert kubernetes.asked("write_status") == []


# --- who gets a slot --------------------------------------------------------------------------------------------------


def waiting(number: int) -> Diagnosis:
    status = running_status(result=NodeResult(node_name=f"node-{number}", reason="Pending"), started=ago(number))
    return numbered(number, status=status)


def test_the_allotment_is_made_once_for_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Allotment] = []
    now = [NOW]

    def counted(*arguments: object) -> Allotment:
        made.append(allot(*arguments))  # type: ignore[arg-type] # passes all arguments on
        return made[-1]

    monkeypatch.setattr(module, "allot", counted)
    kubernetes = FakeKubernetes()
    kubernetes.clock = ServerClock(wall_clock=lambda: now[0].timestamp())  # noqa: PLW0108 - `now` changes
    reconciler = Reconciler(Cluster(kubernetes, CONFIG), OperatorMetrics())
    cache = reconciler.cluster.cache
    for number in range(20):
        cache.diagnoses.put(waiting(number))

    # A sweep asks, and then each diagnosis that it reconciles.
    reconciler.allotment()
    for number in range(20):
        assert reconciler.allotment(cache.diagnoses.get(f"d{number}")) is made[0]
    assert len(made) == 1

    # A run that has just started, and is not stored yet, is seen as it is.
    started = waiting(20)
    assert "uid-20" in reconciler.allotment(started).waiting
    assert reconciler.allotment() is made[0]

    cache.pods.put(pod(name="runner", node_name="node-1"))
    assert reconciler.allotment().slots_used == 1
    # A runner that has outlived its deadline and grace period gives up its slot, without any event.
    now[0] = NOW + timedelta(seconds=930)
    assert reconciler.allotment().slots_used == 0
