"""One cluster from `up` to `down`: its components, the location of its state, and its complete removal."""

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from local_cluster import control_plane, guest_node, image_build, image_store, kubernetes_binaries, node
from local_cluster.api_client import ApiClient
from local_cluster.cache import Cache
from local_cluster.certificates import Pki
from local_cluster.cgroups import Cgroup
from local_cluster.daemons import Daemons
from local_cluster.guest_node import GuestSystem
from local_cluster.linked_copy import copy_tree
from local_cluster.locks import exclusive
from local_cluster.paths import cache_root, state_root
from local_cluster.sandbox import Network, Sandbox, free_slot, open_sandbox, remove_machine_interface
from local_cluster.steps import StepError, step

# Used in names of cgroups and files.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Record:
    """The stored state of a running cluster (`cluster.json`)."""

    slot: int
    api_only: bool
    owner_pid: int | None  # the process for which it runs; the cluster may be removed once it has exited
    owner_start: str | None
    images: str | None = None  # the key of the images on its node
    holder_pid: int | None = None

    @classmethod
    def load(cls, file: Path) -> Self | None:
        """The record in `file`; None if there is none, or if a crash left it incomplete."""
        try:
            return cls(**json.loads(file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def save(self, file: Path) -> None:
        """Write it atomically: a reader sees either the old or the new record."""
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(file)


class Cluster:
    """The cluster called `name`, running or not."""

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise StepError(f"{name!r} is not a valid cluster name", remedy="use up to 32 of a-z, 0-9 and inner dashes")
        self.name = name
        self.folder = state_root() / name
        self.cgroup = Cgroup(f"memdiag-{name}")

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig file; it exists as long as the cluster."""
        return self.folder / "pki" / "admin.kubeconfig"

    @property
    def kubectl(self) -> Path:
        """The cluster's own kubectl."""
        return self.folder / "bin" / "kubectl"

    def record(self) -> Record | None:
        """The stored state of the cluster; None if it has not been started."""
        return Record.load(self.folder / "cluster.json")

    def is_running(self) -> bool:
        """Whether its namespaces exist and its API server is ready."""
        record = self.record()
        if record is None or record.holder_pid not in self.cgroup.pids():
            return False
        return ApiClient(self._pki(record)).is_ready()

    def sandbox(self) -> Sandbox:
        """The namespaces of the running cluster."""
        record = self.record()
        if record is None or record.holder_pid is None:
            raise StepError(
                f"cluster {self.name} is not running", remedy=f"python3 -m local_cluster up --name {self.name}"
            )
        return Sandbox(record.holder_pid)

    def up(self, *, api_only: bool, owner_pid: int | None) -> None:
        """Start it, or report that it is already running; on failure or interruption, take down what was started.

        `api_only`: etcd and kube-apiserver, nothing else. Raises StepError.
        """
        _require_root()
        take_down_abandoned()
        with self._locked():
            if self.is_running():
                self._say_that_it_runs(api_only=api_only)
                return
            binaries = kubernetes_binaries.provide()
            images = None if api_only else image_store.provide()
            self._take_down()  # leftovers of a crash or a reboot of the machine
            try:
                self._start(self._claim(owner_pid, images), binaries, images)
            except BaseException as failure:
                with _uninterrupted():
                    log_kept = self.keep_log(failure)
                    self._take_down()
                if log_kept is not None:
                    raise log_kept from failure
                raise

    def add_guest(self, system: GuestSystem, images: Path) -> float:
        """Add a node in QEMU to the running cluster; returns the seconds from power-on until it was Ready.

        It is stopped with the cluster. Raises StepError with the guest's console.
        """
        sandbox, record = self.sandbox(), self.record()
        assert record is not None  # otherwise sandbox() raised
        daemons = Daemons(self.cgroup, sandbox, self.folder / "logs")
        return guest_node.join(daemons, self._pki(record), self.folder / "guest", system, images)

    def down(self) -> bool:
        """End its processes and remove its namespaces, cgroups, interface and files; False if there were none."""
        with self._locked():
            return self._take_down()

    def _start(self, record: Record, binaries: Path, images: Path | None) -> None:
        network = Network(record.slot)
        pki = self._pki(record)
        own_binaries = self.folder / "bin"
        configuration = self.folder / "configuration"
        private = self.folder / "private"
        with step("namespaces and certificates"):
            self.cgroup.create()
            sandbox = open_sandbox(self.cgroup, network, private)
            Record(**{**asdict(record), "holder_pid": sandbox.holder_pid}).save(self.folder / "cluster.json")
            pki.create(node.NODE_NAME)
            copy_tree(binaries, own_binaries)  # the cache may be cleaned while the cluster runs
            if images is not None:
                copy_tree(images, private / node.CONTAINERD_ROOT.relative_to("/"))
        daemons = Daemons(self.cgroup, sandbox, self.folder / "logs")
        with step("API server"):
            if images is not None:
                node.start_containerd(daemons, configuration)
            control_plane.start_api_server(daemons, own_binaries, pki, self.folder / "etcd", alone=images is None)
        if images is None:
            return
        with step("node Ready"):
            control_plane.start_controllers(daemons, own_binaries, pki)
            node.start_kubelet_and_proxy(daemons, own_binaries, pki, configuration)
            node.wait_until_ready(daemons, pki)
            control_plane.wait_for_controllers(daemons, pki)

    def _claim(self, owner_pid: int | None, images: Path | None) -> Record:
        """Take a slot that no other cluster has, and store it before anything is created."""
        with exclusive(state_root() / ".slots.lock"):
            taken = {record.slot for other in all_clusters() if (record := other.record())}
            owner_start = _start_time(owner_pid) if owner_pid else None
            record = Record(free_slot(taken), images is None, owner_pid, owner_start, images.name if images else None)
            self.folder.mkdir(parents=True)
            record.save(self.folder / "cluster.json")
        return record

    def _say_that_it_runs(self, *, api_only: bool) -> None:
        record = self.record()
        if record and record.api_only and not api_only:
            raise StepError(
                f"cluster {self.name} runs without a node",
                remedy=f"python3 -m local_cluster down --name {self.name}, or choose another name",
            )
        with step(f"cluster {self.name}") as current:
            current.outcome = "already running"
            if record and record.images not in {None, image_build.key()}:
                current.outcome += ", with images of an older source: take it down to update them"

    def keep_log(self, failure: BaseException) -> StepError | None:
        """The failure with its log copied out of the cluster's folder, which will be deleted; None without a log."""
        if not isinstance(failure, StepError) or failure.log is None or not failure.log.is_relative_to(self.folder):
            return None
        kept = Cache(cache_root()).log(f"{self.name}-{failure.log.stem}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(failure.log, kept)
        return StepError(failure.problem, log=kept, remedy=failure.remedy, log_lines=failure.log_lines)

    def _take_down(self) -> bool:
        record = self.record()
        if not self.folder.exists() and not self.cgroup.exists():
            return False
        self.cgroup.kill()
        self.cgroup.remove()
        if record is not None:
            remove_machine_interface(Network(record.slot))
        if self.folder.exists():
            shutil.rmtree(self.folder)
        return True

    def _pki(self, record: Record) -> Pki:
        return Pki(self.folder / "pki", Network(record.slot))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = state_root() / f".{self.name}.lock"
        with exclusive(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)


def all_clusters() -> list[Cluster]:
    """All clusters that have a folder, sorted by name."""
    return [Cluster(file.parent.name) for file in sorted(state_root().glob("*/cluster.json"))]


def take_down_abandoned() -> None:
    """Take down the clusters whose owner has exited without taking them down."""
    for cluster in all_clusters():
        record = cluster.record()
        if record and record.owner_pid and _start_time(record.owner_pid) != record.owner_start:
            with step(f"abandoned cluster {cluster.name}") as current:
                cluster.down()
                current.outcome = "taken down"


def _start_time(pid: int) -> str | None:
    """The start time of the process, in clock ticks since boot: with the PID it identifies one process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[19]  # field 22 of proc(5); the name before it may contain spaces


def _require_root() -> None:
    if os.geteuid() != 0:
        raise StepError("a cluster needs root, for namespaces, cgroups and containerd", remedy="run it with sudo")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Finish the body even if Ctrl-C is pressed again."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
