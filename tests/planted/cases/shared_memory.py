"""Shared memory: files in memory that a process has, that nobody has open, or that removed cgroups are charged for."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from planted.cases.case import Answer, Case, PlantedTruth, UnavailableError
from planted.child import Truth, held
from planted.files import PlantedFile, cached_file, memfd, sysv_segment, tmpfs_mount
from planted.held_by_fd import enter_own_mounts
from planted.sockets.common import MIB, libc

_CGROUPS = Path("/sys/fs/cgroup/memory")
_SHARED = ("SharedMemory", "LargeHolder")


@contextlib.contextmanager
def _tmpfs_file() -> Iterator[PlantedTruth]:
    with memfd(500 * MIB) as load:
        yield _file(load, Answer.HARMLESS)


@contextlib.contextmanager
def _deleted_file() -> Iterator[PlantedTruth]:
    with cached_file(400 * MIB, deleted=True, folder=Path("/dev/shm")) as load:
        yield _file(load, Answer.OPEN)


@contextlib.contextmanager
def _orphan_files() -> Iterator[PlantedTruth]:
    with tmpfs_mount(40, 10 * MIB) as load:
        names = (load.mount_point,)
        yield PlantedTruth(Answer.OPEN, _SHARED, ("Shmem",), load.size_bytes, names=names)


@contextlib.contextmanager
def _sysv_segment() -> Iterator[PlantedTruth]:
    with sysv_segment(400 * MIB) as load:
        names = (f"SYSV segment {load.segment}", f"segment {load.segment}", f"shmid {load.segment}", "SYSV00000000")
        yield PlantedTruth(Answer.OPEN, _SHARED, ("Shmem",), load.size_bytes, names=names)


@contextlib.contextmanager
def _removed_cgroups() -> Iterator[PlantedTruth]:
    if not (_CGROUPS / "memory.limit_in_bytes").exists():
        raise UnavailableError("there is no hierarchy of memory cgroups of version 1")
    with held(_remove_cgroups, 200, 2 * MIB) as child:
        yield PlantedTruth(
            Answer.OPEN,
            ("RemovedCgroups", *_SHARED),
            ("Shmem",),
            child.truth["size_bytes"],
            names=(child.truth["mount_point"],),
            owning_kinds=("RemovedCgroups",),
        )


def _file(load: PlantedFile, answer: Answer) -> PlantedTruth:
    names = (Path(load.path).name,)
    return PlantedTruth(answer, _SHARED, ("Shmem",), load.size_bytes, pids=(load.pid,), fds=(load.fd,), names=names)


def _remove_cgroups(kept: ExitStack, cgroups: int, each_bytes: int) -> Truth:
    """Jobs that each write a file into a tmpfs and end, and whose cgroup is removed: its file keeps it."""
    folder = tempfile.mkdtemp(prefix="planted-")
    kept.callback(shutil.rmtree, folder)
    enter_own_mounts()
    if libc.mount(b"planted", folder.encode(), b"tmpfs", 0, None):
        raise OSError("mount tmpfs")
    kept.callback(libc.umount2, folder.encode(), 0)
    for number in range(cgroups):
        cgroup = _CGROUPS / f"planted-{os.getpid()}-{number}"
        cgroup.mkdir()
        job = os.fork()
        if job == 0:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            Path(folder, f"job-{number}").write_bytes(b"j" * each_bytes)
            os._exit(0)
        os.waitpid(job, 0)
        cgroup.rmdir()
    return {"mount_point": folder, "size_bytes": cgroups * each_bytes}


CASES = (
    Case("tmpfs_file", "a memfd of 500 MiB", _tmpfs_file),
    Case("deleted_tmpfs_file", "a deleted file of 400 MiB in a tmpfs, kept by an fd", _deleted_file),
    Case("orphan_tmpfs_files", "40 files of 10 MiB in a tmpfs that nobody has open", _orphan_files),
    Case("sysv_segment", "a System V segment of 400 MiB that nobody has attached", _sysv_segment),
    Case("removed_cgroups", "200 removed cgroups, each charged for 2 MiB of a tmpfs", _removed_cgroups),
)
