"""Packets that belong to a socket, but are in none of its own queues: of socket maps, kernel TLS and SCTP.

An object of the protocol has them, and refers to the socket. It counts only if that is one.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.network_objects import Networks, are_sockets, index_of
from memdiag_node.census.packets.place import Place, Pointers, array_entries, pointers_to
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.slab.census import SlabCensus

_MAX_SOCKETS = 1 << 20
_MAX_CHUNKS = 1 << 21
_MAX_MESSAGES = 1 << 18
_MAX_CONTEXT_WORDS = 1 << 7
_CACHE_LINE = 64
_USER_DATA_FLAGS = np.uint64(7)  # include/net/sock.h, SK_USER_DATA_PTRMASK

# Objects with a list of packets and a pointer to the socket that they belong to.
_LISTS: tuple[tuple[str, Place, str, str, str], ...] = (
    ("PSOCK_INGRESS", Place.SOCKMAP, "sk_psock", "ingress_skb", "sk"),
    ("TLS_RECEIVED", Place.KTLS, "tls_sw_context_rx", "rx_list", "strp.sk"),
    ("SCTP_REASSEMBLY", Place.SCTP, "sctp_association", "ulpq.reasm", "base.sk"),
    ("SCTP_UNORDERED", Place.SCTP, "sctp_association", "ulpq.reasm_uo", "base.sk"),
    ("SCTP_LOBBY", Place.SCTP, "sctp_association", "ulpq.lobby", "base.sk"),
)
_PSOCK: tuple[Field, ...] = (
    ("USER_DATA", "sock", "sk_user_data"),
    ("PSOCK_SOCK", "sk_psock", "sk"),
    ("PSOCK_MESSAGES", "sk_psock", "ingress_msg"),
    ("MESSAGE_PACKET", "sk_msg", "skb"),
    ("MESSAGE_LIST", "sk_msg", "list"),
)
_TLS: tuple[Field, ...] = (
    ("UPPER_LAYER", "inet_connection_sock", "icsk_ulp_data"),
    ("TLS_RECEIVER", "tls_context", "priv_ctx_rx"),
    ("TLS_SOCK", "tls_sw_context_rx", "strp.sk"),
)
_SCTP: tuple[Field, ...] = (
    ("CHUNK_PACKET", "sctp_chunk", "skb"),
    ("CHUNK_ASSOCIATION", "sctp_chunk", "asoc"),
    ("ASSOCIATION_SOCK", "sctp_association", "base.sk"),
)
_OF_MODULES = {"tls_context": "tls", "sctp_chunk": "sctp"}
"""Where types may be that are not in the kernel's own BTF."""


def protocol_fields(btf: Btf) -> dict[str, int]:
    """The offsets that this module needs; a kind that this kernel lacks is left out."""
    for struct, module in _OF_MODULES.items():
        btf = btf if btf.has_struct(struct) else btf.with_module(module)
    found: dict[str, int] = {}
    for name, _, struct, queue, owner in _LISTS:
        found |= optional_offsets(btf, f"HAS_{name}", ((name, struct, queue), (f"{name}_SOCK", struct, owner)))
    for switch, wanted in (("HAS_PSOCK", _PSOCK), ("HAS_TLS", _TLS), ("HAS_SCTP", _SCTP)):
        found |= optional_offsets(btf, switch, wanted)
    for struct in ("tls_sw_context_rx", "sctp_chunk"):
        if btf.has_struct(struct):
            found[f"{struct.upper()}_BYTES"] = btf.size_bytes(struct)
    return found


def protocol_lists(
    census: SlabCensus,
    at: Mapping[str, int],
    networks: Networks,
    objects: npt.NDArray[np.uint64],
    offsets_bytes: npt.NDArray[np.int64],
) -> Iterator[tuple[Place, npt.NDArray[np.int64], npt.NDArray[np.uint64]]]:
    """Which heads of lists, at these offsets in these objects, are of a protocol: their numbers, and their sockets."""
    for name, place, *_ in _LISTS:
        if f"HAS_{name}" not in at:
            continue
        part = np.flatnonzero((objects != 0) & (offsets_bytes == at[name]))
        sockets = census.memory.peek(objects[part] + np.uint64(at[f"{name}_SOCK"]))
        known = are_sockets(census, at, networks, sockets)
        yield place, part[known], sockets[known]


def protocol_pointers(
    census: SlabCensus, at: Mapping[str, int], networks: Networks, packets: npt.NDArray[np.uint64]
) -> Iterator[Pointers]:
    """Pointers to packets in messages of socket maps, contexts of TLS and chunks of SCTP. `packets` ascend."""
    is_protocol = set(networks.protocol_caches.tolist())
    for number, cache in enumerate(census.caches):
        if cache.address not in is_protocol:
            continue
        objects = census.objects(number)[:_MAX_SOCKETS]
        sockets = objects[are_sockets(census, at, networks, objects)]
        if "HAS_PSOCK" in at:
            yield _socket_map_pointers(census, at, sockets)
        if "HAS_TLS" in at and cache.name.startswith("TCP"):
            yield _tls_pointers(census, at, sockets)
    if "HAS_SCTP" in at and any(len(census.objects(number)) for number in census.named("SCTP", "SCTPv6")):
        yield from _chunk_pointers(census, at, networks, packets)


def _socket_map_pointers(census: SlabCensus, at: Mapping[str, int], sockets: npt.NDArray[np.uint64]) -> Pointers:
    memory = census.memory
    psocks = memory.peek(sockets + np.uint64(at["USER_DATA"])) & ~_USER_DATA_FLAGS
    is_object = psocks >= np.uint64(census.linear_base)
    psocks, sockets = psocks[is_object], sockets[is_object]
    is_own = memory.peek(psocks + np.uint64(at["PSOCK_SOCK"])) == sockets
    heads = psocks[is_own] + np.uint64(at["PSOCK_MESSAGES"])
    owners, messages = _members(census, heads, sockets[is_own])
    packets = memory.peek(messages - np.uint64(at["MESSAGE_LIST"]) + np.uint64(at["MESSAGE_PACKET"]))
    return pointers_to(Place.SOCKMAP, packets, owners=owners)


def _members(
    census: SlabCensus, heads: npt.NDArray[np.uint64], owners: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The owner and the address of each entry of many lists, which are followed in step."""
    memory = census.memory
    found_owners, found = [np.empty(0, "<u8")], [np.empty(0, "<u8")]
    entries, count = memory.peek(heads), 0
    while len(entries) and count < _MAX_MESSAGES:
        more = (entries != 0) & (entries != heads)
        heads, owners, entries = heads[more], owners[more], entries[more]
        found_owners.append(owners)
        found.append(entries)
        count += len(entries)
        entries = memory.peek(entries)
    return np.concatenate(found_owners), np.concatenate(found)


def _tls_pointers(census: SlabCensus, at: Mapping[str, int], sockets: npt.NDArray[np.uint64]) -> Pointers:
    """Every word of the receiving side of each socket's TLS: the packet of the current record is one of them."""
    memory = census.memory
    contexts = memory.peek(sockets + np.uint64(at["UPPER_LAYER"]))
    contexts = np.where(contexts != 0, memory.peek(contexts + np.uint64(at["TLS_RECEIVER"])), 0)
    is_own = (contexts != 0) & (memory.peek(contexts + np.uint64(at["TLS_SOCK"])) == sockets)
    contexts, sockets = contexts[is_own], sockets[is_own]
    words = min(_MAX_CONTEXT_WORDS, at["TLS_SW_CONTEXT_RX_BYTES"] // 8)
    places = array_entries(contexts, np.full(len(contexts), words, np.int64), 8)
    return pointers_to(Place.KTLS, memory.peek(places), owners=np.repeat(sockets, words))


def _chunk_pointers(
    census: SlabCensus, at: Mapping[str, int], networks: Networks, wanted: npt.NDArray[np.uint64]
) -> Iterator[Pointers]:
    """Chunks refer to their packet and their association. Their cache may be merged with others of the same size."""
    memory, size = census.memory, at["SCTP_CHUNK_BYTES"]
    stride = -(-size // _CACHE_LINE) * _CACHE_LINE
    for number, cache in enumerate(census.caches):
        if cache.name != "sctp_chunk" and (cache.stride_bytes != stride or "kmalloc" in cache.name):
            continue
        chunks = census.objects(number)[:_MAX_CHUNKS]
        packets = memory.peek(chunks + np.uint64(at["CHUNK_PACKET"]))
        chosen = index_of(packets, wanted) >= 0
        chunks, packets = chunks[chosen], packets[chosen]
        associations = memory.peek(chunks + np.uint64(at["CHUNK_ASSOCIATION"]))
        sockets = memory.peek(np.where(associations != 0, associations + np.uint64(at["ASSOCIATION_SOCK"]), 0))
        known = are_sockets(census, at, networks, sockets)
        yield pointers_to(Place.SCTP, packets[known], owners=sockets[known])
