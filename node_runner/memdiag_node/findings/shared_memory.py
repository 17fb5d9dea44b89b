"""Shared memory: tmpfs files, memfds, System V segments and shared anonymous memory, and who keeps them (pure)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memdiag_api import limits
from memdiag_api.census.files import CachedFile, CachedFileSystem, CachedSegment, FileCensus, FileKind, FileUser
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, MemoryOwner, OwnerKind
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.owner_words import ending, listed, who
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.owners.file_classes import SHMEM_KINDS, file_owner, rest_of_system, segment_owner, system_owner

_SECTIONS = ("owners", "census.files")
_WORDS = {
    FileKind.TMPFS: "files in tmpfs",
    FileKind.MEMFD: "memfds",
    FileKind.SHARED_ANONYMOUS: "shared anonymous memory",
    FileKind.KERNEL: "files of the kernel",
}


def shared_memory(
    owners: Sequence[ClassOwners],
    files: FileCensus | None,
    *,
    thresholds: Thresholds,
    mem_total_bytes: int,
) -> Iterator[Draft]:
    """Yield each file and segment in memory only that has at least `notable_bytes`, then smaller ones in groups.

    Small files are grouped by the process that keeps them, or by their mount. Nothing is in two findings, and together
    they account for at most the class. Without the census of files: the containers that are charged for it.

    A memfd, a deleted file and shared anonymous memory go when their last process lets go of them, and a tmpfs file is
    somebody's data: none of that is a leak. A System V segment that no process is attached to may be one: the kernel
    keeps it until it is removed, but a process may attach to it again.
    """
    least_bytes = thresholds.notable_bytes(mem_total_bytes)
    of_class = next((one for one in owners if one.memory_class == ClassName.SHMEM), None)
    drafts = _of_files(files, least_bytes) if files else _of_containers(of_class, least_bytes)
    left_bytes = of_class.size_bytes if of_class else (files.shmem_bytes if files else 0)
    for draft in sorted(drafts, key=lambda one: -one.size_bytes):
        claimed_bytes = min(left_bytes, draft.size_bytes)
        left_bytes -= claimed_bytes
        yield replace(draft, claims_bytes={ClassName.SHMEM: claimed_bytes})


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Who keeps a file in memory."""

    user: FileUser
    processes: int

    @property
    def _others(self) -> str:
        others = self.processes - 1
        return f"{others} other process{'es' if others > 1 else ''}"

    @property
    def words(self) -> str:
        """The process, its fds if it is the only one, and how many others there are."""
        name = shown_process(self.user.comm, self.user.pid)
        if self.processes > 1:
            return f"{name} and {self._others}"
        fds = self.user.fds
        return f"{name} (fd{'s' if len(fds) > 1 else ''} {listed([str(fd) for fd in fds])})" if fds else name

    @property
    def owner(self) -> MemoryOwner:
        return MemoryOwner(
            kind=OwnerKind.PROCESS,
            name=shown_process(self.user.comm, self.user.pid),
            pid=self.user.pid,
            comm=self.user.comm,
            fds=self.user.fds[: limits.MAX_OWNER_FDS],
            processes=self.processes,
            container_id=self.user.container_id,
            pod_uid=self.user.pod_uid,
        )

    def closing(self, size_bytes: int | None) -> FreedBy:
        """What makes the keeper let go."""
        name = shown_process(self.user.comm, self.user.pid)
        if self.processes > 1:
            return FreedBy(
                action=f"end {name} and {self._others} that use it, or close it in all of them",
                size_bytes=size_bytes,
            )
        fds = self.user.fds
        if fds and not self.user.mapped_bytes:
            return FreedBy(
                action=f"close fd {listed([str(fd) for fd in fds])} of {name}, or end it", size_bytes=size_bytes
            )
        return FreedBy(action=f"end {name}", size_bytes=size_bytes)


def _keeper(file: CachedFile) -> _Keeper | None:
    return _Keeper(file.users[0], file.users_total) if file.users else None


def _of_containers(of_class: ClassOwners | None, least_bytes: int) -> Iterator[Draft]:
    for share in of_class.owners if of_class else ():
        if share.size_bytes >= least_bytes:
            yield Draft(
                kind=FindingKind.SHARED_MEMORY,
                memory_class=ClassName.SHMEM,
                size_bytes=share.size_bytes,
                owner=share.owner,
                leak=LeakAnswer.NO,
                is_notable=True,
                freed_by=ending(share.owner, None),
                sentence=f"{who(share.owner)} is charged for {format_bytes(share.size_bytes)} of shared memory",
                advice="Run the check KernelObjects to see the files, memfds and segments.",
                sections=("owners",),
            )


def _of_files(files: FileCensus, least_bytes: int) -> Iterator[Draft]:
    listed_files = [one for one in files.files if one.kind in SHMEM_KINDS]
    confidence = Confidence.HIGH if files.sampled_share >= 1 else Confidence.MEDIUM
    large = [one for one in listed_files if one.cached_bytes >= least_bytes]
    for file in large:
        yield _of_file(file, confidence)
    users = {one.inode: one for one in files.files if one.kind is FileKind.SYSV_SEGMENT}
    segments = [one for one in files.segments if one.cached_bytes >= least_bytes]
    for segment in segments:
        yield _of_segment(segment, users.get(segment.id), confidence)
    small = [one for one in listed_files if one.cached_bytes < least_bytes]
    grouped = list(_groups(small, least_bytes))
    for group in grouped:
        yield _of_group(group, confidence)
    said = [*large, *(one for group in grouped for one in group)]
    for system in files.file_systems:
        if system.name == "tmpfs" and not system.is_internal:
            yield from _of_mount(system, files.file_systems, said, confidence, least_bytes)
    yield from _of_internal(files, said, segments, confidence, least_bytes)


def _of_file(file: CachedFile, confidence: Confidence) -> Draft:
    size, keeper = format_bytes(file.cached_bytes), _keeper(file)
    name = file.path or f"inode {file.inode}"
    is_kept = file.kind is not FileKind.TMPFS or file.is_deleted
    if file.kind is FileKind.TMPFS:
        what = f"the deleted file {name}" if file.is_deleted else f"the file {name} in tmpfs"
    else:
        what = {FileKind.MEMFD: name, FileKind.SHARED_ANONYMOUS: "shared anonymous memory"}.get(
            file.kind, f"{name}, a file of the kernel"
        )
    used = f", used by {keeper.words}" if keeper else ", which no process has open or mapped"
    return Draft(
        kind=FindingKind.SHARED_MEMORY,
        memory_class=ClassName.SHMEM,
        size_bytes=file.cached_bytes,
        owner=keeper.owner if keeper and is_kept else file_owner(file),
        leak=LeakAnswer.NO,
        is_notable=file.kind is not FileKind.SHARED_ANONYMOUS,
        freed_by=_freeing(file, keeper),
        confidence=confidence,
        sentence=f"{size} are in {what}{used}",
        reasons=list(_file_reasons(file)),
        advice="Files in memory are not reclaimed. They count for the container that wrote them, until they are "
        "deleted and nobody has them open.",
        sections=_SECTIONS,
    )


def _freeing(file: CachedFile, keeper: _Keeper | None) -> FreedBy | None:
    if file.kind is FileKind.TMPFS and not file.is_deleted:
        name = file.path or f"inode {file.inode}"
        if keeper is None:
            return FreedBy(action=f"delete {name}", size_bytes=file.cached_bytes)
        return FreedBy(action=f"delete {name}, and {keeper.closing(None).action}", size_bytes=file.cached_bytes)
    return keeper.closing(file.cached_bytes) if keeper else None


def _file_reasons(file: CachedFile) -> Iterator[str]:
    if file.charged and (file.charged.container_id or file.charged.pod_uid):
        owner = MemoryOwner(
            kind=OwnerKind.CONTAINER if file.charged.container_id else OwnerKind.POD,
            container_id=file.charged.container_id,
            pod_uid=file.charged.pod_uid,
        )
        yield f"{file.charged.share:.0%} of its sampled pages are charged to {who(owner)}"
    if file.swapped_bytes:
        yield f"another {format_bytes(file.swapped_bytes)} of it are in swap space"


def _of_segment(segment: CachedSegment, file: CachedFile | None, confidence: Confidence) -> Draft:
    keeper = _keeper(file) if file else None
    creator = segment.creator
    made = f"created by {shown_process(creator.comm, creator.pid)}" if creator.comm else "its creator has exited"
    if segment.attached:
        users = f"used by {keeper.words}" if keeper else f"to which processes are attached ({segment.attached} times)"
    else:
        users = "which no process is attached to"
    owner = segment_owner(segment)
    if keeper:
        owner = owner.model_copy(
            update={"pid": keeper.user.pid, "comm": keeper.user.comm, "processes": keeper.processes}
        )
    return Draft(
        kind=FindingKind.SHARED_MEMORY,
        memory_class=ClassName.SHMEM,
        size_bytes=segment.cached_bytes,
        owner=owner,
        leak=LeakAnswer.NO if segment.attached else LeakAnswer.UNKNOWN,
        freed_by=FreedBy(
            action=f"ipcrm -m {segment.id}, in its IPC namespace" + (", and end its users" if segment.attached else ""),
            size_bytes=segment.cached_bytes,
        ),
        confidence=confidence,
        sentence=f"{format_bytes(segment.cached_bytes)} are in System V segment {segment.id}, {users}",
        reasons=[
            made,
            *(
                [f"another {format_bytes(segment.swapped_bytes)} of it are in swap space"]
                if segment.swapped_bytes
                else []
            ),
        ],
        advice=""
        if segment.attached
        else "The kernel keeps a segment until it is removed. Check whether a program will attach to it again.",
        sections=_SECTIONS,
    )


def _groups(small: Sequence[CachedFile], least_bytes: int) -> Iterator[list[CachedFile]]:
    """Yield the small files that one process keeps, if they are notable together."""
    by_keeper: dict[int, list[CachedFile]] = {}
    for file in small:
        if file.users and (file.kind is not FileKind.TMPFS or file.is_deleted):
            by_keeper.setdefault(file.users[0].pid, []).append(file)
    for files in by_keeper.values():
        if sum(one.cached_bytes for one in files) >= least_bytes:
            yield files


def _of_group(files: Sequence[CachedFile], confidence: Confidence) -> Draft:
    size_bytes = sum(one.cached_bytes for one in files)
    user = files[0].users[0]
    keeper = _Keeper(user.model_copy(update={"fds": sorted({fd for one in files for fd in one.users[0].fds})}), 1)
    kinds = listed(list(dict.fromkeys(_WORDS[one.kind] for one in files)))
    own_bytes = sum(one.cached_bytes for one in files if one.users_total == 1)
    return Draft(
        kind=FindingKind.SHARED_MEMORY,
        memory_class=ClassName.SHMEM,
        size_bytes=size_bytes,
        owner=keeper.owner,
        leak=LeakAnswer.NO,
        is_notable=True,
        freed_by=FreedBy(action=f"end {shown_process(user.comm, user.pid)}", size_bytes=own_bytes),
        confidence=confidence,
        sentence=f"{shown_process(user.comm, user.pid)} keeps {format_bytes(size_bytes)} in {len(files)} files in "
        f"memory: {kinds}",
        sections=_SECTIONS,
    )


def _of_mount(
    system: CachedFileSystem,
    systems: Sequence[CachedFileSystem],
    said: Sequence[CachedFile],
    confidence: Confidence,
    least_bytes: int,
) -> Iterator[Draft]:
    """Yield what a tmpfs has besides the files of other findings. A file of no known mount may be in any of them."""
    size_bytes = rest_of_system(system, systems, said)
    if size_bytes < least_bytes:
        return
    where = f"mounted at {system.mount_point}" if system.mount_point else "that is not mounted where its path is known"
    others = " other" if size_bytes < system.cached_bytes else ""
    deleted_bytes = min(system.deleted_bytes, size_bytes)
    yield Draft(
        kind=FindingKind.SHARED_MEMORY,
        memory_class=ClassName.SHMEM,
        size_bytes=size_bytes,
        owner=system_owner(system),
        leak=LeakAnswer.NO,
        is_notable=True,
        freed_by=FreedBy(action=f"delete files in {system.mount_point or 'it'}", size_bytes=size_bytes - deleted_bytes),
        confidence=confidence,
        sentence=f"{format_bytes(size_bytes)} are in{others} files of a tmpfs {where}",
        reasons=[f"{format_bytes(deleted_bytes)} of it are deleted files that are still open"] if deleted_bytes else [],
        sections=_SECTIONS,
    )


def _of_internal(
    files: FileCensus,
    said: Sequence[CachedFile],
    segments: Sequence[CachedSegment],
    confidence: Confidence,
    least_bytes: int,
) -> Iterator[Draft]:
    """Yield memfds, segments and shared anonymous memory that are too small or too many to be listed."""
    internal_bytes = sum(one.cached_bytes for one in files.file_systems if one.is_internal and one.name == "tmpfs")
    said_bytes = sum(one.cached_bytes for one in said if one.kind is not FileKind.TMPFS)
    size_bytes = internal_bytes - said_bytes - sum(one.cached_bytes for one in segments)
    if size_bytes >= least_bytes:
        yield Draft(
            kind=FindingKind.SHARED_MEMORY,
            memory_class=ClassName.SHMEM,
            size_bytes=size_bytes,
            owner=MemoryOwner(kind=OwnerKind.NODE),
            leak=LeakAnswer.NO,
            is_notable=True,
            confidence=confidence,
            sentence=f"{format_bytes(size_bytes)} are in memfds, System V segments and shared anonymous memory, each "
            "of them too small for a finding of its own",
            sections=_SECTIONS,
        )
