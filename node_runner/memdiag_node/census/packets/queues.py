"""What packets wait in: sockets, qdiscs, neighbours, IP reassembly, netfilter queues (struct fields of each).

Two kinds of evidence: the object that the head of a list is in, and pointers to packets in objects of a known type.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.network_objects import Networks, are_sockets, index_of
from memdiag_node.census.packets.place import Place, Pointers, array_entries, pointers_to
from memdiag_node.census.packets.protocols import protocol_lists
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import list_entries
from memdiag_node.slab.census import SlabCensus

_MAX_QUEUES_OF_DEVICE = 256
_MAX_QUEUES = 1 << 16
_MAX_OBJECTS = 1 << 21
_MAX_QDISC_WORDS = 1 << 18
_MAX_RING = 1 << 17
_PFIFO_BANDS = 3  # net/sched/sch_generic.c
_HASH_BUCKETS = 16  # include/linux/netdevice.h, qdisc_hash
_ENTRY_SLACK_BYTES = 128  # after a struct nf_queue_entry: the protocol's own part
_U32 = np.uint64(0xFFFFFFFF)


_SOCKETS: tuple[Field, ...] = (("SOCK_BACKLOG", "sock", "sk_backlog.head"),)
_TCP: tuple[Field, ...] = (
    ("SOCK_RETRANSMIT", "sock", "tcp_rtx_queue"),
    ("TCP_OUT_OF_ORDER", "tcp_sock", "out_of_order_queue"),
)
_MPTCP: tuple[Field, ...] = (("MPTCP_OUT_OF_ORDER", "mptcp_sock", "out_of_order_queue"),)
_QDISC: tuple[Field, ...] = (
    ("DEVICE_QDISC", "net_device", "qdisc"),
    ("DEVICE_QUEUES", "net_device", "_tx"),
    ("DEVICE_QUEUE_COUNT", "net_device", "num_tx_queues"),
    ("DEVICE_QUEUE_QDISC", "netdev_queue", "qdisc_sleeping"),
    ("QDISC_QUEUE", "Qdisc", "dev_queue"),
    ("QDISC_LENGTH", "Qdisc", "q.qlen"),
    ("QUEUE_DEVICE", "netdev_queue", "dev"),
)
_QDISC_HASH: tuple[Field, ...] = (
    ("DEVICE_QDISC_HASH", "net_device", "qdisc_hash"),
    ("QDISC_HASH", "Qdisc", "hash"),
)
_RINGS: tuple[Field, ...] = (
    ("QDISC_PRIVATE", "Qdisc", "privdata"),
    ("RING_POINTERS", "skb_array", "ring.queue"),
    ("RING_SIZE", "skb_array", "ring.size"),
    ("FAST_RINGS", "pfifo_fast_priv", "q"),
)
_NEIGHBOUR: tuple[Field, ...] = (
    ("NEIGHBOUR_QUEUE", "neighbour", "arp_queue"),
    ("NEIGHBOUR_DEVICE", "neighbour", "dev"),
)
_REASSEMBLY: tuple[Field, ...] = (
    ("FRAGMENTS_TREE", "inet_frag_queue", "rb_fragments"),
    ("FRAGMENTS_OWNER", "inet_frag_queue", "fqdir"),
    ("FRAGMENTS_NET", "fqdir", "net"),
    ("FRAGMENTS_NEXT", "ipfrag_skb_cb", "next_frag"),
)
_INTERFACES: tuple[Field, ...] = (
    ("IPQ_INTERFACE", "ipq", "iif"),
    ("FRAG_QUEUE_INTERFACE", "frag_queue", "iif"),
)
_NETFILTER: tuple[Field, ...] = (
    ("ENTRY_PACKET", "nf_queue_entry", "skb"),
    ("ENTRY_NET", "nf_queue_entry", "state.net"),
    ("ENTRY_IN", "nf_queue_entry", "state.in"),
    ("ENTRY_OUT", "nf_queue_entry", "state.out"),
)


def queue_fields(btf: Btf) -> dict[str, int]:
    """The offsets that this module needs; a kind that this kernel lacks is left out."""
    found: dict[str, int] = {}
    for switch, wanted in (
        ("HAS_SOCKETS", _SOCKETS),
        ("HAS_TCP", _TCP),
        ("HAS_MPTCP", _MPTCP),
        ("HAS_QDISCS", _QDISC),
        ("HAS_QDISC_HASH", _QDISC_HASH),
        ("HAS_RINGS", _RINGS),
        ("HAS_NEIGHBOURS", _NEIGHBOUR),
        ("HAS_REASSEMBLY", _REASSEMBLY),
        ("HAS_INTERFACES", _INTERFACES),
        ("HAS_NETFILTER_QUEUES", _NETFILTER),
    ):
        found |= optional_offsets(btf, switch, wanted)
    for struct in ("skb_array", "ipq", "frag_queue", "nf_queue_entry", "netdev_queue"):
        if btf.has_struct(struct):
            found[f"{struct.upper()}_BYTES"] = btf.size_bytes(struct)
    return found


@dataclass(frozen=True, slots=True)
class Heads:
    """Where the heads of lists are. The columns have one element for each head."""

    place: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.uint64]
    device: npt.NDArray[np.uint64]
    cache: npt.NDArray[np.int32]
    """The number of the slab cache of the object that the head is in, -1 for none."""
    offset_bytes: npt.NDArray[np.int64]
    """Of the head in that object."""


@dataclass(frozen=True, slots=True)
class Qdiscs:
    """The qdiscs of all devices, by address."""

    address: npt.NDArray[np.uint64]
    device: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint64]
    """Packets, by its own count; with a count for each CPU, 0."""


def read_qdiscs(census: SlabCensus, at: Mapping[str, int], networks: Networks) -> Qdiscs:
    """The qdiscs that devices refer to, as a whole or by queue, and those in their hash tables (classes of others)."""
    nothing = np.empty(0, "<u8")
    if "HAS_QDISCS" not in at:
        return Qdiscs(nothing, nothing, nothing)
    memory, devices = census.memory, networks.devices
    counts = np.minimum(memory.peek(devices + np.uint64(at["DEVICE_QUEUE_COUNT"])) & _U32, _MAX_QUEUES_OF_DEVICE)
    counts[np.cumsum(counts) > _MAX_QUEUES] = 0
    queues = array_entries(
        memory.peek(devices + np.uint64(at["DEVICE_QUEUES"])), counts.astype(np.int64), at["NETDEV_QUEUE_BYTES"]
    )
    found = [
        memory.peek(devices + np.uint64(at["DEVICE_QDISC"])),
        memory.peek(queues + np.uint64(at["DEVICE_QUEUE_QDISC"])),
    ]
    if "HAS_QDISC_HASH" in at:
        buckets = array_entries(
            devices + np.uint64(at["DEVICE_QDISC_HASH"]), np.full(len(devices), _HASH_BUCKETS, np.int64), 8
        )
        found.append(list_entries(memory, buckets) - np.uint64(at["QDISC_HASH"]))
    address = np.unique(np.concatenate(found))
    device = memory.peek(memory.peek(address + np.uint64(at["QDISC_QUEUE"])) + np.uint64(at["QUEUE_DEVICE"]))
    _, slabs = census.find(address)
    is_qdisc = (slabs >= 0) & (index_of(device, devices) >= 0)  # else the kernel's own noop, without packets
    address, device = address[is_qdisc], device[is_qdisc]
    return Qdiscs(address, device, memory.peek(address + np.uint64(at["QDISC_LENGTH"])) & _U32)


def classify_heads(
    census: SlabCensus, at: Mapping[str, int], networks: Networks, qdiscs: Qdiscs, heads: npt.NDArray[np.uint64]
) -> Heads:
    """Find what the heads of lists of packets belong to."""
    memory = census.memory
    starts, slabs = census.find(heads)
    in_slab = slabs >= 0
    offset = np.where(in_slab, heads - starts, 0).astype(np.int64)
    place = np.where(in_slab, Place.OBJECT_LIST, Place.KERNEL_LIST).astype(np.uint8)
    owner, device = np.zeros(len(heads), "<u8"), np.zeros(len(heads), "<u8")
    is_socket = in_slab & are_sockets(census, at, networks, starts)
    place[is_socket], owner[is_socket] = Place.SOCKET, starts[is_socket]
    for part_place, part, sockets in protocol_lists(census, at, networks, starts, np.where(is_socket, -1, offset)):
        place[part], owner[part] = part_place, sockets
    if "HAS_NEIGHBOURS" in at:
        part = np.flatnonzero((place == Place.OBJECT_LIST) & (offset == at["NEIGHBOUR_QUEUE"]))
        devices = memory.peek(starts[part] + np.uint64(at["NEIGHBOUR_DEVICE"]))
        known = networks.device_numbers(devices) >= 0
        place[part[known]], device[part[known]] = Place.NEIGHBOUR, devices[known]
    qdisc_starts, _ = census.find(qdiscs.address)
    order = np.argsort(qdisc_starts)
    numbers = index_of(starts, qdisc_starts[order])
    inside = (place == Place.OBJECT_LIST) & (numbers >= 0)
    place[inside], device[inside] = Place.QDISC, qdiscs.device[order][numbers[inside]]
    cache = np.full(len(heads), -1, np.int32)
    cache[in_slab] = census.slabs.table["cache"][slabs[in_slab]]
    return Heads(place, owner, device, cache, offset)


def socket_pointers(census: SlabCensus, at: Mapping[str, int], networks: Networks) -> Iterator[Pointers]:
    """Pointers to packets in the sockets that have a cache of their own: trees of TCP, backlogs."""
    offsets = [at["SOCK_BACKLOG"]] if "HAS_SOCKETS" in at else []
    memory, is_protocol = census.memory, set(networks.protocol_caches.tolist())
    for number, cache in enumerate(census.caches):
        if cache.address not in is_protocol:
            continue
        objects = census.objects(number)[:_MAX_OBJECTS]
        sockets = objects[are_sockets(census, at, networks, objects)]
        own = list(offsets)
        if "HAS_TCP" in at and cache.name.startswith("TCP"):
            own += [at["SOCK_RETRANSMIT"], at["TCP_OUT_OF_ORDER"]]
        if "HAS_MPTCP" in at and cache.name.startswith("MPTCP"):
            own.append(at["MPTCP_OUT_OF_ORDER"])
        for offset in own:
            yield pointers_to(Place.SOCKET, memory.peek(sockets + np.uint64(offset)), owners=sockets)


def qdisc_pointers(census: SlabCensus, at: Mapping[str, int], qdiscs: Qdiscs) -> Iterator[Pointers]:
    """Every word of each qdisc with its private data, and the rings of pfifo_fast."""
    memory = census.memory
    starts, slabs = census.find(qdiscs.address)
    strides = np.array([cache.stride_bytes for cache in census.caches], np.int64)
    caches = census.slabs.table["cache"][slabs] if len(slabs) else np.empty(0, np.int32)
    words = strides[caches] // 8
    words[np.cumsum(words) > _MAX_QDISC_WORDS] = 0
    places = array_entries(starts, words, 8)
    yield pointers_to(Place.QDISC, memory.peek(places), devices=np.repeat(qdiscs.device, words))
    if "HAS_RINGS" not in at:
        return
    bands = np.arange(_PFIFO_BANDS, dtype="<u8") * np.uint64(at["SKB_ARRAY_BYTES"]) + np.uint64(at["FAST_RINGS"])
    rings = (qdiscs.address[:, np.newaxis] + np.uint64(at["QDISC_PRIVATE"]) + bands).reshape(-1)
    devices = np.repeat(qdiscs.device, _PFIFO_BANDS)
    sizes = (memory.peek(rings + np.uint64(at["RING_SIZE"])) & _U32).astype(np.int64)
    arrays = memory.peek(rings + np.uint64(at["RING_POINTERS"]))
    # Other qdiscs have something else there, which does not lead to packets.
    sizes[(sizes > _MAX_RING) | (arrays & np.uint64(7) != 0) | (arrays < np.uint64(census.linear_base))] = 0
    sizes[np.cumsum(sizes) > _MAX_OBJECTS] = 0
    yield pointers_to(Place.QDISC, memory.peek(array_entries(arrays, sizes, 8)), devices=np.repeat(devices, sizes))


def reassembly_pointers(census: SlabCensus, at: Mapping[str, int], networks: Networks) -> Iterator[Pointers]:
    """The trees of IP reassembly. Its caches may be merged: an object counts if it leads to a network namespace."""
    if "HAS_REASSEMBLY" not in at:
        return
    memory = census.memory
    sizes = {at.get("IPQ_BYTES", 0), at.get("FRAG_QUEUE_BYTES", 0)}
    for number, cache in enumerate(census.caches):
        is_size = any(size and 0 <= cache.object_bytes - size < 8 for size in sizes)  # noqa: PLR2004 - one word
        if not (cache.name.endswith("-frags") or is_size):
            continue
        objects = census.objects(number)[:_MAX_OBJECTS]
        owners = memory.peek(objects + np.uint64(at["FRAGMENTS_OWNER"]))
        nets = memory.peek(np.where(owners != 0, owners + np.uint64(at["FRAGMENTS_NET"]), 0))
        known = index_of(nets, networks.nets) >= 0
        objects, nets = objects[known], nets[known]
        trees = memory.peek(objects + np.uint64(at["FRAGMENTS_TREE"]))
        devices = np.zeros(len(objects), "<u8")
        if "HAS_INTERFACES" in at:
            is_version_4 = cache.object_bytes >= at["IPQ_BYTES"] > at["FRAG_QUEUE_BYTES"]
            offset = at["IPQ_INTERFACE"] if is_version_4 else at["FRAG_QUEUE_INTERFACE"]
            devices = networks.devices_by_index(nets, memory.peek(objects + np.uint64(offset)) & _U32)
        yield pointers_to(Place.REASSEMBLY, trees, owners=nets, devices=devices)


def netfilter_pointers(
    census: SlabCensus, at: Mapping[str, int], networks: Networks, wanted: npt.NDArray[np.uint64]
) -> Iterator[Pointers]:
    """Entries of netfilter queues that hold one of the packets `wanted`, which ascend."""
    if "HAS_NETFILTER_QUEUES" not in at or not len(wanted):
        return
    memory, size = census.memory, at["NF_QUEUE_ENTRY_BYTES"]
    for number, cache in enumerate(census.caches):
        if "kmalloc" not in cache.name or not size <= cache.object_bytes <= 2 * (size + _ENTRY_SLACK_BYTES):
            continue
        objects = census.objects(number)[:_MAX_OBJECTS]
        packets = memory.peek(objects + np.uint64(at["ENTRY_PACKET"]))
        chosen = index_of(packets, wanted) >= 0
        objects, packets = objects[chosen], packets[chosen]
        nets = memory.peek(objects + np.uint64(at["ENTRY_NET"]))
        into, out = (memory.peek(objects + np.uint64(at[name])) for name in ("ENTRY_IN", "ENTRY_OUT"))
        known = index_of(nets, networks.nets) >= 0
        devices = np.where(networks.device_numbers(out) >= 0, out, into)
        yield pointers_to(Place.NETFILTER, packets[known], owners=nets[known], devices=devices[known])
