"""The memory of all files as it was read, and its record in the document (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass

from memdiag_api import limits
from memdiag_api.census.files import (
    CachedFile,
    CachedFileSystem,
    CachedSegment,
    FileCensus,
    FileCharge,
    FileKind,
    FileUser,
)
from memdiag_node.census.files.charges import Charge
from memdiag_node.census.files.super_blocks import FileSystem
from memdiag_node.census.files.users import FileUse
from memdiag_node.processes import OwnerOf
from memdiag_node.procfs.cgroup import ContainerIdentity

_NO_CONTAINER = ContainerIdentity("", "")
_NAMED_KINDS = (
    ("memfd:", FileKind.MEMFD),
    ("SYSV", FileKind.SYSV_SEGMENT),
    ("dev/zero", FileKind.SHARED_ANONYMOUS),
)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One of the largest files."""

    kind: FileKind
    system: FileSystem
    inode: int
    """Its number in the file system."""
    path: str
    is_deleted: bool
    cached_bytes: int
    size_bytes: int
    swapped_bytes: int
    charge: Charge | None
    uses: Mapping[int, FileUse]
    """By pid."""


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """One of the largest System V segments."""

    identifier: int
    cached_bytes: int
    size_bytes: int
    swapped_bytes: int
    attached: int
    creator_pid: int
    charge: Charge | None


@dataclass(frozen=True, slots=True)
class SystemSum:
    """The files of one file system."""

    system: FileSystem
    mount_point: str
    inodes: int
    cached_bytes: int
    deleted_bytes: int


@dataclass(frozen=True, slots=True)
class RawFiles:
    """What was read, in bytes. Sums are those of the memory that was read, see `sampled_share`."""

    inodes: int
    cached_bytes: int
    shmem_bytes: int
    block_device_bytes: int
    deleted_bytes: int
    huge_page_bytes: int
    swapped_bytes: int
    systems: list[SystemSum]
    systems_total: int
    files: list[FoundFile]
    segments: list[FoundSegment]
    segments_total: int
    sampled_share: float


def file_kind(system: FileSystem, name: str, *, is_shmem: bool) -> FileKind:
    """Return the kind of a file by its file system and, if it is in memory only, by its name."""
    if system.name == "bdev":
        return FileKind.BLOCK_DEVICE
    if system.name == "hugetlbfs":
        return FileKind.HUGE_PAGES
    if not is_shmem:
        return FileKind.FILE
    if not system.is_internal:
        return FileKind.TMPFS
    return next((kind for start, kind in _NAMED_KINDS if name.startswith(start)), FileKind.KERNEL)


def files_record(
    raw: RawFiles, owner_of: OwnerOf, containers: Mapping[int, ContainerIdentity], *, page_bytes: int
) -> FileCensus:
    """Return the record. `containers`: the container of each memory cgroup, by its inode."""

    def scaled(size_bytes: int) -> int:
        return round(size_bytes / raw.sampled_share / page_bytes) * page_bytes if raw.sampled_share else 0

    return FileCensus(
        inodes=round(raw.inodes / raw.sampled_share) if raw.sampled_share else 0,
        cached_bytes=scaled(raw.cached_bytes),
        shmem_bytes=scaled(raw.shmem_bytes),
        block_device_bytes=scaled(raw.block_device_bytes),
        deleted_bytes=scaled(raw.deleted_bytes),
        huge_page_bytes=scaled(raw.huge_page_bytes),
        swapped_bytes=scaled(raw.swapped_bytes),
        file_systems=[
            CachedFileSystem(
                name=one.system.name,
                device=one.system.device,
                mount_point=one.mount_point,
                is_internal=one.system.is_internal,
                inodes=round(one.inodes / raw.sampled_share),
                cached_bytes=scaled(one.cached_bytes),
                deleted_bytes=scaled(one.deleted_bytes),
            )
            for one in raw.systems
        ],
        file_systems_total=raw.systems_total,
        files=[_file(one, owner_of, containers) for one in raw.files],
        segments=[_segment(one, owner_of, containers) for one in raw.segments],
        segments_total=raw.segments_total,
        sampled_share=min(1.0, raw.sampled_share),
    )


def _file(one: FoundFile, owner_of: OwnerOf, containers: Mapping[int, ContainerIdentity]) -> CachedFile:
    users = sorted(one.uses.items(), key=lambda use: (-use[1].mapped_bytes, use[0]))
    return CachedFile(
        kind=one.kind,
        file_system=one.system.name,
        device=one.system.device,
        inode=one.inode,
        path=one.path,
        is_deleted=one.is_deleted,
        cached_bytes=one.cached_bytes,
        size_bytes=one.size_bytes,
        swapped_bytes=one.swapped_bytes,
        charged=_charge(one.charge, containers),
        users=[_user(pid, owner_of, use) for pid, use in users[: limits.MAX_FILE_USERS]],
        users_total=len(users),
    )


def _segment(one: FoundSegment, owner_of: OwnerOf, containers: Mapping[int, ContainerIdentity]) -> CachedSegment:
    return CachedSegment(
        id=one.identifier,
        cached_bytes=one.cached_bytes,
        size_bytes=one.size_bytes,
        swapped_bytes=one.swapped_bytes,
        attached=one.attached,
        creator=_user(one.creator_pid, owner_of, FileUse()),
        charged=_charge(one.charge, containers),
    )


def _user(pid: int, owner_of: OwnerOf, use: FileUse) -> FileUser:
    owner = owner_of(pid)
    return FileUser(
        pid=pid,
        comm=owner.comm if owner else "",
        fds=sorted(use.fds)[: limits.MAX_FILE_FDS],
        mapped_bytes=use.mapped_bytes,
        container_id=owner.container_id if owner else "",
        pod_uid=owner.pod_uid if owner else "",
    )


def _charge(charge: Charge | None, containers: Mapping[int, ContainerIdentity]) -> FileCharge | None:
    if charge is None:
        return None
    identity = containers.get(charge.cgroup_inode, _NO_CONTAINER)
    return FileCharge(container_id=identity.container_id, pod_uid=identity.pod_uid, share=charge.share)
