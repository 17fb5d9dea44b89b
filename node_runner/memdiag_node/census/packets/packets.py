"""Every packet of the node: where it is, what it keeps, and how long it has been there.

The packets come from their slab caches, so none has to be reached through a socket, a file descriptor or a network
namespace. Those in queues of sockets are only counted: the socket scan describes these queues.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.network_objects import network_fields, read_networks
from memdiag_node.census.packets.group import PacketGroup
from memdiag_node.census.packets.groups import GroupSource, packet_groups
from memdiag_node.census.packets.place import PROTOCOL_PLACES, Place
from memdiag_node.census.packets.places import PlacedPackets
from memdiag_node.census.packets.protocols import protocol_fields
from memdiag_node.census.packets.queues import queue_fields
from memdiag_node.census.packets.references import References, find_references
from memdiag_node.census.packets.table import PacketTable, packet_fields, read_packet_table
from memdiag_node.kernel.btf import Btf
from memdiag_node.slab.census import SlabCensus

MAX_REMEMBERED = 1 << 17
_MIN_SEARCHED = 16
_SEARCHED_WORDS, _SEARCHED_AGAIN_WORDS = 1 << 20, 1 << 22
_IDENTITY_WORDS = 6
_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_packets` needs; what this kernel lacks is left out."""
    return network_fields(btf) | packet_fields(btf) | queue_fields(btf) | protocol_fields(btf)


@dataclass(frozen=True, slots=True)
class UnlinkedPackets:
    """The packets in no queue and in PROTOCOL_PLACES in one reading, as hashes: to recognize them in a later one."""

    hashes: npt.NDArray[np.uint64]
    """With `sockets`, at most MAX_REMEMBERED."""
    sockets: npt.NDArray[np.uint64]
    """The socket of each, 0 for packets in no queue."""
    read_seconds: float
    """Of the monotonic clock."""


@dataclass(frozen=True, slots=True)
class PacketsReading:
    """One reading of all packets."""

    groups: list[PacketGroup]
    """The largest charge first. Beyond packet_groups.MAX_GROUPS, the rest is summed up by place."""
    packets: int
    charge_bytes: int
    unlinked: UnlinkedPackets
    unchanged_seconds: float
    """The time since the earlier reading; 0 without one."""
    blocks_left_out: int
    sampled_share: float
    searched_share: float
    """Of the slabs of untyped objects that were searched for pointers to packets in no queue."""
    seconds: float
    """The time that it took."""


def read_packets(
    census: SlabCensus, at: Mapping[str, int], *, earlier: UnlinkedPackets | None = None
) -> PacketsReading | None:
    """Read all packets, and place each. `at` is the result of `fields`; None if this kernel's packets are unknown.

    `earlier` is `unlinked` of a reading some seconds ago: what was in no queue then and still is may be lost.
    """
    if "HAS_PACKETS" not in at or "HAS_PACKET_NETWORKS" not in at:
        return None
    started = time.monotonic()
    networks = read_networks(census, at)
    table = read_packet_table(census, at)
    placed = PlacedPackets(census, at, networks, table)
    references = _references(census, placed, _SEARCHED_WORDS if earlier is None else _SEARCHED_AGAIN_WORDS)
    counted = placed.is_alive & ~placed.is_member
    is_protocol = np.isin(placed.place, PROTOCOL_PLACES) & ~placed.is_member
    known = np.flatnonzero(placed.is_alive & (is_protocol | (placed.place == Place.UNLINKED)))
    hashes = _identities(census, at, table, known)
    sockets = np.where(is_protocol[known], placed.queues_of(known)["owner"], 0)
    is_unchanged = np.zeros(len(placed.place), np.bool_)
    if earlier is not None:
        is_unchanged[known] = unchanged(hashes, sockets, earlier)
    groups, left_out = packet_groups(GroupSource(census, at, networks, placed, references, is_unchanged))
    return PacketsReading(
        groups=groups,
        packets=int(counted.sum()),
        charge_bytes=int(table.truesize[counted].sum(dtype=np.uint64)),
        unlinked=UnlinkedPackets(hashes[:MAX_REMEMBERED], sockets[:MAX_REMEMBERED], started),
        unchanged_seconds=started - earlier.read_seconds if earlier else 0,
        blocks_left_out=left_out,
        sampled_share=census.sampled_share,
        searched_share=references.searched_share,
        seconds=time.monotonic() - started,
    )


def unchanged(
    hashes: npt.NDArray[np.uint64], sockets: npt.NDArray[np.uint64], earlier: UnlinkedPackets
) -> npt.NDArray[np.bool_]:
    """Whether each packet was there in the earlier reading; of a socket, whether all that were still are (pure).

    A socket of which nothing was known then is changed.
    """
    was_there = np.isin(hashes, earlier.hashes)
    gone = earlier.sockets[~np.isin(earlier.hashes, hashes)]
    of_socket = np.isin(sockets, earlier.sockets) & ~np.isin(sockets, gone)
    return np.asarray(np.where(sockets != 0, of_socket, was_there), np.bool_)


def _identities(
    census: SlabCensus, at: Mapping[str, int], table: PacketTable, chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """A hash of what stays the same as long as a packet lives: where it is, its sizes, time and first data."""
    address, head = table.address[chosen], table.head[chosen]
    data = census.read(address, at["PACKET_DATA"])
    columns = [address, head, data, table.truesize[chosen].astype("<u8"), census.read(address, at["PACKET_LENGTH"])]
    columns.append(census.read(address, at["PACKET_TIME"]))
    columns += [census.read(data, 8 * word) for word in range(_IDENTITY_WORDS)]
    mixed = np.zeros(len(chosen), "<u8")
    for column in columns:
        mixed = (mixed ^ column) * _ODD
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _references(census: SlabCensus, placed: PlacedPackets, max_words: int) -> References:
    """Pointers to the packets in no known queue. What is on no list and has one is REFERRED from then on."""
    is_wanted = (placed.place == Place.OTHER_CHAIN) | (placed.place == Place.UNLINKED)
    wanted = np.flatnonzero(is_wanted & placed.is_alive)
    # A few packets on their way are normal, and not worth a search.
    limit = max_words * (len(wanted) >= _MIN_SEARCHED)
    found = find_references(census, placed.table.address[wanted], max_words=limit)
    packets = wanted[found.packet]
    placed.place[packets[placed.place[packets] == Place.UNLINKED]] = Place.REFERRED
    return replace(found, packet=packets)
