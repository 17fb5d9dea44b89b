"""The api tier: a real etcd and kube-apiserver with memdiag's own manifests in it, and no kubelet."""

from collections.abc import Iterator
from typing import Any

import pytest

from local_cluster.paths import PROJECT
from support.cluster import TestCluster, apiserver
from support.operator_world import World, operator_world, sweep_away

__all__ = ["apiserver"]


@pytest.fixture(scope="session")
def installed(apiserver: TestCluster) -> TestCluster:
    """The API server with everything that `kubectl apply -k` installs."""
    apiserver.kubectl("apply", "--server-side", "-k", str(PROJECT / "manifests/overlays/embedded"))
    apiserver.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return apiserver


@pytest.fixture(scope="module")
def operator_config() -> dict[str, Any]:
    """What `shared` changes in support.operator_world.CONFIG; a module that needs another defines it itself."""
    return {}


@pytest.fixture(scope="module")
def shared(
    installed: TestCluster, tmp_path_factory: pytest.TempPathFactory, operator_config: dict[str, Any]
) -> Iterator[World]:
    """The world of all tests of a module, with one operator."""
    with operator_world(installed, tmp_path_factory, **operator_config) as started:
        yield started


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """The shared world, in which a test leaves nothing."""
    yield shared
    sweep_away(shared.cluster)
