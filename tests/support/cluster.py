"""Clusters for the tests: one per test session, stopped at its end even if tests fail."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from local_cluster.cluster import Cluster
from local_cluster.paths import PROJECT


@dataclass(frozen=True)
class TestCluster:
    """A running cluster: `kubeconfig` reaches it as admin, from outside its namespaces."""

    __test__ = False  # for pytest: this is not a test class

    kubeconfig: Path
    kubectl_binary: Path

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 - as in subprocess.run
        """Run kubectl, return its standard output; raises AssertionError with its error text if it fails."""
        done = self.try_kubectl(*arguments, input=input)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def try_kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
    ) -> subprocess.CompletedProcess[str]:
        """Run a kubectl command that may fail: the caller checks `returncode`, `stdout` and `stderr`."""
        command: list[str | Path] = [self.kubectl_binary, f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=input, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def apiserver() -> Iterator[TestCluster]:
    """A real etcd and kube-apiserver, without controllers or nodes (about 3 s)."""
    with running_cluster("api", "--api-only") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[TestCluster]:
    """The one-node cluster, with the project's images on its node."""
    with running_cluster("e2e") as cluster:
        yield cluster


@contextmanager
def running_cluster(tier: str, *options: str) -> Iterator[TestCluster]:
    """A separate cluster for the duration of the body; `options` are those of `local_cluster up`."""
    if os.geteuid() != 0:
        pytest.skip(f"the {tier} tier needs root: its cluster runs in separate namespaces")
    # Named after this process, so that test sessions can run side by side; the owner lets the next `up` of any session
    # remove what a killed session has left.
    name = f"{tier}-{os.getpid()}"
    up = _local_cluster("up", "--name", name, "--owner-pid", str(os.getpid()), *options)
    assert up.returncode == 0, f"cluster {name} did not start:\n{up.stdout}{up.stderr}"
    try:
        made = Cluster(name)
        yield TestCluster(made.kubeconfig, made.kubectl)
    finally:
        down = _local_cluster("down", "--name", name)
        assert down.returncode == 0, f"cluster {name} did not stop:\n{down.stdout}{down.stderr}"


def _local_cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local_cluster", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
