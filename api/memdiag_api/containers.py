"""Memory cgroups: the account of each container and pod, removed cgroups, processes that the kernel killed."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import ShortText
from memdiag_api.record import ByteCount, Count, Name, Record, SignedByteCount


class ChargedFile(Record):
    """ChargedFile is a file in memory, most of which is charged to a container."""

    path: ShortText = Field(description="Path, or the name of a memfd; cut to what shows whose it is.")
    cached_bytes: ByteCount = Field(description="Bytes of its pages in memory.")


class ContainerAccount(Record):
    """ContainerAccount is the memory that the kernel charges to one container, or to one pod.

    A figure that this kernel does not show is null. Cgroups inside a container are part of its account.
    """

    container_id: ShortText = Field(
        description="ID of the container, from the path of its memory cgroup. Empty if this is the account of a pod."
    )
    pod_uid: ShortText = Field(default="", description="UID of the pod, from the path of its memory cgroup.")
    usage_bytes: ByteCount = Field(description="Bytes that are charged to it, as the kernel compares them with limits.")
    usage_change_bytes: SignedByteCount | None = Field(
        default=None, description="Change of usageBytes over the window. Null if the start of the window was not read."
    )
    limit_bytes: ByteCount | None = Field(
        default=None,
        description="The smallest limit of its cgroup and the cgroups above it, such as the pod's. Null if there is "
        "none.",
    )
    swap_bytes: ByteCount | None = Field(default=None, description="Bytes of its memory that are in swap.")
    kernel_bytes: ByteCount | None = Field(
        default=None, description="Kernel memory in usageBytes: slab, stacks, page tables, pipes, per-CPU memory."
    )
    anon_bytes: ByteCount | None = Field(default=None, description="Anonymous memory in usageBytes.")
    file_bytes: ByteCount | None = Field(default=None, description="Page cache of files in usageBytes, without shmem.")
    inactive_file_bytes: ByteCount | None = Field(
        default=None, description="The part of the page cache that the kernel takes back first."
    )
    active_file_bytes: ByteCount | None = Field(
        default=None, description="The part of the page cache that was used more than once, which is taken back later."
    )
    shmem_bytes: ByteCount | None = Field(
        default=None, description="Shared memory in usageBytes: tmpfs, memfd, System V segments."
    )
    files: Annotated[list[ChargedFile], Field(max_length=limits.MAX_CHARGED_FILES)] = Field(
        default_factory=list,
        description="Its largest files in memory, in page cache and in tmpfs, if they are among the largest of the "
        "node. Empty if the census of files was not taken, or if paths are not reported.",
    )
    slab_bytes: ByteCount | None = Field(default=None, description="Slab in kernelBytes.")
    socket_bytes: ByteCount | None = Field(
        default=None,
        description="Memory of TCP and other sockets. Part of usageBytes with version 2 of cgroups only. Null with "
        "version 1 unless a limit on the memory of TCP was ever set.",
    )
    working_set_bytes: ByteCount | None = Field(
        default=None,
        description="usageBytes without inactiveFileBytes, as the kubelet computes it for evictions and metrics.",
    )
    reclaimable_bytes: ByteCount | None = Field(
        default=None,
        description="Bytes that the kernel gives back when the limit is reached: page cache of files on its LRU lists, "
        "and reclaimable slab. Caches in use come back more slowly.",
    )
    limit_hits: Count = Field(
        default=0, description="Number of times that the limit was reached since the cgroup exists."
    )
    oom_kills: Count = Field(
        default=0, description="Number of its processes that the kernel has killed for lack of memory."
    )
    window_limit_hits: Count | None = Field(
        default=None, description="Part of limitHits in the window. Null if the start of the window was not read."
    )
    window_oom_kills: Count | None = Field(
        default=None, description="Part of oomKills in the window. Null if the start of the window was not read."
    )


class RemovedGroupShare(Record):
    """RemovedGroupShare is the removed memory cgroups of one container or pod, by the paths that they had."""

    container_id: ShortText = Field(default="", description="ID of the container. Empty if it is not known.")
    pod_uid: ShortText = Field(default="", description="UID of the pod. Empty if it is not known.")
    path: Name = Field(default="", description="Path of the cgroup above them.")
    groups: Count = Field(description="Number of removed cgroups.")
    charged_bytes: ByteCount = Field(description="Bytes of user memory and page cache that they are charged with.")


class RemovedCgroups(Record):
    """RemovedCgroups is the memory cgroups that were removed but not freed, because memory is charged to them.

    percpuBytes is part of the class Percpu, structBytes of SUnreclaim, fileBytes of FileCache.
    """

    live: Count = Field(description="Number of memory cgroups that exist.")
    removed: Count = Field(description="Number of memory cgroups that were removed but not freed.")
    removed_change: SignedByteCount | None = Field(
        default=None, description="Change of removed over the window. Null if the start of the window was not read."
    )
    percpu_bytes: ByteCount = Field(
        description="Estimate of the per-CPU memory of the removed cgroups themselves, from the sizes of their "
        "structures and the number of possible CPUs."
    )
    struct_bytes: ByteCount = Field(
        description="Estimate of the slab memory of the removed cgroups themselves, from the sizes of their structures."
    )
    file_bytes: ByteCount | None = Field(
        default=None, description="Page cache that is charged to them. Null if it cannot be read."
    )
    anon_bytes: ByteCount | None = Field(
        default=None, description="Anonymous and shared memory that is charged to them. Null if it cannot be read."
    )
    swap_bytes: ByteCount | None = Field(default=None, description="Swap that is charged to them.")
    charged_slab_groups: Count | None = Field(
        default=None,
        description="Number of removed cgroups to which slab objects were charged. They need not be among removed: "
        "such objects do not keep a cgroup from being freed. Null if they were not read.",
    )
    charged_slab_bytes: ByteCount | None = Field(
        default=None,
        description="Bytes of slab objects that were charged to removed cgroups. The kernel has passed them to the "
        "cgroups above. Null if not read.",
    )
    shares: Annotated[list[RemovedGroupShare], Field(max_length=limits.MAX_REMOVED_GROUP_SHARES)] = Field(
        default_factory=list, description="Where they were, most charged bytes first, then most groups."
    )

    @property
    def pinned_bytes(self) -> int:
        """What the kernel does not give back as long as they exist: their own memory, and what is not cache."""
        return self.percpu_bytes + self.struct_bytes + (self.anon_bytes or 0)

    @property
    def held_bytes(self) -> int:
        """All bytes of the removed cgroups and of what is charged to them, without swap."""
        return self.pinned_bytes + (self.file_bytes or 0)


class OomScope(StrEnum):
    """OomScope says what lacked memory: a container or pod at its limit, or the node."""

    CONTAINER = "Container"
    NODE = "Node"


class OomKill(Record):
    """OomKill is a process that the kernel killed for lack of memory, from the kernel log."""

    seconds_ago: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Seconds before the end of the window. Null if the log has no time stamps.",
    )
    scope: OomScope
    container_id: ShortText = Field(default="", description="ID of the victim's container. Empty if it is not known.")
    pod_uid: ShortText = Field(default="", description="UID of the victim's pod. Empty if it is not known.")
    limit_path: Name = Field(
        default="", description="Path of the cgroup whose limit was reached. Empty if the node lacked memory."
    )
    comm: ShortText = Field(description="Name of the victim, which the process itself can choose.")
    pid: Count = Field(description="Process ID of the victim in the PID namespace of the host.")
    anon_bytes: ByteCount = Field(description="Anonymous memory of the victim.")
    file_bytes: ByteCount = Field(description="Mapped files of the victim.")
    shmem_bytes: ByteCount = Field(description="Mapped shared memory of the victim.")
    page_table_bytes: ByteCount | None = Field(default=None, description="Page tables of the victim.")
    limit_bytes: ByteCount | None = Field(
        default=None, description="The limit that was reached. Null if the log does not have it."
    )
    limit_hits: Count | None = Field(default=None, description="Number of times that the limit had been reached.")
    classes_bytes: dict[str, ByteCount] = Field(
        default_factory=dict,
        max_length=limits.MAX_OOM_CLASSES,
        description="What was large then, by the kernel's names: of the node, or of the cgroup at its limit.",
    )
