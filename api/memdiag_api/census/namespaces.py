"""Records of the node's network namespaces."""

from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import ShortText
from memdiag_api.record import ByteCount, Count, Record, Share


class NetworkNamespace(Record):
    """NetworkNamespace is one network namespace, with what keeps it and what memory it has."""

    inode: Count = Field(description="Inode of the namespace, as /proc/PID/ns/net shows it.")
    is_zombie: bool = Field(description="Whether no process, no fd and no mount refers to it.")
    kept_by: ShortText = Field(description="What keeps it from being removed, in words.")
    size_bytes: ByteCount = Field(
        description="Bytes of its sockets, of what is charged to their queues, and of packets on its devices."
    )
    processes: Count = Field(description="Processes in it.")
    files: Count = Field(description="Open files of the namespace itself, as fds of processes or in flight.")
    mounts: Count = Field(description="Mounts of the namespace itself.")
    sockets: Count = Field(description="Sockets in it, with those of the kernel.")
    open_sockets: Count = Field(description="Sockets in it that a process has open.")
    packets: Count = Field(
        description="Packets that refer to its devices or sockets: in queues of devices, of packet, raw and UNIX "
        "sockets. In queues of TCP and UDP they refer to neither, and are only in sizeBytes."
    )
    devices: Count = Field(description="Network devices in it.")
    device_names: Annotated[
        list[Annotated[str, Field(max_length=limits.MAX_DEVICE_NAME)]], Field(max_length=limits.MAX_NAMESPACE_DEVICES)
    ] = Field(default=[], description="Names of the first of them.")


class NetworkNamespaces(Record):
    """NetworkNamespaces lists the network namespaces of the node: zombies first, then by size."""

    total: Count = Field(description="Number of network namespaces, listed here or not.")
    zombies: Count = Field(description="Number of those that no process, no fd and no mount refers to.")
    zombie_bytes: ByteCount = Field(description="Bytes that belong to zombies.")
    listed: Annotated[list[NetworkNamespace], Field(max_length=limits.MAX_NAMESPACES)] = Field(
        description="Namespaces that no process refers to first, then the largest."
    )
    sampled_share: Share = Field(
        default=1,
        description="Share of memory that was searched. Less than 1: a random sample, which cannot show zombies, and "
        "from which the other figures are scaled.",
    )
