"""Files in memory: page cache and shmem by file, file system and user."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import ShortText
from memdiag_api.record import ByteCount, Count, Record, Share


class FileKind(StrEnum):
    """FileKind is where the pages of a file come from."""

    FILE = "File"
    """Of a file system with a device or a server behind it."""
    TMPFS = "Tmpfs"
    MEMFD = "Memfd"
    SYSV_SEGMENT = "SysVSegment"
    SHARED_ANONYMOUS = "SharedAnonymous"
    """Anonymous memory that processes share with their children."""
    KERNEL = "Kernel"
    """A file that the kernel made for itself, such as the buffers of a graphics driver."""
    BLOCK_DEVICE = "BlockDevice"
    HUGE_PAGES = "HugePages"


class FileUser(Record):
    """FileUser is a process that has a file open or mapped."""

    pid: Count = Field(description="Process ID in the PID namespace of the host.")
    comm: ShortText = Field(default="", description="Name of the process. Empty if it has exited.")
    fds: Annotated[list[Count], Field(max_length=limits.MAX_FILE_FDS)] = Field(
        default_factory=list, description="File descriptors through which the process has the file open."
    )
    mapped_bytes: ByteCount = Field(
        default=0, description="Address space to which the process maps the file. Not all of it need be in memory."
    )
    container_id: ShortText = Field(default="", description="ID of the process's container, from its cgroup.")
    pod_uid: ShortText = Field(default="", description="UID of the process's pod, from its cgroup.")


class FileCharge(Record):
    """FileCharge is the container to which most of the sampled pages of a file are charged."""

    container_id: ShortText = Field(default="", description="ID of the container. Empty for a cgroup of no container.")
    pod_uid: ShortText = Field(default="", description="UID of the pod.")
    share: Share = Field(description="Share of the sampled pages that are charged to it.")


class CachedFile(Record):
    """CachedFile is a file with pages in memory."""

    kind: FileKind
    file_system: ShortText = Field(default="", description="Type of the file system, such as ext4.")
    device: ShortText = Field(default="", description="Name of the file system's device, such as sda1.")
    inode: Count = Field(description="Inode number in its file system.")
    path: ShortText = Field(
        default="",
        description="Path, or the name of a memfd; cut to what shows whose it is. Empty if the kernel has no name in "
        "memory, or if the operator is configured not to report paths.",
    )
    is_deleted: bool = Field(default=False, description="Whether it was deleted and is only kept by its users.")
    cached_bytes: ByteCount = Field(description="Bytes of its pages in memory.")
    size_bytes: ByteCount = Field(description="Length of the file.")
    swapped_bytes: ByteCount = Field(default=0, description="Bytes of its pages in swap space.")
    charged: FileCharge | None = Field(
        default=None, description="To whom it is charged. Null if /proc/kpagecgroup cannot be read."
    )
    users: Annotated[list[FileUser], Field(max_length=limits.MAX_FILE_USERS)] = Field(
        default_factory=list, description="Processes that have it open or mapped, most mapped bytes first."
    )
    users_total: Count = Field(default=0, description="Number of such processes.")


class CachedSegment(Record):
    """CachedSegment is a System V shared memory segment."""

    id: Count = Field(description="shmid, unique in its IPC namespace only.")
    cached_bytes: ByteCount = Field(description="Bytes of its pages in memory.")
    size_bytes: ByteCount = Field(description="Size with which it was created.")
    swapped_bytes: ByteCount = Field(default=0, description="Bytes of its pages in swap space.")
    attached: Count = Field(description="Number of times that it is attached. 0: no process uses it.")
    creator: FileUser = Field(description="Process that created it, which may have exited.")
    charged: FileCharge | None = Field(
        default=None, description="To whom it is charged. Null if /proc/kpagecgroup cannot be read."
    )


class CachedFileSystem(Record):
    """CachedFileSystem sums up the files of one file system."""

    name: ShortText = Field(description="Type of the file system, such as ext4 or tmpfs.")
    device: ShortText = Field(default="", description="Name of its device.")
    mount_point: ShortText = Field(
        default="", description="Path at which it is mounted, cut to what shows whose it is. Empty if not known."
    )
    is_internal: bool = Field(
        default=False, description="Whether it is the kernel's own: memfds, System V segments, block devices."
    )
    inodes: Count = Field(description="Inodes in memory.")
    cached_bytes: ByteCount = Field(description="Bytes of pages in memory.")
    deleted_bytes: ByteCount = Field(default=0, description="Bytes of deleted files in it.")


class FileCensus(Record):
    """FileCensus is the memory of all files: page cache, shmem and buffers."""

    inodes: Count = Field(description="Inodes in memory.")
    cached_bytes: ByteCount = Field(
        description="Bytes of all pages of files: Cached and Buffers of /proc/meminfo, without the swap cache."
    )
    shmem_bytes: ByteCount = Field(
        description="Bytes of it in tmpfs, memfds and shared memory, which are not reclaimed."
    )
    block_device_bytes: ByteCount = Field(description="Bytes of it in block devices: Buffers.")
    deleted_bytes: ByteCount = Field(description="Bytes of it in deleted files that are still used.")
    huge_page_bytes: ByteCount = Field(default=0, description="Bytes of files in hugetlbfs, which are not part of it.")
    swapped_bytes: ByteCount = Field(default=0, description="Bytes of tmpfs and shared memory in swap space.")
    file_systems: Annotated[list[CachedFileSystem], Field(max_length=limits.MAX_FILE_SYSTEMS)] = Field(
        default_factory=list, description="File systems with pages in memory, most bytes first."
    )
    file_systems_total: Count = Field(default=0, description="Number of such file systems.")
    files: Annotated[list[CachedFile], Field(max_length=limits.MAX_CACHED_FILES)] = Field(
        default_factory=list,
        description="The largest files, and the largest of those that are deleted or in shmem; most bytes first.",
    )
    segments: Annotated[list[CachedSegment], Field(max_length=limits.MAX_CACHED_SEGMENTS)] = Field(
        default_factory=list, description="System V shared memory segments, most bytes first."
    )
    segments_total: Count = Field(default=0, description="Number of segments.")
    sampled_share: Share = Field(
        default=1,
        description="Share of memory that was read. Below 1, sums are scaled, and single files may be missing.",
    )
