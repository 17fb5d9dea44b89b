"""The memory of files in the report."""

from collections.abc import Iterator

from memdiag_api.census.files import (
    CachedFile,
    CachedFileSystem,
    CachedSegment,
    FileCensus,
    FileCharge,
    FileKind,
    FileUser,
)
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.render.text import percent, table, wrapped

_SMALL_BYTES = 1 << 20
_SHOWN = 5
_FILES_SHOWN = 10
_CONTAINER_ID_SHOWN = 12
_KINDS = {
    FileKind.FILE: "file",
    FileKind.TMPFS: "tmpfs",
    FileKind.MEMFD: "memfd",
    FileKind.SYSV_SEGMENT: "System V segment",
    FileKind.SHARED_ANONYMOUS: "shared anonymous memory",
    FileKind.KERNEL: "of the kernel",
    FileKind.BLOCK_DEVICE: "block device",
    FileKind.HUGE_PAGES: "huge pages",
}


def files_lines(record: FileCensus) -> list[str]:
    """Render page cache and shmem: file systems, the largest files and segments; nothing if there is little."""
    if record.cached_bytes < _SMALL_BYTES:
        return []
    parts = {
        "shmem": record.shmem_bytes,
        "block devices": record.block_device_bytes,
        "deleted files": record.deleted_bytes,
        "shmem in swap space": record.swapped_bytes,
        "huge pages besides": record.huge_page_bytes,
    }
    lines = [f"FILES IN MEMORY   {format_bytes(record.cached_bytes)} of {record.inodes} files"]
    lines += wrapped(", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size), "  of it ")
    if record.sampled_share < 1:
        lines.append(f"  from {record.sampled_share:.0%} of memory: sums are scaled, files may be missing")
    systems = [one for one in record.file_systems[:_SHOWN] if one.cached_bytes >= _SMALL_BYTES]
    if systems:
        rows = [("SIZE", "SHARE", "DELETED", "FILE SYSTEM")]
        rows += [_system_row(one, record.cached_bytes) for one in systems]
        lines += table(rows, right=(0, 1, 2))
    lines += [line for one in record.files[:_FILES_SHOWN] for line in _file(one)]
    return lines + [line for one in record.segments[:_SHOWN] for line in _segment(one)]


def _system_row(one: CachedFileSystem, cached_bytes: int) -> tuple[str, str, str, str]:
    device = f" {one.device}" if one.device not in ("", one.name) else ""
    where = f" at {one.mount_point}" if one.mount_point else " of the kernel" if one.is_internal else ""
    return (
        format_bytes(one.cached_bytes),
        percent(one.cached_bytes, cached_bytes),
        format_bytes(one.deleted_bytes),
        f"{one.name}{device}{where}",
    )


def _file(one: CachedFile) -> Iterator[str]:
    if one.cached_bytes < _SMALL_BYTES:
        return
    deleted = "deleted, " if one.is_deleted else ""
    is_device = one.kind is FileKind.BLOCK_DEVICE
    name = one.path or (f"block device {one.device}" if is_device else f"inode {one.inode}")
    where = f"{one.file_system} {one.device}" if one.device != one.file_system else one.file_system
    text = name if is_device else f"{name} ({_KINDS[one.kind]}, {deleted}{where})"
    yield from wrapped(text, f"  {format_bytes(one.cached_bytes):>9}  ")
    notes = [_user(user) for user in one.users] + _charged(one.charged)
    if one.users_total > len(one.users):
        notes.append(f"{one.users_total - len(one.users)} more processes")
    if not notes and one.kind not in (FileKind.FILE, FileKind.BLOCK_DEVICE):
        notes.append("no process has it open or mapped")
    yield from wrapped(", ".join(notes), " " * 13)


def _segment(one: CachedSegment) -> Iterator[str]:
    if one.cached_bytes < _SMALL_BYTES:
        return
    used = f"attached {one.attached} times" if one.attached else "attached by no process"
    creator = one.creator
    by = shown_process(creator.comm, creator.pid) if creator.comm else f"process {creator.pid}, which has exited"
    text = ", ".join([f"System V segment {one.id}, {used}", f"created by {by}", *_charged(one.charged)])
    yield from wrapped(text, f"  {format_bytes(one.cached_bytes):>9}  ")


def _user(user: FileUser) -> str:
    name = shown_process(user.comm, user.pid) if user.comm else f"process {user.pid}"
    fds = f" fd {','.join(map(str, user.fds))}" if user.fds else ""
    return f"{name}{fds}{' mapped' if user.mapped_bytes else ''}"


def _charged(charge: FileCharge | None) -> list[str]:
    if charge is None or not charge.container_id:
        return []
    return [f"charged to container {charge.container_id[:_CONTAINER_ID_SHOWN]}"]
