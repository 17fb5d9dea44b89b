"""Who has memory: the owner of a finding, and the owners of each class of the breakdown."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import ShortText
from memdiag_api.record import ByteCount, Count, Name, Record, SignedByteCount


class OwnerKind(StrEnum):
    """OwnerKind is the kind of an owner of memory."""

    PROCESS = "Process"
    CONTAINER = "Container"
    POD = "Pod"
    NODE = "Node"
    CGROUP = "Cgroup"
    SOCKET = "Socket"
    FILE = "File"
    FILE_SYSTEM = "FileSystem"
    SHARED_MEMORY_SEGMENT = "SharedMemorySegment"
    NETWORK_NAMESPACE = "NetworkNamespace"
    SLAB_CACHE = "SlabCache"
    CALL_STACK = "CallStack"
    KERNEL_CALLER = "KernelCaller"
    KERNEL_OBJECT = "KernelObject"
    MODULE = "Module"
    DEVICE = "Device"
    KERNEL = "Kernel"


class MemoryOwner(Record):
    """MemoryOwner identifies who has memory: a process, container or pod, or the part of the kernel that uses it."""

    kind: OwnerKind
    name: ShortText = Field(
        default="",
        description="Name in readable form: comm[pid], a path, a slab cache, a device, a kernel function. Empty if the "
        "IDs say everything.",
    )
    pid: Count = Field(default=0, description="Process ID in the PID namespace of the host. 0 if it is not a process.")
    comm: ShortText = Field(default="", description="Name of the process, which the process itself can choose.")
    fds: Annotated[list[Count], Field(max_length=limits.MAX_OWNER_FDS)] = Field(
        default_factory=list, description="File descriptors through which the process holds the memory."
    )
    processes: Count = Field(default=0, description="Number of processes that share it. 0 if there is none.")
    container_id: ShortText = Field(default="", description="ID of the container, from the path of the cgroup.")
    pod_uid: ShortText = Field(default="", description="UID of the pod, from the path of the cgroup.")


class ClassShare(Record):
    """ClassShare is the part of one class of memory that one owner has."""

    owner: MemoryOwner
    size_bytes: ByteCount
    change_bytes: SignedByteCount | None = Field(
        default=None, description="Change over the window. Null if the start of the window was not read."
    )


class ClassOwners(Record):
    """ClassOwners is who has the memory of one class of the breakdown.

    Bytes that several owners share are counted for one of them, or for none. They are never spread.
    """

    memory_class: Name = Field(description="Class of the breakdown.")
    size_bytes: ByteCount = Field(description="Bytes of the class, as in the breakdown.")
    explained_bytes: ByteCount = Field(description="Part of sizeBytes whose owner is known. The rest is unexplained.")
    owners: Annotated[list[ClassShare], Field(max_length=limits.MAX_CLASS_OWNERS)] = Field(
        default_factory=list, description="The largest owners, largest first."
    )
    owners_total: Count = Field(default=0, description="Number of owners, including those that are not listed.")
