"""Memory that hangs on files: page cache, shmem and dentries, each with what names its file.

Each is a context manager that yields a record of what was planted.
"""

import contextlib
import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from planted.child import Truth, held
from planted.held_by_fd import enter_own_mounts
from planted.sockets.common import MIB, PAGE_BYTES, libc

_IPC_PRIVATE, _IPC_RMID = 0, 0
_SYS_MEMFD_SECRET = 447
REAL_FOLDER = Path("/var/tmp")  # on the machine's disk, and on a guest's: not a tmpfs
MEMFD_NAME = "planted-memfd"


@dataclass(frozen=True, slots=True)
class PlantedFile:
    """One file with all its pages in memory."""

    pid: int
    fd: int
    inode: int
    device: int
    """st_dev of the file."""
    size_bytes: int
    path: str
    """Where the file is or was, as its process sees it; the name of a memfd."""


@dataclass(frozen=True, slots=True)
class TmpfsMount:
    """A tmpfs in the mount namespace of one process, with files that no process has open."""

    pid: int
    mount_point: str
    device: int
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SysvSegment:
    """A System V shared memory segment that no process has attached."""

    segment: int
    creator_pid: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NegativeDentries:
    """Names that were looked up in a folder, and do not exist."""

    folder: str
    inode: int
    device: int
    names: int


@contextlib.contextmanager
def memfd(size_bytes: int = 500 * MIB) -> Iterator[PlantedFile]:
    """A file in memory without a name in any file system."""
    with held(_memfd, size_bytes) as child:
        yield PlantedFile(child.pid, **child.truth)


@contextlib.contextmanager
def cached_file(size_bytes: int, *, deleted: bool = False, folder: Path = REAL_FOLDER) -> Iterator[PlantedFile]:
    """A file of a real file system with all its pages in the page cache; `deleted`: only its fd is left."""
    with held(_cached_file, size_bytes, deleted, str(folder)) as child:
        yield PlantedFile(child.pid, **child.truth)


@contextlib.contextmanager
def tmpfs_mount(files: int, file_bytes: int, system: str = "tmpfs") -> Iterator[TmpfsMount]:
    """Files in a tmpfs (or a ramfs) of its own, which no process has open."""
    with held(_tmpfs_mount, files, file_bytes, system) as child:
        yield TmpfsMount(child.pid, files=files, size_bytes=files * file_bytes, **child.truth)


@contextlib.contextmanager
def secret_memory(size_bytes: int) -> Iterator[PlantedFile]:
    """Memory that not even the kernel has mapped (man 2 memfd_secret). Raises OSError where it is not enabled."""
    with held(_secret_memory, size_bytes) as child:
        yield PlantedFile(child.pid, **child.truth)


@contextlib.contextmanager
def sysv_segment(size_bytes: int) -> Iterator[SysvSegment]:
    """A segment that is filled, and then detached by its only process."""
    with held(_sysv_segment, size_bytes) as child:
        yield SysvSegment(child.truth["segment"], child.pid, size_bytes)


@contextlib.contextmanager
def negative_dentries(names: int, folder: Path = REAL_FOLDER) -> Iterator[NegativeDentries]:
    """Look up names that do not exist, in a folder of a real file system; they end with the folder."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="planted-") as path:
        for number in range(names):
            with contextlib.suppress(FileNotFoundError):
                Path(path, f"absent-{number}").stat()
        found = Path(path).stat()
        yield NegativeDentries(path, found.st_ino, found.st_dev, names)


def _memfd(kept: ExitStack, size_bytes: int) -> Truth:
    fd = os.memfd_create(MEMFD_NAME)
    kept.callback(os.close, fd)
    return _filled(fd, size_bytes) | {"path": MEMFD_NAME}


def _cached_file(kept: ExitStack, size_bytes: int, deleted: bool, folder: str) -> Truth:
    fd, path = tempfile.mkstemp(dir=folder, prefix="planted-")
    kept.callback(os.close, fd)
    if deleted:
        Path(path).unlink()
    else:
        kept.callback(Path(path).unlink)
    return _filled(fd, size_bytes) | {"path": path}


def _filled(fd: int, size_bytes: int) -> Truth:
    for offset in range(0, size_bytes, MIB):
        os.write(fd, b"f" * min(MIB, size_bytes - offset))
    found = os.fstat(fd)
    return {"fd": fd, "inode": found.st_ino, "device": found.st_dev, "size_bytes": found.st_size}


def _tmpfs_mount(kept: ExitStack, files: int, file_bytes: int, system: str) -> Truth:
    folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="planted-"))
    enter_own_mounts()
    if libc.mount(b"planted", folder.encode(), system.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {system}")
    kept.callback(libc.umount2, folder.encode(), 0)
    for number in range(files):
        Path(folder, f"file-{number}").write_bytes(b"t" * file_bytes)
    return {"mount_point": folder, "device": Path(folder).stat().st_dev}


def _secret_memory(kept: ExitStack, size_bytes: int) -> Truth:
    fd = libc.syscall(_SYS_MEMFD_SECRET, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "memfd_secret")
    kept.callback(os.close, fd)
    os.ftruncate(fd, size_bytes)
    memory = kept.enter_context(mmap.mmap(fd, size_bytes))  # it is locked: RLIMIT_MEMLOCK, or CAP_IPC_LOCK
    for offset in range(0, size_bytes, PAGE_BYTES):
        memory[offset] = 1
    found = os.fstat(fd)
    return {"fd": fd, "inode": found.st_ino, "device": found.st_dev, "size_bytes": size_bytes, "path": ""}


def _sysv_segment(kept: ExitStack, size_bytes: int) -> Truth:
    segment = libc.shmget(_IPC_PRIVATE, ctypes.c_size_t(size_bytes), 0o600)
    if segment < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    kept.callback(libc.shmctl, segment, _IPC_RMID, None)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, 0)
    ctypes.memset(address, 1, size_bytes)
    libc.shmdt(ctypes.c_void_p(address))
    return {"segment": segment}
