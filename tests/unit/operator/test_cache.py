"""The cache of what the watches deliver: never older than what anyone has seen, and nothing deleted comes back."""

from memdiag_api.diagnosis import NodeResult, VerdictSummary
from memdiag_operator.cluster.cache import FORGET_NODE_SECONDS, DiagnosisShelf, NodeReadings, Shelf
from memdiag_operator.decide.objects import Node, Pod
from support.kubernetes_objects import NODE, NOW, diagnosis, running_status, timestamp


def pod(name: str, version: int | str, *, uid: str = "") -> Pod:
    meta = {"name": name, "uid": uid or f"uid-of-{name}", "resourceVersion": str(version)}
    return Pod.model_validate({"metadata": meta})


def shelf(*pods: Pod) -> Shelf[Pod]:
    made: Shelf[Pod] = Shelf()
    for one in pods:
        made.put(one)
    return made


def versions(of: Shelf[Pod]) -> dict[str, str]:
    return {one.metadata.name: one.metadata.resource_version for one in of.all()}


def test_the_latest_version_stays_in_whatever_order_they_come() -> None:
    assert versions(shelf(pod("a", 9), pod("a", 10))) == {"a": "10"}
    assert versions(shelf(pod("a", 10), pod("a", 9))) == {"a": "10"}
    assert versions(shelf(pod("a", "opaque"), pod("a", "other"))) == {"a": "other"}


def test_what_is_deleted_does_not_come_back_with_a_late_answer() -> None:
    pods = shelf(pod("a", 5))
    pods.drop("a", "uid-of-a")
    pods.put(pod("a", 6))
    assert versions(pods) == {}
    pods.put(pod("a", 7, uid="another"))
    assert versions(pods) == {"a": "7"}


def test_the_deletion_of_a_former_object_spares_the_one_that_has_its_name_now() -> None:
    pods = shelf(pod("a", 5, uid="new"))
    pods.drop("a", "old")
    assert versions(pods) == {"a": "5"}


def test_a_list_takes_away_what_it_lacks_but_not_what_is_newer_than_it() -> None:
    pods = shelf(pod("lost", 3), pod("kept", 4), pod("later", 12), pod("changed", 11))
    assert not pods.is_complete
    pods.replace([([pod("kept", 4), pod("changed", 6)], "10"), ([pod("missed", 8)], "10")])
    assert versions(pods) == {"kept": "4", "later": "12", "changed": "11", "missed": "8"}
    assert pods.is_complete


def test_a_list_that_was_read_before_a_deletion_does_not_bring_the_object_back() -> None:
    pods = shelf(pod("a", 3))
    pods.drop("a", "uid-of-a")
    pods.replace([([pod("a", 3)], "10")])
    assert versions(pods) == {}


def test_what_a_diagnosis_found_is_packed_and_comes_back_whole() -> None:
    verdict = VerdictSummary(kind="NoLeak", confidence="High", sentence="x" * 100, advice="")
    result = NodeResult(node_name=NODE, reason="Completed", verdict=verdict)
    states = [{"nodeName": NODE, "reason": "Completed", "verdict": "NoLeak"}]
    working = diagnosis(status=running_status())
    shelf = DiagnosisShelf()
    shelf.put(working)
    assert shelf.all() == (working,)

    found = diagnosis(status=running_status(result=result, nodeStates=states, completionTime=timestamp(NOW)))
    found = found.model_copy(update={"metadata": found.metadata.model_copy(update={"resource_version": "8"})})
    shelf.put(found)
    (light,) = shelf.all()
    assert not light.status.results
    assert (light.metadata, light.spec, light.status.node_states) == (
        found.metadata,
        found.spec,
        found.status.node_states,
    )
    assert light.is_finished
    whole = shelf.get(found.metadata.name)
    assert whole == found
    assert whole.status.model_fields_set == found.status.model_fields_set

    shelf.drop(found.metadata.name, found.metadata.uid)
    assert (shelf.get(found.metadata.name), shelf.all()) == (None, ())


def test_what_0_1_0_stored_stays_as_it_is() -> None:
    verdict = VerdictSummary(kind="NoLeak", confidence="High", sentence="x", advice="")
    old = diagnosis(status=running_status(result=NodeResult(node_name=NODE, reason="Completed", verdict=verdict)))
    shelf = DiagnosisShelf()
    shelf.put(old)
    assert shelf.all() == (old,)


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
