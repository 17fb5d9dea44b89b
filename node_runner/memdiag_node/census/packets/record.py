"""The packets of the node in the document (pure)."""

import mmap
from collections.abc import Callable

from memdiag_api import limits
from memdiag_api.census.packets import PacketCensus, PacketPlace, WaitingPackets
from memdiag_node.census.packets.group import PacketGroup, joined
from memdiag_node.census.packets.packets import PacketsReading
from memdiag_node.census.packets.place import PROTOCOL_PLACES, Place
from memdiag_node.holding import unique_bytes

_LARGEST_RING = 2_048
_WHOLE_SHARE = 0.99

_PLACES = {
    Place.SOCKET: PacketPlace.SOCKET_QUEUES,
    Place.QDISC: PacketPlace.QDISC,
    Place.TUN: PacketPlace.TUN,
    Place.NEIGHBOUR: PacketPlace.NEIGHBOUR_QUEUE,
    Place.REASSEMBLY: PacketPlace.REASSEMBLY,
    Place.NETFILTER: PacketPlace.NETFILTER_QUEUE,
    Place.SOCKMAP: PacketPlace.SOCKMAP,
    Place.KTLS: PacketPlace.KTLS,
    Place.SCTP: PacketPlace.SCTP,
    Place.KERNEL_LIST: PacketPlace.KERNEL_LIST,
    Place.OBJECT_LIST: PacketPlace.OBJECT_LIST,
    Place.DRIVER: PacketPlace.DRIVER_RING,
    Place.OTHER_CHAIN: PacketPlace.OTHER_CHAIN,
    Place.REFERRED: PacketPlace.REFERRED,
    Place.UNLINKED: PacketPlace.UNLINKED,
    Place.UNKNOWN: PacketPlace.UNLINKED,
}


def is_lost(group: PacketGroup, reading: PacketsReading) -> bool:
    """Whether these packets are in no queue of any kind: the same ones were in none in an earlier reading either.

    A virtual device may keep as many as its ring has. So fewer packets are only lost if everything was searched for
    pointers to them.
    """
    is_sure = reading.searched_share >= _WHOLE_SHARE or group.packets > _LARGEST_RING
    is_whole = reading.sampled_share >= 1  # else the other end of a queue may not have been read
    return group.place == Place.UNLINKED and group.is_unchanged and is_sure and is_whole


def place_of(group: PacketGroup, reading: PacketsReading) -> PacketPlace:
    """Where these packets are, in the document."""
    return PacketPlace.LOST if is_lost(group, reading) else _PLACES[group.place]


def packets_record(
    reading: PacketsReading, name_of: Callable[[int], str], *, page_bytes: int = mmap.PAGESIZE
) -> PacketCensus:
    """The record of a reading. Groups of single sockets in PROTOCOL_PLACES are one for each network namespace.

    `name_of` returns the name of the function at an address of the kernel."""
    groups = joined(reading.groups, _of_protocol)
    return PacketCensus(
        packets=reading.packets,
        charge_bytes=reading.charge_bytes,
        groups=[_waiting(group, reading, name_of, page_bytes) for group in groups[: limits.MAX_PACKET_GROUPS]],
        blocks_left_out=reading.blocks_left_out,
        sampled_share=reading.sampled_share,
        read_seconds=reading.seconds,
    )


def _of_protocol(group: PacketGroup) -> object:
    """What groups of one place, namespace and protocol have in common; None for those that stay as they are."""
    if group.place not in PROTOCOL_PLACES:
        return None
    return group.place, group.network_namespace, group.socket_kind, group.is_unchanged


def _waiting(
    group: PacketGroup, reading: PacketsReading, name_of: Callable[[int], str], page_bytes: int
) -> WaitingPackets:
    return WaitingPackets(
        place=place_of(group, reading),
        packets=group.packets,
        charge_bytes=group.charge_bytes,
        head_bytes=group.head_bytes,
        pinned_bytes=unique_bytes([group.blocks], page_bytes=page_bytes),
        pinned_blocks=len(group.blocks),
        user_bytes=group.user_bytes,
        device=group.device,
        device_kind=group.device_kind,
        interface_index=group.interface_index,
        network_namespace=group.network_namespace,
        destructor=name_of(group.destructor)[: limits.MAX_SHORT_TEXT] if group.destructor else "",
        socket_kind=group.socket_kind,
        oldest_seconds=group.oldest_seconds,
        unchanged_seconds=reading.unchanged_seconds if group.is_unchanged else None,
        referred_by=group.referred_by[: limits.MAX_SHORT_TEXT],
    )
