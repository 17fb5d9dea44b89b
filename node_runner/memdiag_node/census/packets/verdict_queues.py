"""Who listens on netfilter's queues: their numbers and port IDs from /proc, their netlink sockets from the census."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.namespaces import Namespaces
from memdiag_node.census.networks.sockets import CensusSockets
from memdiag_node.census.packets.packets import PacketsReading
from memdiag_node.census.packets.place import Place
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.procfs.nfnetlink_queue import MAX_FILE_BYTES, VerdictQueue, parse_nfnetlink_queue
from memdiag_node.slab.census import SlabCensus

LISTENER_DTYPE = np.dtype([("socket", "<u8"), ("network", "<u8"), ("port", "<u4")])
"""A netlink socket of netfilter: the addresses of its struct sock and struct net, and its port ID."""

_AF_NETLINK, _NETLINK_NETFILTER = 16, 12  # include/linux/socket.h, include/uapi/linux/netlink.h
_FIELDS: tuple[Field, ...] = (
    ("SOCK_PROTOCOL", "sock", "sk_protocol"),
    ("NETLINK_PORT", "netlink_sock", "portid"),
)


@dataclass(frozen=True, slots=True)
class VerdictQueues:
    """The queues of the network namespaces that have packets in them, and the sockets that can be their listeners."""

    queues: Mapping[int, list[VerdictQueue]]
    """By the inode of the namespace. Without those whose file could not be read."""
    listeners: npt.NDArray[np.void]
    """LISTENER_DTYPE, of every namespace."""
    is_whole: bool
    """Whether `listeners` are all that there are."""


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_verdict_queues` needs beyond those of `sockets.fields`; empty if one is missing."""
    return optional_offsets(btf, "HAS_VERDICT_QUEUES", _FIELDS)


def read_verdict_queues(
    census: SlabCensus, at: Mapping[str, int], proc: Path, packets: PacketsReading, namespaces: Namespaces
) -> VerdictQueues | None:
    """The queues in which packets of `packets` wait; None if there are none, or if this kernel lacks a field."""
    inodes = {group.network_namespace for group in packets.groups if group.place == Place.NETFILTER}
    if not inodes or "HAS_VERDICT_QUEUES" not in at:
        return None
    queues = {}
    for row in namespaces.table:
        if int(row["inode"]) in inodes and row["processes"]:
            found = _queues(proc / str(int(row["first_pid"])) / "net/netfilter/nfnetlink_queue")
            if found is not None:
                queues[int(row["inode"])] = found
    return VerdictQueues(queues, _listeners(census, at, namespaces.sockets), namespaces.sockets.is_whole)


def _queues(path: Path) -> list[VerdictQueue] | None:
    """The queues in a file; None if its process has exited, or if the file belongs to another user."""
    try:
        with path.open("rb") as file:
            return parse_nfnetlink_queue(file.read(MAX_FILE_BYTES), source=str(path))
    except OSError:
        return None


def _listeners(census: SlabCensus, at: Mapping[str, int], sockets: CensusSockets) -> npt.NDArray[np.void]:
    table = sockets.table[(sockets.table["family"] == _AF_NETLINK) & (sockets.table["has_file"] != 0)]
    table = table[census.read(table["socket"], at["SOCK_PROTOCOL"], 2) == _NETLINK_NETFILTER]
    listeners = np.zeros(len(table), LISTENER_DTYPE)
    listeners["socket"], listeners["network"] = table["socket"], table["network"]
    listeners["port"] = census.read(table["socket"], at["NETLINK_PORT"], 4)
    return listeners
