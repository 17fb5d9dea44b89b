"""Files of a ramfs: page cache that the kernel cannot give back, because no device or server has its data (pure)."""

from collections.abc import Iterator, Sequence

from memdiag_api import limits
from memdiag_api.census.files import CachedFile, CachedFileSystem, FileCensus
from memdiag_api.findings import FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.owners.file_classes import system_owner

_MAX_LISTED = 3
_LOCKED = "secretmem"
RAMFS_TYPES = frozenset({"ramfs", _LOCKED})
"""fs/ramfs/inode.c, mm/secretmem.c (man 2 memfd_secret)."""


def ramfs_files(files: FileCensus | None, *, thresholds: Thresholds, mem_total_bytes: int) -> Iterator[Draft]:
    """Yield each such file system that has the notable size. The kernel counts its pages as cache of files."""
    for system in ramfs_systems(files):
        if files and system.cached_bytes >= thresholds.notable_bytes(mem_total_bytes):
            listed = [one for one in files.files if (one.file_system, one.device) == (system.name, system.device)]
            yield _draft(system, listed)


def ramfs_systems(files: FileCensus | None) -> list[CachedFileSystem]:
    """Return all such file systems."""
    return [one for one in files.file_systems if one.name in RAMFS_TYPES] if files else []


def _draft(system: CachedFileSystem, listed: Sequence[CachedFile]) -> Draft:
    size, where = format_bytes(system.cached_bytes), f" mounted at {system.mount_point}" if system.mount_point else ""
    owner = None if where else _only_user(listed)
    who = f"process {owner.name}" if owner else "the processes that use its files"
    return Draft(
        kind=FindingKind.SHARED_MEMORY,
        memory_class=ClassName.FILE_CACHE,
        size_bytes=system.cached_bytes,
        owner=owner or system_owner(system),
        leak=LeakAnswer.NO,
        is_notable=True,
        freed_by=FreedBy(
            action=f"delete files in {system.mount_point}, or unmount it" if where else f"end {who}",
            size_bytes=system.cached_bytes,
        ),
        sentence=f"{size} are in files of a {system.name}{where}; the kernel cannot give it back",
        reasons=[
            "their data is nowhere else: it counts as cache of files, but stays when memory is needed",
            *map(_file_text, sorted(listed, key=lambda one: -one.cached_bytes)[:_MAX_LISTED]),
        ],
        advice="Check which process has so much secret memory: it is locked, and in no swap space."
        if system.name == _LOCKED
        else "A ramfs has no size limit. Use a tmpfs with a limit instead, or delete what is not needed.",
        sections=("census.files",),
    )


def _only_user(listed: Sequence[CachedFile]) -> MemoryOwner | None:
    """Return the process that uses all the listed files, if one process does."""
    users = {user.pid: user for one in listed for user in one.users}
    if len(users) != 1 or any(one.users_total != 1 for one in listed):
        return None
    (user,) = users.values()
    fds = sorted({fd for one in listed for other in one.users for fd in other.fds})
    return MemoryOwner(
        kind=OwnerKind.PROCESS,
        name=shown_process(user.comm, user.pid),
        pid=user.pid,
        comm=user.comm,
        fds=fds[: limits.MAX_OWNER_FDS],
        container_id=user.container_id,
        pod_uid=user.pod_uid,
    )


def _file_text(file: CachedFile) -> str:
    """Return `/scratch/file has 300 MiB`, with the process that uses it most, if any does."""
    name = file.path or f"inode {file.inode}"
    user = f", used by {shown_process(file.users[0].comm, file.users[0].pid)}" if file.users else ""
    return f"{name} has {format_bytes(file.cached_bytes)}{user}"
