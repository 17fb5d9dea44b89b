"""Owners of file cache and shared memory (pure): containers that are charged, then file systems, files and segments."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from memdiag_api import limits
from memdiag_api.census.files import CachedFile, CachedFileSystem, CachedSegment, FileCensus, FileCharge, FileKind
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, MemoryOwner, OwnerKind
from memdiag_node.owners.parts import Part, class_owners, container_owner
from memdiag_node.procfs.cgroup import ContainerIdentity

SHMEM_KINDS = (FileKind.TMPFS, FileKind.MEMFD, FileKind.SHARED_ANONYMOUS, FileKind.KERNEL)
"""Kinds of files that are in memory only; System V segments are listed apart."""
_NO_CACHE = ("tmpfs", "devtmpfs", "hugetlbfs")
"""File systems whose pages are Shmem or Hugetlb."""


def file_cache_owners(
    size_bytes: int,
    processes: Mapping[ContainerIdentity, int],
    charged_bytes: Mapping[ContainerIdentity, int],
    files: FileCensus | None,
) -> ClassOwners:
    """Owners of FileCache. `charged_bytes`: cache that each container is charged for. `processes`: how many each has.

    What is charged to no container belongs to file systems: of each, at least what all containers together cannot have.
    """
    systems = [one for one in files.file_systems if one.name not in _NO_CACHE] if files else []
    in_containers_bytes = sum(charged_bytes.values())
    outside = ((system_owner(one), one.cached_bytes - in_containers_bytes) for one in systems)
    return class_owners(ClassName.FILE_CACHE, size_bytes, (*_containers(processes, charged_bytes), *outside))


def shmem_owners(
    size_bytes: int,
    processes: Mapping[ContainerIdentity, int],
    charged_bytes: Mapping[ContainerIdentity, int],
    files: FileCensus | None,
) -> ClassOwners:
    """Owners of Shmem: containers that are charged, then listed files and segments that none is charged for.

    The rest of each tmpfs belongs to it, less what all containers together can have of it.
    """
    parts = list(_containers(processes, charged_bytes))
    if files:
        outside = _outside(files, charged_bytes)
        in_containers_bytes = sum(charged_bytes.values())
        rests = [
            (system_owner(one), rest_of_system(one, files.file_systems, outside) - in_containers_bytes)
            for one in files.file_systems
            if one.name == "tmpfs"
        ]
        parts += [*map(_shmem_part, outside), *rests]
    return class_owners(ClassName.SHMEM, size_bytes, parts)


def system_owner(system: CachedFileSystem) -> MemoryOwner:
    """Return the owner for a file system, named by where it is mounted."""
    if system.is_internal and system.name == "tmpfs":
        return MemoryOwner(
            kind=OwnerKind.FILE_SYSTEM, name="other memfds, System V segments and shared anonymous memory"
        )
    name = system.mount_point or system.device
    shown = f"{name} ({system.name})" if name else system.name
    return MemoryOwner(kind=OwnerKind.FILE_SYSTEM, name=shown[: limits.MAX_SHORT_TEXT])


def file_owner(file: CachedFile) -> MemoryOwner:
    """Return the owner for a file, with the container that is charged for it."""
    return MemoryOwner(
        kind=OwnerKind.FILE,
        name=(file.path or f"inode {file.inode} of {file.file_system}")[: limits.MAX_SHORT_TEXT],
        processes=file.users_total,
        container_id=file.charged.container_id if file.charged else "",
        pod_uid=file.charged.pod_uid if file.charged else "",
    )


def segment_owner(segment: CachedSegment) -> MemoryOwner:
    """Return the owner for a System V segment, with the container that is charged for it."""
    return MemoryOwner(
        kind=OwnerKind.SHARED_MEMORY_SEGMENT,
        name=f"System V segment {segment.id}",
        container_id=segment.charged.container_id if segment.charged else "",
        pod_uid=segment.charged.pod_uid if segment.charged else "",
    )


def _containers(
    processes: Mapping[ContainerIdentity, int], charged_bytes: Mapping[ContainerIdentity, int]
) -> Iterator[Part]:
    for identity, size_bytes in sorted(charged_bytes.items(), key=lambda item: -item[1]):
        yield container_owner(identity, processes.get(identity, 0)), size_bytes


def rest_of_system(
    system: CachedFileSystem,
    systems: Sequence[CachedFileSystem],
    listed: Sequence[CachedFile | CachedSegment],
) -> int:
    """Return what a tmpfs has besides the `listed` files and segments; negative if they may have more.

    The kernel's own tmpfs has those without a path. A file of no known mount may be in any of the others.
    """
    if system.is_internal:
        here = [one for one in listed if isinstance(one, CachedSegment) or one.kind is not FileKind.TMPFS]
    else:
        mounts = [one.mount_point for one in systems if one.mount_point]
        here = [
            one
            for one in listed
            if isinstance(one, CachedFile)
            and one.kind is FileKind.TMPFS
            and _mount(one.path, mounts) in {"", system.mount_point}
        ]
    return system.cached_bytes - sum(one.cached_bytes for one in here)


def _mount(path: str, mounts: Sequence[str]) -> str:
    """Return the innermost of these mount points that has the path; empty if none has."""
    within = [one for one in mounts if path and PurePosixPath(path).is_relative_to(one)]
    return max(within, key=len, default="")


def _outside(files: FileCensus, charged_bytes: Mapping[ContainerIdentity, int]) -> list[CachedFile | CachedSegment]:
    """Return files and segments in memory only that none of these containers is charged for, largest first."""
    of_files = [one for one in files.files if one.kind in SHMEM_KINDS and not _is_counted(one.charged, charged_bytes)]
    of_segments = [one for one in files.segments if not _is_counted(one.charged, charged_bytes)]
    return sorted((*of_files, *of_segments), key=lambda one: -one.cached_bytes)


def _shmem_part(one: CachedFile | CachedSegment) -> Part:
    return (segment_owner(one) if isinstance(one, CachedSegment) else file_owner(one)), one.cached_bytes


def _is_counted(charge: FileCharge | None, charged_bytes: Mapping[ContainerIdentity, int]) -> bool:
    return charge is not None and ContainerIdentity(charge.container_id, charge.pod_uid) in charged_bytes
