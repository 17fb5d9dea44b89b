"""Every packet of the node: where it is, what it keeps, and how long it has been there.

The packets come from their slab caches, so none has to be reached through a socket, a file descriptor or a network
namespace. Those in queues of sockets are only counted: the socket scan describes these queues.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memdiag_node.census.packet_blocks import BLOCK_DTYPE, pinned, read_blocks, read_heads
from memdiag_node.census.packet_clues import References, find_references, most_frequent
from memdiag_node.census.packet_networks import Networks, are_sockets, network_fields, protocol_names, read_networks
from memdiag_node.census.packet_places import PlacedPackets
from memdiag_node.census.packet_queues import Place, queue_fields
from memdiag_node.census.packet_table import PacketTable, packet_fields, read_packet_table
from memdiag_node.holding import sizes_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.slab.census import SlabCensus

MAX_GROUPS = 32
MAX_REMEMBERED = 1 << 17
_MIN_SEARCHED = 16
_SEARCHED_WORDS, _SEARCHED_AGAIN_WORDS = 1 << 20, 1 << 22
_SECONDS = 1e-9
_IDENTITY_WORDS = 6
_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)
_LINEAR_MAP_BYTES = np.uint64(1 << 46)
_WITH_CLUE = (Place.OTHER_CHAIN, Place.REFERRED)


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_packets` needs; what this kernel lacks is left out."""
    return network_fields(btf) | packet_fields(btf) | queue_fields(btf)


@dataclass(frozen=True, slots=True)
class UnlinkedPackets:
    """The packets that were in no queue in one reading, as hashes: to recognize them in a later one."""

    hashes: npt.NDArray[np.uint64]
    read_seconds: float
    """Of the monotonic clock."""


@dataclass(frozen=True, slots=True)
class PacketGroup:
    """Packets in the same kind of place, of the same device, destructor and kind of socket. Addresses stay inside."""

    place: Place
    packets: int
    charge_bytes: int
    head_bytes: int
    """Slab objects that are linear heads."""
    blocks: npt.NDArray[np.void]
    """PINNED_DTYPE: the blocks of pages that these packets keep, each once. Empty for SOCKET."""
    user_bytes: int
    """Pages of processes and of the page cache that the packets refer to."""
    device: str = ""
    device_kind: str = ""
    interface_index: int = 0
    network_namespace: int = 0
    """The inode; 0 if not known."""
    destructor: int = 0
    """Address of the function; 0 for none."""
    socket_kind: str = ""
    """The protocol of the sockets that are charged, as the kernel names it."""
    socket: int = 0
    """The address of the struct sock, if it is the same for more than half of the packets."""
    oldest_seconds: float | None = None
    """The age of the oldest time stamp."""
    is_unchanged: bool = False
    """Whether the same packets were in no queue in the earlier reading either."""
    referred_by: str = ""
    """Where in which slab cache their list, or a pointer to them, is."""


@dataclass(frozen=True, slots=True)
class PacketsReading:
    """One reading of all packets."""

    groups: list[PacketGroup]
    """The largest charge first. Beyond MAX_GROUPS, the rest is summed up by place."""
    packets: int
    charge_bytes: int
    unlinked: UnlinkedPackets
    unchanged_seconds: float
    """The time since the earlier reading; 0 without one."""
    blocks_left_out: int
    sampled_share: float
    searched_share: float
    """Of the slabs of kmalloc that were searched for pointers to packets in no queue."""
    seconds: float
    """The time that it took."""


def read_packets(
    census: SlabCensus, at: Mapping[str, int], *, earlier: UnlinkedPackets | None = None
) -> PacketsReading | None:
    """Read all packets, and place each. `at` is the result of `fields`; None if this kernel's packets are unknown.

    `earlier` is `unlinked` of a reading some seconds ago: what was in no queue then and still is may be lost.
    """
    if "HAS_PACKETS" not in at or "HAS_NETWORKS" not in at:
        return None
    started = time.monotonic()
    networks = read_networks(census, at)
    table = read_packet_table(census, at)
    placed = PlacedPackets(census, at, networks, table)
    references = _references(census, placed, _SEARCHED_WORDS if earlier is None else _SEARCHED_AGAIN_WORDS)
    counted = placed.is_alive & ~placed.is_member
    unlinked = np.flatnonzero(placed.is_alive & (placed.place == Place.UNLINKED))
    hashes = _identities(census, at, table, unlinked)
    is_unchanged = np.zeros(len(placed.place), np.bool_)
    if earlier is not None:
        is_unchanged[unlinked] = np.isin(hashes, earlier.hashes)
    groups, left_out = _groups(census, at, networks, placed, is_unchanged, references)
    return PacketsReading(
        groups=groups,
        packets=int(counted.sum()),
        charge_bytes=int(table.truesize[counted].sum(dtype=np.uint64)),
        unlinked=UnlinkedPackets(np.unique(hashes)[:MAX_REMEMBERED], started),
        unchanged_seconds=started - earlier.read_seconds if earlier else 0,
        blocks_left_out=left_out,
        sampled_share=census.sampled_share,
        searched_share=references.searched_share,
        seconds=time.monotonic() - started,
    )


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


def _groups(
    census: SlabCensus,
    at: Mapping[str, int],
    networks: Networks,
    placed: PlacedPackets,
    is_unchanged: npt.NDArray[np.bool_],
    references: References,
) -> tuple[list[PacketGroup], int]:
    """All groups, largest first, and the number of blocks that were not kept."""
    in_sockets = placed.is_alive & (placed.place == Place.SOCKET)
    others = np.flatnonzero(placed.is_alive & (placed.place != Place.SOCKET))
    slab_bytes = np.zeros(len(placed.place), np.int64)
    alive = np.flatnonzero(placed.is_alive)
    heads = read_heads(census, placed.table.head[alive])
    slab_bytes[alive] = heads.slab_bytes
    is_page = np.zeros(len(placed.place), np.bool_)
    is_page[alive] = heads.is_page
    table = placed.table
    blocks, left_out = read_blocks(
        census, at, table.address[others], table.shared[others], table.head[others], is_page[others]
    )
    found = _socket_groups(census, at, placed, np.flatnonzero(in_sockets), slab_bytes)
    found += _other_groups(census, at, networks, placed, others, is_unchanged, slab_bytes, blocks, references)
    found.sort(key=lambda group: -group.charge_bytes)
    return found[:MAX_GROUPS] + _summed(found[MAX_GROUPS:]), left_out


def _socket_groups(
    census: SlabCensus,
    at: Mapping[str, int],
    placed: PlacedPackets,
    chosen: npt.NDArray[np.int64],
    slab_bytes: npt.NDArray[np.int64],
) -> list[PacketGroup]:
    """One group for each protocol."""
    if not len(chosen):
        return []
    owners, numbers = np.unique(placed.owner[chosen], return_inverse=True)
    names, kinds = protocol_names(census.memory, at, owners)
    unique_names, name_numbers = np.unique(np.array(names), return_inverse=True)
    kind = name_numbers[kinds][numbers]
    counted = ~placed.is_member[chosen]
    size = len(unique_names)
    packets = np.bincount(kind[counted], minlength=size)
    charge = np.bincount(kind[counted], placed.table.truesize[chosen][counted], size)
    heads = np.bincount(kind, slab_bytes[chosen], size)
    nothing = pinned(np.empty(0, BLOCK_DTYPE))
    return [
        PacketGroup(Place.SOCKET, int(packets[n]), int(charge[n]), int(heads[n]), nothing, 0, socket_kind=str(name))
        for n, name in enumerate(unique_names)
        if packets[n]
    ]


def _other_groups(
    census: SlabCensus,
    at: Mapping[str, int],
    networks: Networks,
    placed: PlacedPackets,
    chosen: npt.NDArray[np.int64],
    is_unchanged: npt.NDArray[np.bool_],
    slab_bytes: npt.NDArray[np.int64],
    blocks: npt.NDArray[np.void],
    references: References,
) -> list[PacketGroup]:
    """One group for each place, device, network namespace, destructor, kind of socket, and object with the list."""
    if not len(chosen):
        return []
    address = placed.table.address[chosen]
    device = networks.device_numbers(placed.device[chosen])
    socket, kinds, kind = _sockets_of(census, at, networks, address)
    destructor = _functions(census, census.read(address, at["PACKET_DESTRUCTOR"]))
    net = np.append(networks.device_nets, 0)[device]
    net = np.where(net != 0, net, placed.owner[chosen])
    net = np.where(net != 0, net, census.memory.peek(np.where(socket != 0, socket + np.uint64(at["SOCK_NET"]), 0)))
    inode = networks.inode_of(net)
    key = np.stack(
        [
            placed.place[chosen].astype("<i8"), device, inode.astype("<i8"), destructor.astype("<i8"), kind,
            placed.head_cache[chosen].astype("<i8"), placed.head_offset[chosen], is_unchanged[chosen].astype("<i8"),
        ]
    )  # fmt: skip
    rows, number = np.unique(key, axis=1, return_inverse=True)
    number = number.reshape(-1)
    ages = _ages(census.read(address, at["PACKET_TIME"]))
    names = [cache.name for cache in census.caches]
    order = np.argsort(number, kind="stable")
    limits = np.searchsorted(number[order], np.arange(rows.shape[1] + 1))
    block_group = number[blocks["packet"]]
    block_order = np.argsort(block_group, kind="stable")
    block_limits = np.searchsorted(block_group[block_order], np.arange(rows.shape[1] + 1))
    found = []
    for n in range(rows.shape[1]):
        own = order[limits[n] : limits[n + 1]]
        place, dev, net_inode, function, _, cache, offset, unchanged = rows[:, n].tolist()
        own_blocks = blocks[block_order[block_limits[n] : block_limits[n + 1]]]
        members = placed.is_member[chosen[own]]
        oldest = ages[own].max()
        clue = f"{names[cache]}+{offset}" if place == Place.OBJECT_LIST and cache >= 0 else ""
        if place in _WITH_CLUE:
            clue = most_frequent(references, np.isin(references.packet, chosen[own]), names)
        found.append(
            PacketGroup(
                place=Place(place),
                packets=int((~members).sum()),
                charge_bytes=int(placed.table.truesize[chosen[own]][~members].sum(dtype=np.uint64)),
                head_bytes=int(slab_bytes[chosen[own]].sum()),
                blocks=pinned(own_blocks),
                user_bytes=_user_bytes(own_blocks),
                device=networks.device_names[dev] if dev >= 0 else "",
                device_kind=networks.device_kinds[dev] if dev >= 0 else "",
                interface_index=int(networks.device_indexes[dev]) if dev >= 0 else 0,
                network_namespace=net_inode,
                destructor=function % (1 << 64),
                socket_kind=kinds[int(rows[4, n])],
                socket=_of_most(socket[own]),
                oldest_seconds=float(oldest) if oldest >= 0 else None,
                is_unchanged=bool(unchanged),
                referred_by=clue,
            )
        )
    return found


def _sockets_of(
    census: SlabCensus, at: Mapping[str, int], networks: Networks, packets: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], list[str], npt.NDArray[np.int64]]:
    """The socket that each packet is charged to, 0 for none; the names of their protocols, and each packet's index."""
    unique, numbers = np.unique(census.read(packets, at["PACKET_SK"]), return_inverse=True)
    unique[~are_sockets(census, at, networks, unique)] = 0
    protocols, kinds = protocol_names(census.memory, at, unique)
    names = sorted({"", *protocols})
    kinds = np.array([names.index(protocols[kind]) for kind in kinds], np.int64)
    kinds[unique == 0] = 0
    return unique[numbers], names, kinds[numbers]


def _of_most(sockets: npt.NDArray[np.uint64]) -> int:
    """The socket of more than half of the packets, 0 for none."""
    unique, counts = np.unique(sockets, return_counts=True)
    most = int(counts.argmax())
    return int(unique[most]) if 2 * counts[most] > len(sockets) else 0


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


def _references(census: SlabCensus, placed: PlacedPackets, max_words: int) -> References:
    """Pointers to the packets in no known queue. What is on no list and has one is REFERRED from then on."""
    is_wanted = (placed.place == Place.OTHER_CHAIN) | (placed.place == Place.UNLINKED)
    wanted = np.flatnonzero(is_wanted & placed.is_alive)
    # A few packets on their way are normal, and not worth a search.
    found = find_references(census, placed.table.address[wanted], max_words=max_words * (len(wanted) >= _MIN_SEARCHED))
    packets = wanted[found.packet]
    placed.place[packets[placed.place[packets] == Place.UNLINKED]] = Place.REFERRED
    return replace(found, packet=packets)


def _user_bytes(blocks: npt.NDArray[np.void]) -> int:
    user = blocks[blocks["user"]]
    _, first = np.unique(user["page"], return_index=True)
    return int(sizes_bytes(user[first]).sum())


def _summed(groups: list[PacketGroup]) -> list[PacketGroup]:
    """One group for each place."""
    found = []
    for place in sorted({group.place for group in groups}):
        own = [group for group in groups if group.place == place]
        ages = [group.oldest_seconds for group in own if group.oldest_seconds is not None]
        blocks = np.concatenate([group.blocks for group in own])
        _, first = np.unique(blocks["page"], return_index=True)
        found.append(
            PacketGroup(
                place=place,
                packets=sum(group.packets for group in own),
                charge_bytes=sum(group.charge_bytes for group in own),
                head_bytes=sum(group.head_bytes for group in own),
                blocks=blocks[first],
                user_bytes=sum(group.user_bytes for group in own),
                oldest_seconds=max(ages, default=None),
                is_unchanged=all(group.is_unchanged for group in own),
            )
        )
    return found
