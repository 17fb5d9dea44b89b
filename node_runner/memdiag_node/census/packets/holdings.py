"""Packets that wait outside of socket queues, as holders of blocks (pure)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind, Owner
from memdiag_node.census.packets.group import PacketGroup
from memdiag_node.census.packets.packets import PacketsReading
from memdiag_node.census.packets.place import PROTOCOL_PLACES, Place
from memdiag_node.census.packets.record import is_lost, place_of
from memdiag_node.holding import Holding, pinned_blocks, sizes_bytes

_SMALL_BYTES = 1 << 16
_QUEUES_NAMED = 4
_WAITING = {
    Place.QDISC: "in the qdisc",
    Place.TUN: "in the queue",
    Place.NEIGHBOUR: "for the address of a neighbour",
    Place.REASSEMBLY: "for the rest of their datagrams, in IP reassembly",
    Place.NETFILTER: "for a verdict in",
    Place.SOCKMAP: "in a socket map",
    Place.KTLS: "in kernel TLS",
    Place.SCTP: "in an association of SCTP",
    Place.KERNEL_LIST: "on a list of the kernel",
    Place.OBJECT_LIST: "on a list in a kernel object",
    Place.DRIVER: "in the rings of a driver",
    Place.REFERRED: "with a kernel object that refers to them",
}


_MOVING = (Place.UNKNOWN, Place.OTHER_CHAIN, Place.UNLINKED)
"""Places of packets on their way from one queue to another: the census counts them, but nothing holds them."""


@dataclass(frozen=True, slots=True)
class GroupOwners:
    """Whose packets a group is."""

    processes: list[Owner] = field(default_factory=list)
    """The first of them."""
    total: int = 0
    queues: tuple[int, ...] = ()
    """The numbers of the netfilter queues that the packets are in; empty if not known."""
    unowned_reason: str = "kernel"
    """Why there are none, if `total` is 0."""


def packet_holdings(
    reading: PacketsReading, taken: npt.NDArray[np.uint64], owners_of: Callable[[PacketGroup], GroupOwners]
) -> list[Holding]:
    """Return a holder for each group of packets that other holders do not have.

    `taken` are the pages of the blocks of the other holders.
    """
    found = []
    for group in reading.groups:
        if group.place == Place.SOCKET or (group.place in _MOVING and not is_lost(group, reading)):
            continue
        blocks = pinned_blocks(group.blocks[~np.isin(group.blocks["page"], taken)])
        if len(blocks) < len(group.blocks) and not len(blocks) and group.place not in PROTOCOL_PLACES:
            continue  # a queue that is a holder of its own, as that of a tun device
        namespace = 0 if group.place in PROTOCOL_PLACES else group.network_namespace
        held = Holding(_holder(group, blocks, reading, owners_of(group)), blocks, network_namespace=namespace)
        if held.holder.pinned_bytes + held.holder.head_bytes >= _SMALL_BYTES:
            found.append(held)
    return found


def _holder(group: PacketGroup, blocks: npt.NDArray[np.void], reading: PacketsReading, owners: GroupOwners) -> Holder:
    is_protocol = group.place in PROTOCOL_PLACES
    is_stuck = is_protocol and group.place != Place.SCTP and group.is_unchanged and group.socket != 0
    return Holder(
        kind=HolderKind.SOCKET if is_protocol else HolderKind.PACKET_QUEUE,
        description=_description(group, reading, owners.queues),
        owners=owners.processes,
        owners_total=owners.total,
        unowned_reason="" if owners.total else owners.unowned_reason,
        unread_bytes=group.data_bytes,
        unread_packets=group.packets,
        charge_bytes=group.charge_bytes,
        pinned_bytes=int(sizes_bytes(blocks).sum()),
        pinned_blocks=len(blocks),
        head_bytes=group.head_bytes,
        packet_place=None if is_protocol else place_of(group, reading),
        # SCTP's wait for the peer: for the rest of a message, or to be acknowledged.
        stuck_seconds=reading.unchanged_seconds if is_stuck else None,
    )


def _description(group: PacketGroup, reading: PacketsReading, queues: tuple[int, ...]) -> str:
    if is_lost(group, reading):
        what = f"{group.packets} lost packets: in no queue"
    elif group.place in _WAITING:
        what = f"{group.packets} packets wait {_WAITING[Place(group.place)]}"
        what += f" {_netfilter_queues(queues)}" if group.place == Place.NETFILTER else ""
    else:
        what = f"{group.packets} packets wait in no known queue"
    device = f" of {group.device}, interface {group.interface_index}" if group.device else ""
    if group.place in PROTOCOL_PLACES:
        device = f" of a {group.socket_kind} socket" if group.socket else " of several sockets"
    namespace = f" in network namespace {group.network_namespace}" if group.network_namespace else ""
    return f"{what}{device}{namespace}"


def _netfilter_queues(numbers: tuple[int, ...]) -> str:
    if not numbers:
        return "a netfilter queue"
    shown = ", ".join(map(str, numbers[:_QUEUES_NAMED]))
    return f"netfilter queue{'s' * (len(numbers) > 1)} {shown}{' and more' * (len(numbers) > _QUEUES_NAMED)}"
