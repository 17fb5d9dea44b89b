"""The operator as a separate process, with its service account's token: it can do only what RBAC grants."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import yaml

from support.cluster import TestCluster

NAMESPACE = "memdiag-system"
START_SECONDS = 30
DEPLOYED = {"MALLOC_ARENA_MAX": "2"}
"""The value in manifests/base/operator/deployment.yaml."""


class OperatorProcess:
    """A running operator."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, health_url: str, metrics_url: str) -> None:
        self._process = process
        self._log = log
        self._health_url = health_url
        self._metrics_url = metrics_url

    @property
    def log(self) -> str:
        """Its complete log."""
        return self._log.read_text()

    def health(self) -> dict[str, int]:
        """Its response to the kubelet's probe."""
        with urlopen(self._health_url, timeout=5) as answer:
            health: dict[str, int] = json.load(answer)
            return health

    def scrape(self) -> str:
        """The metrics as Prometheus scrapes them."""
        with urlopen(self._metrics_url, timeout=5) as answer:
            text: bytes = answer.read()
            return text.decode()

    def memory_bytes(self) -> int:
        """Its resident memory."""
        return self._memory("VmRSS:")

    def forget_peak(self) -> None:
        """Reset `peak_memory_bytes` to the current value (man 5 proc: clear_refs)."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def peak_memory_bytes(self) -> int:
        """Its largest resident memory."""
        return self._memory("VmHWM:")

    def cpu_seconds(self) -> float:
        """The CPU time that it has used."""
        user, system = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _memory(self, field: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(field)]
        return int(line.split()[1]) * 1024

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """Stop it like the kubelet; returns its exit status."""
        self._process.terminate()
        return self._process.wait(timeout=20)

    def is_up(self) -> bool:
        """Whether it responds."""
        assert self._process.poll() is None, self.log
        try:
            return self.health() is not None
        except OSError:
            return False


@contextmanager
def running_operator(
    cluster: TestCluster,
    folder: Path,
    config: dict[str, object],
    *,
    server: str = "",
    environment: Mapping[str, str] | None = None,
    trusting: bool = False,
) -> Iterator[OperatorProcess]:
    """Start the operator and wait until it responds; stop it afterwards if it still runs.

    `server`: the URL of the API server, if it is not reached directly. `environment` is added to this process's.
    `trusting`: it does not verify the API server's certificate, whose validity fails with a wrong clock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "operator.yaml").write_text(yaml.safe_dump(config))
    kubeconfig = kubeconfig_with_token(cluster, NAMESPACE, "memdiag-operator", folder)
    _redirect(kubeconfig, server, trusting=trusting)
    health_port, metrics_port = free_ports(2)
    url, metrics = f"http://127.0.0.1:{health_port}/healthz", f"127.0.0.1:{metrics_port}"
    log = folder / "operator.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "memdiag_operator"),
                *(f"--config={folder / 'operator.yaml'}", f"--liveness={url}", f"--metrics={metrics}"),
            ],
            env={**os.environ, **DEPLOYED, **(environment or {}), "KUBECONFIG": str(kubeconfig)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    operator = OperatorProcess(process, log, url, f"http://{metrics}/metrics")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not operator.is_up():
            assert time.monotonic() < deadline, operator.log
            time.sleep(0.1)
        yield operator
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """TCP ports of this machine that are currently free: several test sessions may run side by side."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def kubeconfig_with_token(cluster: TestCluster, namespace: str, service_account: str, folder: Path) -> Path:
    """A kubeconfig in `folder` that reaches the cluster as this service account."""
    token = cluster.kubectl("-n", namespace, "create", "token", service_account).strip()
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    path = folder / f"{namespace}-{service_account}.kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def _redirect(kubeconfig: Path, server: str, *, trusting: bool) -> None:
    document = yaml.safe_load(kubeconfig.read_text())
    cluster = document["clusters"][0]["cluster"]
    if server:
        cluster["server"] = server
    if trusting:
        cluster.pop("certificate-authority", None)
        cluster.pop("certificate-authority-data", None)
        cluster["insecure-skip-tls-verify"] = True
    kubeconfig.write_text(yaml.safe_dump(document))
