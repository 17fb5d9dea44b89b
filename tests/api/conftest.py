"""The api tier: a real etcd and kube-apiserver with memdiag's own manifests in it, and no kubelet."""

import pytest

from local_cluster.paths import PROJECT
from support.cluster import TestCluster, apiserver

__all__ = ["apiserver"]


@pytest.fixture(scope="session")
def installed(apiserver: TestCluster) -> TestCluster:
    """The API server with everything that `kubectl apply -k` installs."""
    apiserver.kubectl("apply", "--server-side", "-k", str(PROJECT / "manifests/overlays/embedded"))
    apiserver.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return apiserver
