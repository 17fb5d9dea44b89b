"""What the reconciler computes for all diagnoses together: once for each state of the world."""

from datetime import timedelta

import pytest
from kubernetes import client

from memdiag_api.diagnosis import NodeResult
from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.clock import ServerClock
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.decide.slots import Allotment, allot
from memdiag_operator.kube.objects import Diagnosis
from memdiag_operator.loop import reconciler as module
from memdiag_operator.loop.reconciler import Reconciler
from memdiag_operator.metrics import OperatorMetrics
from support.kubernetes_objects import CONFIG, NOW, ago, diagnosis, pod, running_status


def waiting(number: int) -> Diagnosis:
    node = f"node-{number}"
    status = running_status(result=NodeResult(node_name=node, reason="Pending"), started=ago(number))
    return diagnosis(name=f"d{number}", uid=f"uid-{number}", node=node, status=status)


def test_the_allotment_is_made_once_for_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Allotment] = []
    now = [NOW]

    def counted(*arguments: object) -> Allotment:
        made.append(allot(*arguments))  # type: ignore[arg-type] # whatever it is called with
        return made[-1]

    monkeypatch.setattr(module, "allot", counted)
    kubernetes = KubernetesClient(client.ApiClient())
    kubernetes.clock = ServerClock(wall_clock=lambda: now[0].timestamp())  # noqa: PLW0108 - `now` changes
    reconciler = Reconciler(Cluster(kubernetes, CONFIG), OperatorMetrics())
    for number in range(20):
        reconciler.cluster.cache.diagnoses.put(waiting(number))

    # A sweep asks, and then each diagnosis that it looks at.
    reconciler.allotment()
    for number in range(20):
        assert reconciler.allotment(reconciler.cluster.cache.diagnoses.get(f"d{number}")) is made[0]
    assert len(made) == 1

    # A run that has just begun, and is not stored yet, is seen as it is.
    begun = waiting(20)
    assert "uid-20" in reconciler.allotment(begun).waiting
    assert reconciler.allotment() is made[0]

    reconciler.cluster.cache.pods.put(pod(name="runner", node_name="node-1"))
    assert reconciler.allotment().slots_used == 1
    # A runner that has outlived its deadline and grace period gives up its slot, without any event.
    now[0] = NOW + timedelta(seconds=930)
    assert reconciler.allotment().slots_used == 0
