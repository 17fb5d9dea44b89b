"""What a deleted diagnosis has left: found by its labels, and removed only when the API server says that it is gone."""

from collections.abc import Callable

import pytest
from kubernetes import client

from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import NotFoundError, UnavailableError, UnreadableError
from memdiag_operator.cluster.orphans import orphans, remove_orphans
from memdiag_operator.cluster.store import Cache
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, Pod
from support.kubernetes_objects import CONFIG, NAME, UID, diagnosis, pod

MINE = {naming.DIAGNOSIS_ANNOTATION: NAME}


def found() -> Diagnosis:
    return diagnosis()


def another_of_the_name() -> Diagnosis:
    return diagnosis(uid="another")


def gone() -> Diagnosis:
    raise NotFoundError("no such diagnosis")


def of_a_later_version() -> Diagnosis:
    raise UnreadableError("stored by another version")


class Recorder(KubernetesClient):
    """Answers what a diagnosis reads as, and remembers what was deleted."""

    def __init__(self, answer: Callable[[], Diagnosis]) -> None:
        super().__init__(client.ApiClient(client.Configuration(host="http://127.0.0.1:1")))
        self.answer = answer
        self.deleted: list[str] = []

    def read_diagnosis(self, name: str) -> Diagnosis:
        assert name == NAME
        return self.answer()

    def delete_reports(self, label_selector: str) -> None:
        self.deleted.append(label_selector)

    def delete_pod(self, namespace: str, name: str, uid: str, *, force: bool) -> Pod | None:
        assert not force
        self.deleted.append(f"{namespace}/{name} {uid}")
        return None


def cache_with(*pods: Pod, diagnoses: tuple[Diagnosis, ...] = ()) -> Cache:
    cache = Cache()
    cache.diagnoses.replace([(diagnoses, "1")])
    cache.pods.replace([(pods, "1")])
    return cache


@pytest.mark.parametrize(
    ("answer", "removed"),
    [
        pytest.param(gone, True, id="gone"),
        pytest.param(another_of_the_name, True, id="another has its name"),
        pytest.param(found, False, id="the cache is behind"),
        pytest.param(of_a_later_version, False, id="stored by another version"),
    ],
)
def test_a_pod_goes_when_its_diagnosis_is_gone(answer: Callable[[], Diagnosis], removed: bool) -> None:
    runner = pod(annotations=MINE)
    cache = cache_with(runner)
    api = Recorder(answer)
    remove_orphans(Cluster(api, CONFIG, cache), [])
    reports = f"{naming.DIAGNOSIS_UID_LABEL}={UID}"
    assert api.deleted == (
        [reports, f"memdiag-runners/{runner.metadata.name} {runner.metadata.uid}"] if removed else []
    )
    assert bool(cache.pods.all()) is not removed


def test_reports_of_a_deleted_diagnosis_go_without_a_pod() -> None:
    api = Recorder(gone)
    remove_orphans(Cluster(api, CONFIG, cache_with()), [UID])
    assert api.deleted == [f"{naming.DIAGNOSIS_UID_LABEL}={UID}"]


def test_an_api_server_that_does_not_answer_is_asked_again() -> None:
    def silent() -> Diagnosis:
        raise UnavailableError("no answer")

    cache = cache_with(pod(annotations=MINE))
    with pytest.raises(UnavailableError):
        remove_orphans(Cluster(Recorder(silent), CONFIG, cache), [])
    assert orphans(cache)


def test_a_pod_with_a_diagnosis_or_being_deleted_is_not_an_orphan() -> None:
    assert orphans(cache_with(pod(), diagnoses=(diagnosis(),))) == []
    assert orphans(cache_with(pod(deleted=True))) == []
    assert orphans(Cache()) == []
