"""Packets in groups: by place, device, network namespace, destructor, kind of socket, and what refers to them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.network_objects import Networks, are_sockets, protocol_names
from memdiag_node.census.packets.blocks import BLOCK_DTYPE, pinned, read_blocks, read_heads
from memdiag_node.census.packets.group import PacketGroup, summed
from memdiag_node.census.packets.place import PROTOCOL_PLACES, Place
from memdiag_node.census.packets.places import PlacedPackets
from memdiag_node.census.packets.references import References, most_frequent
from memdiag_node.holding import sizes_bytes
from memdiag_node.slab.census import SlabCensus

MAX_GROUPS = 32
MAX_SOCKETS = 16
"""As many sockets with packets in PROTOCOL_PLACES have groups of their own, those with the largest charge."""
WITH_CLUE = (Place.OTHER_CHAIN, Place.REFERRED)
"""The places for which `PacketGroup.referred_by` comes from a search for pointers to the packets."""
_SECONDS = 1e-9
_LINEAR_MAP_BYTES = np.uint64(1 << 46)


@dataclass(frozen=True, slots=True)
class GroupSource:
    """What groups are made of. `at` is the result of `packets.fields`."""

    census: SlabCensus
    at: Mapping[str, int]
    networks: Networks
    placed: PlacedPackets
    references: References
    """Pointers to packets in no known queue."""
    is_unchanged: npt.NDArray[np.bool_]
    """Of each packet: whether it was in no queue in an earlier reading either. For PROTOCOL_PLACES: whether all packets
    that its socket had then are still there."""

    def read(self, packets: npt.NDArray[np.int64], field: str) -> npt.NDArray[np.uint64]:
        """A word of each of these packets."""
        return self.census.read(self.placed.table.address[packets], self.at[field])


def packet_groups(source: GroupSource) -> tuple[list[PacketGroup], int]:
    """All groups, the largest charge first, and the number of blocks that were not kept.

    Beyond MAX_GROUPS, groups are summed up by place.
    """
    placed, table = source.placed, source.placed.table
    alive = np.flatnonzero(placed.is_alive)
    heads = read_heads(source.census, table.head[alive])
    in_socket = placed.place[alive] == Place.SOCKET
    others = alive[~in_socket]
    found = _socket_groups(source, alive[in_socket], heads.slab_bytes[in_socket])
    blocks, left_out = read_blocks(source.census, source.at, table, others, heads.is_page[~in_socket])
    found += _other_groups(source, others, heads.slab_bytes[~in_socket], blocks)
    found.sort(key=lambda group: -group.charge_bytes)
    return found[:MAX_GROUPS] + summed(found[MAX_GROUPS:]), left_out


def _socket_groups(
    source: GroupSource, chosen: npt.NDArray[np.int64], slab_bytes: npt.NDArray[np.int64]
) -> list[PacketGroup]:
    """One group for each protocol."""
    if not len(chosen):
        return []
    placed = source.placed
    owners, numbers = np.unique(placed.queues_of(chosen)["owner"], return_inverse=True)
    names, kinds = protocol_names(source.census.memory, source.at, owners)
    unique_names, name_numbers = np.unique(np.array(names), return_inverse=True)
    kind = name_numbers[kinds][numbers]
    counted = ~placed.is_member[chosen]
    size = len(unique_names)
    packets = np.bincount(kind[counted], minlength=size)
    charge = np.bincount(kind[counted], placed.table.truesize[chosen][counted], size)
    heads = np.bincount(kind, slab_bytes, size)
    nothing = pinned(np.empty(0, BLOCK_DTYPE))
    return [
        PacketGroup(Place.SOCKET, int(packets[n]), int(charge[n]), int(heads[n]), nothing, socket_kind=str(name))
        for n, name in enumerate(unique_names)
        if packets[n]
    ]


_KEY_DTYPE = np.dtype(
    [
        *[("place", "u1"), ("device", "<i8"), ("inode", "<u8"), ("destructor", "<u8"), ("kind", "<i8")],
        *[("cache", "<i4"), ("offset_bytes", "<i8"), ("is_unchanged", "?"), ("socket", "<u8")],
    ]
)
"""What the packets of a group have in common. `device` and `kind` are indexes, -1 for no device. `socket`: of
PROTOCOL_PLACES."""


def _other_groups(
    source: GroupSource,
    chosen: npt.NDArray[np.int64],
    slab_bytes: npt.NDArray[np.int64],
    blocks: npt.NDArray[np.void],
) -> list[PacketGroup]:
    """The groups of packets outside sockets. `packet` of `blocks` is an index of `chosen`."""
    if not len(chosen):
        return []
    sockets, kinds, kind = _sockets_of(source, chosen)
    keys, number = np.unique(_keys(source, chosen, sockets, kind), return_inverse=True)
    ages = _ages(source.read(chosen, "PACKET_TIME"))
    members = _by_group(number, len(keys))
    of_blocks = _by_group(number[blocks["packet"]], len(keys))
    found = []
    for key, own, own_blocks in zip(keys, members, of_blocks, strict=True):
        packets, held = chosen[own], blocks[own_blocks]
        counted = packets[~source.placed.is_member[packets]]
        oldest_seconds = float(ages[own].max())
        found.append(
            PacketGroup(
                place=Place(int(key["place"])),
                packets=len(counted),
                charge_bytes=int(source.placed.table.truesize[counted].sum(dtype=np.uint64)),
                head_bytes=int(slab_bytes[own].sum()),
                blocks=pinned(held),
                user_bytes=_user_bytes(held),
                **_device(source.networks, int(key["device"])),
                network_namespace=int(key["inode"]),
                destructor=int(key["destructor"]),
                socket_kind=kinds[int(key["kind"])],
                socket=_of_most(sockets[own]),
                data_bytes=_data_bytes(source, key, counted),
                oldest_seconds=oldest_seconds if oldest_seconds >= 0 else None,
                is_unchanged=bool(key["is_unchanged"]),
                referred_by=_referred_by(source, key, packets),
            )
        )
    return found


def _keys(
    source: GroupSource,
    chosen: npt.NDArray[np.int64],
    sockets: npt.NDArray[np.uint64],
    kind: npt.NDArray[np.int64],
) -> npt.NDArray[np.void]:
    """The key of each packet (_KEY_DTYPE)."""
    networks, queues = source.networks, source.placed.queues_of(chosen)
    keys = np.zeros(len(chosen), _KEY_DTYPE)
    keys["place"], keys["kind"], keys["is_unchanged"] = source.placed.place[chosen], kind, source.is_unchanged[chosen]
    keys["device"] = networks.device_numbers(source.placed.devices_of(chosen))
    keys["destructor"] = _functions(source.census, source.read(chosen, "PACKET_DESTRUCTOR"))
    keys["cache"], keys["offset_bytes"] = queues["cache"], queues["offset_bytes"]
    is_protocol = np.isin(keys["place"], PROTOCOL_PLACES)
    for column, value in (("device", -1), ("destructor", 0), ("cache", -1), ("offset_bytes", 0)):
        keys[column][is_protocol] = value  # left from before the packet was received
    keys["socket"][is_protocol] = _largest(sockets[is_protocol], source.placed.table.truesize[chosen[is_protocol]])
    of_socket = source.census.memory.peek(np.where(sockets != 0, sockets + np.uint64(source.at["SOCK_NET"]), 0))
    net = np.append(networks.device_nets, np.uint64(0))[keys["device"]]
    net = np.where((net != 0) | is_protocol, net, queues["owner"])
    keys["inode"] = networks.inode_of(np.where(net != 0, net, of_socket))
    return keys


def _largest(sockets: npt.NDArray[np.uint64], charges: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """These sockets, one for each packet; 0 for all but the MAX_SOCKETS that have the largest charge."""
    unique, numbers = np.unique(sockets, return_inverse=True)
    sums = np.bincount(numbers, charges, len(unique))
    unique[np.argsort(-sums, kind="stable")[MAX_SOCKETS:]] = 0
    result: npt.NDArray[np.uint64] = unique[numbers]
    return result


def _data_bytes(source: GroupSource, key: np.void, packets: npt.NDArray[np.int64]) -> int:
    if int(key["place"]) not in PROTOCOL_PLACES:
        return 0
    return int((source.read(packets, "PACKET_LENGTH") & np.uint64(0xFFFFFFFF)).sum())


def _by_group(number: npt.NDArray[np.int64], groups: int) -> list[npt.NDArray[np.int64]]:
    """The indexes of the members of each group."""
    order = np.argsort(number, kind="stable")
    return np.split(order, np.searchsorted(number[order], np.arange(1, groups)))


def _device(networks: Networks, number: int) -> dict[str, Any]:
    """The fields of a group that describe a device; none for -1."""
    if number < 0:
        return {}
    return {
        "device": networks.device_names[number],
        "device_kind": networks.device_kinds[number],
        "interface_index": int(networks.device_indexes[number]),
    }


def _referred_by(source: GroupSource, key: np.void, packets: npt.NDArray[np.int64]) -> str:
    caches, place, cache = source.census.caches, Place(int(key["place"])), int(key["cache"])
    if place == Place.OBJECT_LIST and cache >= 0:
        return f"{caches[cache].name}+{int(key['offset_bytes'])}"
    if place not in WITH_CLUE:
        return ""
    return most_frequent(source.references, np.isin(source.references.packet, packets), [one.name for one in caches])


def _of_most(sockets: npt.NDArray[np.uint64]) -> int:
    """The socket of more than half of the packets, 0 for none."""
    unique, counts = np.unique(sockets, return_counts=True)
    most = int(counts.argmax())
    return int(unique[most]) if 2 * counts[most] > len(sockets) else 0


def _sockets_of(
    source: GroupSource, chosen: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], list[str], npt.NDArray[np.int64]]:
    """The socket that each packet is charged to, or in PROTOCOL_PLACES belongs to, 0 for none.

    And the names of their protocols, and each packet's index.
    """
    queues = source.placed.queues_of(chosen)
    is_protocol = np.isin(source.placed.place[chosen], PROTOCOL_PLACES)
    charged = np.where(is_protocol, queues["owner"], source.read(chosen, "PACKET_SK"))
    unique, numbers = np.unique(charged, return_inverse=True)
    unique[~are_sockets(source.census, source.at, source.networks, unique)] = 0
    protocols, kinds = protocol_names(source.census.memory, source.at, unique)
    names = sorted({"", *protocols})
    kinds = np.array([names.index(protocols[kind]) for kind in kinds], np.int64)
    kinds[unique == 0] = 0
    return unique[numbers], names, kinds[numbers]


def _functions(census: SlabCensus, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The words that can be addresses of functions, 0 for others: the kernel's text is not in the linear map."""
    is_data = words - np.uint64(census.linear_base) < _LINEAR_MAP_BYTES
    return np.where(is_data | (words >> np.uint64(48) == 0), 0, words)


def _ages(stamps: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The age in seconds of each time stamp, of the real or the monotonic clock; -1 for what is neither."""
    stamp = stamps.astype("<i8")
    uptime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    ages = np.full(len(stamps), -1.0)
    for now in (time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)):
        age = np.int64(now) - stamp
        is_age = (stamp > 0) & (age >= 0) & (age <= uptime)
        ages[is_age] = age[is_age] * _SECONDS
    return ages


def _user_bytes(blocks: npt.NDArray[np.void]) -> int:
    user = blocks[blocks["user"]]
    _, first = np.unique(user["page"], return_index=True)
    return int(sizes_bytes(user[first]).sum())
