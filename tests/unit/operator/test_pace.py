"""Who is looked at less often: those who wait and cannot start."""

from memdiag_api.diagnosis import NodeResult
from memdiag_operator.decide.objects import Diagnosis
from memdiag_operator.decide.pace import only_waiting
from memdiag_operator.decide.snapshot import Fleet
from support.kubernetes_objects import NOW, ago, diagnosis, pod, running_status


def waiting(name: str, age: float) -> Diagnosis:
    node = f"node-{name}"
    status = running_status(result=NodeResult(node_name=node, reason="Pending"), started=ago(age))
    return diagnosis(name=name, uid=f"uid-{name}", node=node, status=status)


def test_those_who_get_no_slot_and_have_no_runner_only_wait() -> None:
    diagnoses = tuple(waiting(name, age) for name, age in (("works", 50), ("next", 40), ("later", 30), ("last", 20)))
    works = pod(name="runner", owner="uid-works", node_name="node-works")
    fleet = Fleet(pods=(works,), diagnoses=diagnoses)
    assert only_waiting(fleet, 2, NOW) == {"uid-later", "uid-last"}
    assert only_waiting(fleet, 4, NOW) == frozenset()
