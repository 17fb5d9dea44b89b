"""A cluster leaves nothing on the machine, however it ends. (API server only: the node adds no way to end.)"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster import kubernetes_binaries
from local_cluster.cluster import Cluster
from local_cluster.paths import PROJECT
from local_cluster.sandbox import Network
from support.cluster import TestCluster

COMMAND = [sys.executable, "-m", "local_cluster"]


@pytest.fixture
def name() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("a cluster needs root")
    mine = f"life-{os.getpid()}"
    yield mine
    Cluster(mine).down()


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)


def _traces(name: str) -> list[str]:
    """Every trace of the cluster, looked for without its own code."""
    groups = [str(path) for path in Path("/sys/fs/cgroup").rglob(f"memdiag-{name}")]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    processes = [command.decode() for command in commands if f"memdiag/{name}/".encode() in command]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"memdiag/{name}" in line]
    cluster = Cluster(name)
    files = [str(path) for path in (cluster.folder, cluster.folder.parent / f".{name}.lock") if path.exists()]
    return groups + processes + mounts + files


def test_down_leaves_no_trace_and_may_be_repeated(name: str) -> None:
    _run("up", "--api-only", "--name", name)
    record = Cluster(name).record()
    assert record is not None
    interface = Path("/sys/class/net") / Network(record.slot).machine_interface
    assert interface.exists()
    assert _traces(name)
    _run("down", "--name", name)
    assert _traces(name) == []
    assert not interface.exists()
    assert "was not up" in _run("down", "--name", name).stdout


def test_a_second_up_says_that_the_cluster_runs_and_leaves_it_alone(name: str) -> None:
    _run("up", "--api-only", "--name", name)
    before = Cluster(name).record()
    assert "already running" in _run("up", "--api-only", "--name", name).stdout
    assert Cluster(name).record() == before


def test_a_cluster_without_a_node_is_not_taken_for_one_with_a_node(name: str) -> None:
    _run("up", "--api-only", "--name", name)
    full = subprocess.run([*COMMAND, "up", "--name", name], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert "runs without a node" in full.stderr
    assert Cluster(name).is_running()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_takes_down_what_it_started(name: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*COMMAND, "up", "--api-only", "--name", name], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as up:
        while not Cluster(name).cgroup.pids():
            assert up.poll() is None
            time.sleep(0.01)
        up.send_signal(number)
        up.communicate()
    assert up.returncode == 130
    assert _traces(name) == []


def test_what_a_killed_up_left_is_taken_down_by_the_next(name: str) -> None:
    with subprocess.Popen([*COMMAND, "up", "--api-only", "--name", name], cwd=PROJECT, stdout=subprocess.DEVNULL) as up:
        while not Cluster(name).cgroup.pids():
            assert up.poll() is None
            time.sleep(0.01)
        up.kill()
    _run("up", "--api-only", "--name", name)
    assert Cluster(name).is_running()


def test_a_cluster_whose_owner_has_ended_is_taken_down_by_anybodys_next_up(name: str) -> None:
    with subprocess.Popen(["sleep", "infinity"]) as owner:
        _run("up", "--api-only", "--name", f"{name}-o", "--owner-pid", str(owner.pid))
        owner.kill()
    assert f"abandoned cluster {name}-o" in _run("up", "--api-only", "--name", name).stdout
    assert _traces(f"{name}-o") == []


def test_two_clusters_run_side_by_side(name: str, apiserver: TestCluster) -> None:
    _run("up", "--api-only", "--name", name)
    other = TestCluster(Cluster(name).kubeconfig, Cluster(name).kubectl)
    other.kubectl("create", "namespace", "only-there")
    assert "only-there" in other.kubectl("get", "namespaces")
    assert "only-there" not in apiserver.kubectl("get", "namespaces")


def test_a_component_that_dies_is_named_with_the_end_of_its_log(name: str, tmp_path: Path) -> None:
    for binary in kubernetes_binaries.provide().iterdir():
        (tmp_path / binary.name).symlink_to(binary)
    broken = tmp_path / "kube-apiserver"
    broken.unlink()
    broken.write_text("#!/bin/sh\necho 'the disk is on fire' >&2\nexit 3\n")
    broken.chmod(0o755)
    done = subprocess.run(
        [*COMMAND, "up", "--api-only", "--name", name],
        cwd=PROJECT,
        env={**os.environ, "MEMDIAG_KUBE_BIN": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "kube-apiserver ended with status 3" in done.stderr
    assert "the disk is on fire" in done.stderr
    assert _traces(name) == []
