"""The cgroup of all processes of a cluster, including its containers (cgroup v1 and v2).

It makes stopping reliable: every process in it belongs to the cluster, no matter how it was started, and no process ID
has to be stored.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local_cluster.steps import StepError

KILL_DEADLINE_SECONDS = 15.0


@dataclass(frozen=True)
class Cgroup:
    """The cgroup `/NAME` in every hierarchy of the host; kubelet creates the pods' cgroups below it."""

    name: str

    def create(self) -> None:
        """Create it, with the controllers that a kubelet needs."""
        for hierarchy in _hierarchies():
            group = hierarchy / self.name
            group.mkdir(exist_ok=True)
            _inherit_cpuset(group)
            _delegate_controllers(hierarchy, group)
            (group / "system").mkdir(exist_ok=True)

    def enter(self) -> list[str]:
        """The prefix of a command that runs it in the subgroup for the cluster's own daemons.

        In one hierarchy only: this marks them as part of the cluster and limits nothing.
        """
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(_hierarchies()[0] / self.name / "system/cgroup.procs")]

    def pids(self) -> set[int]:
        """Every process in it or below it."""
        return {
            int(pid)
            for hierarchy in _hierarchies()
            for folder in _tree(hierarchy / self.name)
            for pid in _read(folder / "cgroup.procs").split()
        }

    def kill(self) -> None:
        """End every process in it, and wait until they are gone."""
        deadline = time.monotonic() + KILL_DEADLINE_SECONDS
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise StepError(f"processes {sorted(pids)} of cgroup {self.name} did not exit")
            time.sleep(0.02)

    def remove(self) -> None:
        """Delete it in every hierarchy; it must be empty of processes."""
        for hierarchy in _hierarchies():
            for folder in _tree(hierarchy / self.name):
                _remove_when_idle(folder)

    def exists(self) -> bool:
        """Whether it exists in any hierarchy."""
        return any((hierarchy / self.name).is_dir() for hierarchy in _hierarchies())


def uses_version_1() -> bool:
    """Whether the host's controllers are on cgroup v1."""
    return not Path("/sys/fs/cgroup/cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    """The mount points: one with v2, one per controller with v1, both kinds on a hybrid host."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # mountinfo: the mount point is field 5 before the dash, the file system the first after it (proc(5)).
    points = [Path(left.split()[4]) for left, right in mounts if right.split()[0] in {"cgroup", "cgroup2"}]
    found = sorted({point for point in points if point.is_relative_to("/sys/fs/cgroup")})
    if not found:
        raise StepError("no cgroup hierarchy is mounted", remedy="mount cgroup2 on /sys/fs/cgroup")
    return found


def _tree(top: Path) -> Iterator[Path]:
    """`top` and all below it, children first; nothing if it does not exist."""
    for folder, _, _ in os.walk(top, topdown=False):
        yield Path(folder)


def _read(file: Path) -> str:
    """The content of a cgroup file, empty if the cgroup was removed in the meantime."""
    try:
        return file.read_text()
    except (FileNotFoundError, OSError):
        return ""


def _inherit_cpuset(group: Path) -> None:
    """A new v1 cpuset is empty and takes no process before it is filled."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if uses_version_1() and (group / name).exists():
            (group / name).write_text((group.parent / name).read_text())


def _delegate_controllers(hierarchy: Path, group: Path) -> None:
    """On v2, delegate every controller of the host to the children of the group."""
    if uses_version_1():
        return
    for parent in (hierarchy, group):
        for controller in (parent / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):  # for example cpu, while there are real-time tasks in the root
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def _remove_when_idle(folder: Path) -> None:
    """rmdir; the kernel may need a moment after the last process has ended."""
    deadline = time.monotonic() + KILL_DEADLINE_SECONDS
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise StepError(f"cannot remove cgroup {folder}: {error.strerror}") from error
            time.sleep(0.02)
        else:
            return
