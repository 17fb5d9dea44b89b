"""Memory cgroups with names like those of containers, in either version of cgroups."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

IN_CGROUP = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
"""A shell script: `sh -c IN_CGROUP CGROUP COMMAND` runs the command in the cgroup from its first instruction on."""
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ContainerCgroup:
    """A cgroup like the kubelet creates for a container."""

    path: Path
    container_id: str
    pod_uid: str

    def add(self, pid: int) -> None:
        """Move a process into it: further allocations are charged to it."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def limit(self, size_bytes: int) -> None:
        """Limit its processes to this total; beyond it the kernel kills one of them."""
        limit_cgroup(self.path, size_bytes)

    def enable_memory_below(self) -> None:
        """Make cgroups in it have memory of their own; in version 1 they always have."""
        if (self.path / "cgroup.subtree_control").exists():
            (self.path / "cgroup.subtree_control").write_text("+memory")

    def killed(self) -> int:
        """The number of its processes that the kernel has killed for lack of memory."""
        return figures(first_file(self.path, "memory.oom_control", "memory.events"))["oom_kill"]

    def usage_bytes(self) -> int:
        """What is charged to it."""
        return int(first_file(self.path, "memory.usage_in_bytes", "memory.current").read_text())

    def limit_hits(self) -> int:
        """How often its limit was reached."""
        file = first_file(self.path, "memory.failcnt", "memory.events")
        return int(file.read_text()) if file.name == "memory.failcnt" else figures(file)["max"]

    def statistics(self) -> dict[str, int]:
        """Bytes by use with the names of version 2; the kernel adds up its counters for it."""
        found = figures(self.path / "memory.stat")
        if "total_rss" not in found:
            return found
        by_name = {"anon": "rss", "file": "cache"} | {name: name for name in ("shmem", "inactive_file", "active_file")}
        return {name: found[f"total_{old}"] for name, old in by_name.items()}


def run_in_cgroup(path: Path, program: str, *arguments: str) -> int:
    """Run a Python program in a cgroup, and return its exit status."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(["sh", "-c", IN_CGROUP, str(path), *command], check=False).returncode


def limit_cgroup(path: Path, size_bytes: int) -> None:
    """Limit a cgroup to this total."""
    first_file(path, "memory.limit_in_bytes", "memory.max").write_text(str(size_bytes))


def first_file(folder: Path, *names: str) -> Path:
    """The first of these files that exists."""
    return next(folder / name for name in names if (folder / name).exists())


def figures(file: Path) -> dict[str, int]:
    """The lines `NAME FIGURE` of a file."""
    return {name: int(figure) for name, figure in (line.split() for line in file.read_text().splitlines())}


@contextmanager
def container_cgroup() -> Iterator[ContainerCgroup]:
    """A cgroup of a new pod; removed at the end, when it must have no processes. Skips if none can be created."""
    root = _root()
    pod_uid, container_id = str(uuid4()), uuid4().hex * 2
    pod = root / f"memdiag-test-pod{pod_uid}"
    container = pod / container_id
    container.mkdir(parents=True)
    try:
        if root == _V2:
            (pod / "cgroup.subtree_control").write_text("+memory")
        yield ContainerCgroup(container, container_id, pod_uid)
    finally:
        container.rmdir()
        pod.rmdir()


@contextmanager
def another_container(of: ContainerCgroup) -> Iterator[ContainerCgroup]:
    """A cgroup of one more container of the same pod, as after a restart; removed at the end."""
    container_id = uuid4().hex * 2
    container = of.path.with_name(container_id)
    container.mkdir()
    try:
        yield ContainerCgroup(container, container_id, of.pod_uid)
    finally:
        container.rmdir()


def _root() -> Path:
    if (_V1 / "memory.limit_in_bytes").exists():
        return _V1
    control = _V2 / "cgroup.subtree_control"
    if control.exists() and "memory" in control.read_text():
        return _V2
    return pytest.skip("no memory controller can be used here")
