"""The cache of what the watches deliver: never older than what anyone has seen, and nothing deleted comes back."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

from memdiag_api.diagnosis import NodeResult, VerdictSummary
from memdiag_operator.cluster.store import FORGET_NODE_SECONDS, DiagnosisStore, NodeReadings, Reports, Store
from memdiag_operator.decide.stored_reports import Run, StoredReport
from memdiag_operator.kube.objects import Diagnosis, Node, Pod
from support.kubernetes_objects import NAME, NODE, NOW, diagnosis, running_status, timestamp


def pod(name: str, version: int | str, *, uid: str = "") -> Pod:
    meta = {"name": name, "uid": uid or f"uid-of-{name}", "resourceVersion": str(version)}
    return Pod.model_validate({"metadata": meta})


def store(*pods: Pod) -> Store[Pod]:
    made: Store[Pod] = Store()
    for one in pods:
        made.put(one)
    return made


def versions(of: Store[Pod]) -> dict[str, str]:
    return {one.metadata.name: one.metadata.resource_version for one in of.all()}


def test_the_latest_version_stays_in_any_order_of_arrival() -> None:
    assert versions(store(pod("a", 9), pod("a", 10))) == {"a": "10"}
    assert versions(store(pod("a", 10), pod("a", 9))) == {"a": "10"}
    assert versions(store(pod("a", "opaque"), pod("a", "other"))) == {"a": "other"}


def test_what_is_deleted_does_not_come_back_with_a_late_answer() -> None:
    pods = store(pod("a", 5))
    pods.drop("a", "uid-of-a")
    pods.put(pod("a", 6))
    assert versions(pods) == {}
    pods.put(pod("a", 7, uid="another"))
    assert versions(pods) == {"a": "7"}


def test_the_deletion_of_a_former_object_spares_the_one_that_has_its_name_now() -> None:
    pods = store(pod("a", 5, uid="new"))
    pods.drop("a", "old")
    assert versions(pods) == {"a": "5"}


def test_a_list_takes_away_what_it_lacks_but_not_what_is_newer_than_it() -> None:
    pods = store(pod("lost", 3), pod("kept", 4), pod("later", 12), pod("changed", 11))
    assert not pods.is_complete
    pods.replace([([pod("kept", 4), pod("changed", 6)], "10"), ([pod("missed", 8)], "10")])
    assert versions(pods) == {"kept": "4", "later": "12", "changed": "11", "missed": "8"}
    assert pods.is_complete


def test_a_list_that_was_read_before_a_deletion_does_not_bring_the_object_back() -> None:
    pods = store(pod("a", 3))
    pods.drop("a", "uid-of-a")
    pods.replace([([pod("a", 3)], "10")])
    assert versions(pods) == {}


def test_a_status_is_packed_and_comes_back_whole() -> None:
    verdict = VerdictSummary(kind="NoLeak", confidence="High", sentence="x" * 100, advice="")
    result = NodeResult(node_name=NODE, reason="Completed", verdict=verdict)
    states = [{"nodeName": NODE, "reason": "Completed", "verdict": "NoLeak"}]
    found = diagnosis(status=running_status(result=result, nodeStates=states, completionTime=timestamp(NOW)))
    store = DiagnosisStore()
    store.put(diagnosis(name="other", uid="other"))
    store.put(found)
    whole = store.get(found.metadata.name)
    assert whole == found
    assert whole.status.model_fields_set == found.status.model_fields_set
    assert found in store.all()

    store.drop(found.metadata.name, found.metadata.uid)
    assert (store.get(found.metadata.name), store.claim(found.metadata.name)) == (None, None)


def test_what_0_1_0_stored_and_a_spec_that_is_not_understood_come_back_as_they_were() -> None:
    verdict = VerdictSummary(kind="NoLeak", confidence="High", sentence="x", advice="")
    store = DiagnosisStore()
    for old in (
        diagnosis(status=running_status(result=NodeResult(node_name=NODE, reason="Completed", verdict=verdict))),
        diagnosis(name="b", uid="b", spec={"topN": "many"}, status=running_status()),
    ):
        store.put(old)
        assert store.get(old.metadata.name) == old


def of_version(version: str, **status: Any) -> Diagnosis:
    one = diagnosis(status=running_status(**status))
    return one.model_copy(update={"metadata": one.metadata.model_copy(update={"resource_version": version})})


def test_what_matters_to_others_has_a_version() -> None:
    store = DiagnosisStore()
    store.put(of_version("7"))
    before = store.version
    store.put(of_version("8", progressPercent=5))
    assert store.version == before
    store.put(of_version("9", completionTime=timestamp(NOW)))
    assert store.version != before


def test_a_status_that_is_not_written_yet_holds_for_the_version_that_it_was_made_from() -> None:
    stored, store = of_version("7"), DiagnosisStore()
    store.put(stored)
    decided = stored.model_copy(
        update={"status": of_version("7", nodeStates=[]).status.model_copy(update={"results": []})}
    )
    store.keep_draft(decided)
    assert store.get(NAME) == stored
    assert store.draft(stored) == decided.status
    assert store.drafted() == (NAME,)

    later = of_version("8")
    store.put(later)
    assert (store.draft(later), store.drafted()) == (None, ())
    store.keep_draft(decided)  # too late
    assert store.draft(later) is None


def test_a_thousand_nodes_of_a_hundred_diagnoses_are_kept_in_a_fifth_of_the_memory_that_their_models_take() -> None:
    def large(number: int) -> Diagnosis:
        states = [{"nodeName": f"node-{node:04}.example.com", "reason": "Pending"} for node in range(1000)]
        return diagnosis(name=f"d{number}", uid=f"uid-{number}", status=running_status(nodeStates=states))

    tracemalloc.start()
    models = [large(number) for number in range(20)]
    in_models, _ = tracemalloc.get_traced_memory()
    del models
    store = DiagnosisStore()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(20):
        store.put(large(number))
    on_store = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert on_store < in_models / 5


def test_a_list_of_reports_takes_away_what_it_lacks_but_not_what_is_created_meanwhile() -> None:
    run = Run("uid", "run")
    one, two, three = (StoredReport(name, run, NOW, 1) for name in ("one", "two", "three"))
    reports = Reports()
    reports.put(one)

    def listed() -> Iterator[StoredReport]:
        reports.put(three)
        yield two

    reports.replace(listed())
    assert reports.all() == (two, three)
    reports.drop(lambda found: found == run)
    assert reports.all() == ()


def test_nodes_are_good_for_as_long_as_the_reader_says() -> None:
    now = [0.0]
    nodes = NodeReadings(monotonic=lambda: now[0])
    node = Node.model_validate({"metadata": {"name": "a"}})
    nodes.put(node)
    now[0] = 20.0
    assert nodes.get("a", 30) is node
    assert nodes.get("a", 10) is None
    assert nodes.get("b", 30) is None
    now[0] += FORGET_NODE_SECONDS
    nodes.put(Node.model_validate({"metadata": {"name": "b"}}))
    assert nodes.get("a", float("inf")) is None
    nodes.drop("b")
    assert nodes.get("b", float("inf")) is None
