"""Memory cgroups with names like those of containers, in either version of cgroups."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

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
        files = [self.path / name for name in ("memory.limit_in_bytes", "memory.max")]
        next(file for file in files if file.exists()).write_text(str(size_bytes))

    def killed(self) -> int:
        """The number of its processes that the kernel has killed for lack of memory."""
        files = [self.path / name for name in ("memory.oom_control", "memory.events")]
        lines = next(file for file in files if file.exists()).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


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


def _root() -> Path:
    if (_V1 / "memory.limit_in_bytes").exists():
        return _V1
    control = _V2 / "cgroup.subtree_control"
    if control.exists() and "memory" in control.read_text():
        return _V2
    return pytest.skip("no memory controller can be used here")
