"""Ids become names only where the API server knows them on this node."""

from typing import Any

import pytest

from memdiag_operator.kube.objects import Pod
from memdiag_operator.results.attribution import STATIC_POD_HASH_ANNOTATION, Names, attribute, bare_container_id

CONTAINER, INIT, DEBUG = "a" * 64, "b" * 64, "c" * 64


def workload(**status: Any) -> Pod:
    return Pod.model_validate(
        {
            "metadata": {"name": "slow", "namespace": "web", "uid": "pod-uid", **status.pop("metadata", {})},
            "status": status,
        }
    )


POD = workload(
    containerStatuses=[{"name": "app", "containerID": f"containerd://{CONTAINER}"}],
    initContainerStatuses=[{"name": "init", "containerID": f"cri-o://{INIT}"}],
    ephemeralContainerStatuses=[{"name": "debug", "containerID": f"docker://{DEBUG}"}],
)


@pytest.mark.parametrize(
    ("container_id", "pod_uid", "expected"),
    [
        pytest.param(CONTAINER, "", Names("web", "slow", "app"), id="container"),
        pytest.param(INIT, "", Names("web", "slow", "init"), id="init container"),
        pytest.param(DEBUG, "", Names("web", "slow", "debug"), id="ephemeral container"),
        pytest.param("d" * 64, "pod-uid", Names("web", "slow"), id="a container that is gone, its pod is not"),
        pytest.param("d" * 64, "", None, id="another node's container"),
        pytest.param("", "", None, id="a process of the host"),
        pytest.param(CONTAINER[:12], "", None, id="a prefix is not an id"),
    ],
)
def test_whose_it_is(container_id: str, pod_uid: str, expected: Names | None) -> None:
    assert attribute([POD]).names(container_id, pod_uid) == expected


def test_a_static_pod_is_known_by_its_hash() -> None:
    static = workload(metadata={"annotations": {STATIC_POD_HASH_ANNOTATION: "file-hash"}})
    assert attribute([static]).names("", "file-hash") == Names("web", "slow")


def test_a_container_that_has_no_id_yet_gives_its_name_to_nobody() -> None:
    starting = workload(containerStatuses=[{"name": "app", "containerID": ""}])
    assert attribute([starting]).names("", "") is None


def test_identities_are_listed_once_and_only_when_known() -> None:
    found = attribute([POD]).identities([CONTAINER, "d" * 64, CONTAINER, "", INIT])
    assert [one.container for one in found] == ["app", "init"]


@pytest.mark.parametrize("prefix", ["containerd://", "cri-o://", "docker://", ""])
def test_the_runtime_is_not_part_of_an_id(prefix: str) -> None:
    assert bare_container_id(prefix + CONTAINER) == CONTAINER
