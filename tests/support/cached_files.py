"""Files in memory made by hand."""

from collections.abc import Sequence

from memdiag_api.census.files import (
    CachedFile,
    CachedFileSystem,
    CachedSegment,
    FileCensus,
    FileCharge,
    FileKind,
    FileUser,
)
from memdiag_node.procfs.cgroup import ContainerIdentity


def user(pid: int, comm: str = "a", fds: Sequence[int] = (), *, mapped: int = 0) -> FileUser:
    return FileUser(pid=pid, comm=comm, fds=list(fds), mapped_bytes=mapped)


def charge(identity: ContainerIdentity) -> FileCharge:
    return FileCharge(container_id=identity.container_id, pod_uid=identity.pod_uid, share=1)


def cached(
    kind: FileKind,
    size_bytes: int,
    *,
    path: str = "",
    inode: int = 1,
    users: Sequence[FileUser] = (),
    users_total: int | None = None,
    is_deleted: bool = False,
    swapped: int = 0,
    charged: FileCharge | None = None,
) -> CachedFile:
    return CachedFile(
        kind=kind,
        file_system="ext4" if kind is FileKind.FILE else "tmpfs",
        inode=inode,
        path=path,
        is_deleted=is_deleted,
        cached_bytes=size_bytes,
        size_bytes=size_bytes,
        swapped_bytes=swapped,
        charged=charged,
        users=list(users),
        users_total=len(users) if users_total is None else users_total,
    )


def segment(
    identifier: int, size_bytes: int, *, attached: int = 0, creator: str = "", charged: FileCharge | None = None
) -> CachedSegment:
    return CachedSegment(
        id=identifier,
        cached_bytes=size_bytes,
        size_bytes=size_bytes,
        attached=attached,
        creator=user(900, creator),
        charged=charged,
    )


def file_system(
    name: str,
    size_bytes: int,
    *,
    mount_point: str = "",
    device: str = "",
    is_internal: bool = False,
    deleted: int = 0,
) -> CachedFileSystem:
    return CachedFileSystem(
        name=name,
        device=device,
        mount_point=mount_point,
        is_internal=is_internal,
        inodes=1,
        cached_bytes=size_bytes,
        deleted_bytes=deleted,
    )


def census_of(
    *,
    files: Sequence[CachedFile] = (),
    segments: Sequence[CachedSegment] = (),
    file_systems: Sequence[CachedFileSystem] = (),
    shmem: int = 0,
    sampled_share: float = 1,
) -> FileCensus:
    return FileCensus(
        inodes=1,
        cached_bytes=0,
        shmem_bytes=shmem,
        block_device_bytes=0,
        deleted_bytes=0,
        files=list(files),
        segments=list(segments),
        file_systems=list(file_systems),
        sampled_share=sampled_share,
    )
