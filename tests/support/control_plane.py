"""etcd and the Kubernetes programs of a running test cluster, which tests kill and restart."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_cluster.cluster import Cluster
from support.cluster import TestCluster
from support.hollow_node import eventually

READY_SECONDS = 90


class ControlPlane:
    """The programs of one cluster. Programs started here end with the cluster, like all others in its cgroup."""

    def __init__(self, cluster: TestCluster) -> None:
        self._cluster = cluster
        self._made = Cluster(cluster.kubeconfig.parent.parent.name)

    @property
    def binaries(self) -> Path:
        """The folder of the cluster's own binaries."""
        return self._cluster.kubectl_binary.parent

    @property
    def pki(self) -> Path:
        """The folder of its certificates."""
        return self._cluster.kubeconfig.parent

    def command(self, name: str) -> list[str]:
        """The command line of the running program `name`."""
        return _command_line(self._pid(name))

    def kill(self, name: str) -> list[str]:
        """Kill a program with SIGKILL; returns the command line that starts it again."""
        pid = self._pid(name)
        command = _command_line(pid)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + READY_SECONDS
        while pid in self._made.cgroup.pids():
            assert time.monotonic() < deadline, f"{name} does not end"
            time.sleep(0.02)
        return command

    def start(self, name: str, command: list[str]) -> None:
        """Start a program in the cluster's namespaces, detached from this process."""
        log = self._made.folder / "logs" / f"{name}-again.log"
        with log.open("ab") as output:
            subprocess.run(
                [*self._made.cgroup.enter(), *self._made.sandbox().enter(), "setsid", "--fork", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
            )

    def restart(self, name: str, *options: str) -> None:
        """Kill a program and restart it with additional `options`; returns when the API server is ready."""
        self.start(name, [*self.kill(name), *options])
        self.wait()

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Keep a program killed for the duration of the body."""
        command = self.kill(name)
        try:
            yield
        finally:
            self.start(name, command)
            self.wait()

    def wait(self) -> None:
        """Wait until the API server is ready, etcd included."""
        eventually(lambda: self._cluster.try_kubectl("get", "--raw", "/readyz").returncode == 0, READY_SECONDS)

    def inside(self, *command: str) -> str:
        """Run a command in the cluster's namespaces; returns its output."""
        return self._made.sandbox().run(*command)

    def _pid(self, name: str) -> int:
        found = [pid for pid in self._made.cgroup.pids() if Path((_command_line(pid) or [""])[0]).name == name]
        assert len(found) == 1, f"{len(found)} processes called {name}"
        return found[0]


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []
