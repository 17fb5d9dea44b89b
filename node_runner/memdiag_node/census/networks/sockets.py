"""Every socket of the node, from the slab caches of its protocol: of all network namespaces, held by an fd or not.

Protocols without a cache (netlink, packet, tun) allocate their sockets with kmalloc. These are objects of kmalloc's
caches that point to a network namespace and to their protocol; those with a struct socket are reached from it, too.
Each is verified by `sk_prot_creator`, by which the kernel chooses where to free a socket (net/core/sock.c,
sk_prot_free).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from socket import AF_UNIX, SOCK_STREAM, socket

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.namespace_addresses import network_fields, network_namespaces
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import list_entries
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.text import printable
from memdiag_node.slab.census import SlabCensus

SOCKET_DTYPE = np.dtype(
    [
        *[(name, "<u8") for name in ("socket", "network", "protocol", "charge_bytes")],
        *[(name, "<u4") for name in ("references", "write_allocated_bytes")],
        ("family", "<u2"),
        *[(name, "u1") for name in ("state", "has_socket", "has_file", "holds_network", "is_orphaned")],
    ]
)
"""One struct sock. `network` and `protocol` (sk_prot_creator) are addresses. `references`: 0 if only packets that it
sent keep it; they are `write_allocated_bytes`. `holds_network`: it keeps its namespace from being removed, which a
socket of the kernel's own does not. `charge_bytes`: what it received and what it sends."""

_PIECE_OBJECTS = 1 << 18
_MAX_KMALLOC_OBJECTS = 1 << 20
_MAX_SOCKET_BYTES = 1 << 13
_NAME_BYTES = 32  # include/net/sock.h, struct proto
_INT_MAX = (1 << 31) - 1

_FIELDS: tuple[Field, ...] = (
    ("FILE_PRIVATE", "file", "private_data"),
    ("SOCKET_SK", "socket", "sk"),
    ("SOCKET_FILE", "socket", "file"),
    ("ALLOCATED_SOCKET", "socket_alloc", "socket"),
    ("SOCK_CREATOR", "sock", "sk_prot_creator"),
    ("SOCK_NET", "sock", "__sk_common.skc_net"),
    ("SOCK_REFERENCES", "sock", "__sk_common.skc_refcnt"),
    ("SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    ("SOCK_STATE", "sock", "__sk_common.skc_state"),
    ("SOCK_FLAGS", "sock", "__sk_common.skc_flags"),
    ("SOCK_SOCKET", "sock", "sk_socket"),
    ("SOCK_WRITE_ALLOCATED", "sock", "sk_wmem_alloc"),
    ("SOCK_WRITE_QUEUED", "sock", "sk_wmem_queued"),
    ("SOCK_RECEIVE_CHARGE", "sock", "sk_backlog.rmem_alloc"),
    ("PROTO_SLAB", "proto", "slab"),
    ("PROTO_NODE", "proto", "node"),
    ("PROTO_NAME", "proto", "name"),
    ("PROTO_SOCKET_BYTES", "proto", "obj_size"),
)


@dataclass(frozen=True, slots=True)
class CensusSockets:
    """The sockets that the census found."""

    table: npt.NDArray[np.void]
    """SOCKET_DTYPE, by address, each once. Without connection requests and connections in TIME_WAIT."""
    protocols: dict[int, str]
    """The name of each protocol, by its address."""
    object_bytes: dict[int, int]
    """The size of a socket of each protocol."""
    is_whole: bool
    """False if only a sample of the slabs was read, or if kmalloc has too many objects to look at all."""


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_sockets` needs; empty if this kernel lacks one of them."""
    networks = network_fields(btf)
    found = optional_offsets(btf, "HAS_SOCKETS", _FIELDS)
    if not networks or not found:
        return {}
    bits = {
        "SOCK_HOLDS_NETWORK_BIT": btf.bit_offset("sock", "__sk_common.skc_net_refcnt"),  # since Linux 4.2
        "SOCK_DEAD": btf.enum_value("SOCK_DEAD"),
        "SOCK_BYTES": btf.size_bytes("sock"),
    }
    return networks | found | bits


def referred_to(sockets: CensusSockets) -> npt.NDArray[np.uint64]:
    """Addresses of the sockets that something else than the packets that they sent refers to, ascending."""
    addresses: npt.NDArray[np.uint64] = sockets.table["socket"][sockets.table["references"] > 0]
    return addresses


def read_sockets(
    census: SlabCensus, at: Mapping[str, int], networks: npt.NDArray[np.uint64] | None = None
) -> CensusSockets:
    """Every socket of the node. `at` is the result of `fields`.

    `networks`: all network namespaces, if they are known beforehand.
    """
    if "HAS_SOCKETS" not in at:
        return CensusSockets(np.empty(0, SOCKET_DTYPE), {}, {}, is_whole=False)
    nets = network_namespaces(census, at) if networks is None else networks
    registered = _registered(census.memory, at)
    tables = [_kept(census, at, cache, nets) for cache in _own_caches(census, at, registered)]
    kmalloc, is_whole = _kmalloc_caches(census, at)
    tables += [_kept(census, at, cache, nets, is_kmalloc=True) for cache in kmalloc]
    table = _unique(tables)
    # In the end also those in caches that were not recognized: of modules that changed a protocol, or in a sample.
    table = _unique([table, _with_socket(census, at, nets, table["socket"])])
    names, sizes = _named(census, at, np.unique(table["protocol"]))
    return CensusSockets(table, names, sizes, is_whole=is_whole and census.sampled_share >= 1)


def _registered(memory: KernelMemory, at: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """Every protocol that is registered (proto_list), and the list's head."""
    with socket(AF_UNIX, SOCK_STREAM) as own:
        sk = memory.word(memory.word(memory.file(own.fileno()) + at["FILE_PRIVATE"]) + at["SOCKET_SK"])
    first = np.array([memory.word(sk + at["SOCK_CREATOR"])], "<u8")
    node = np.uint64(at["PROTO_NODE"])
    return np.union1d(first, list_entries(memory, first + node) - node)


def _own_caches(census: SlabCensus, at: Mapping[str, int], protocols: npt.NDArray[np.uint64]) -> list[int]:
    """The numbers of the caches of these protocols. Protocols may share one."""
    own = census.read(protocols, at["PROTO_SLAB"])
    return [number for number, cache in enumerate(census.caches) if cache.address in set(own[own != 0].tolist())]


def _kmalloc_caches(census: SlabCensus, at: Mapping[str, int]) -> tuple[list[int], bool]:
    """The numbers of kmalloc's caches whose objects can be a socket, and whether there is room to look at all."""
    chosen: list[int] = []
    objects = 0
    counts = census.count()
    for number, cache in enumerate(census.caches):
        if cache.name.startswith("kmalloc-") and at["SOCK_BYTES"] <= cache.object_bytes <= _MAX_SOCKET_BYTES:
            objects += counts[number].in_use
            if objects > _MAX_KMALLOC_OBJECTS:
                return chosen, False
            chosen.append(number)
    return chosen, True


def _kept(
    census: SlabCensus,
    at: Mapping[str, int],
    cache: int,
    networks: npt.NDArray[np.uint64],
    *,
    is_kmalloc: bool = False,
) -> npt.NDArray[np.void]:
    """The sockets among the objects of a cache that are still allocated after their fields were read."""
    slab = 0 if is_kmalloc else census.caches[cache].address
    tables = [_verified(census, at, piece, networks, slab=slab) for piece in _pieces(census.objects(cache))]
    table = np.concatenate([np.empty(0, SOCKET_DTYPE), *tables])
    if not len(table):
        return table
    kept: npt.NDArray[np.void] = table[census.still_allocated(cache, table["socket"])]
    return kept


def _pieces(objects: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.uint64]]:
    for start in range(0, len(objects), _PIECE_OBJECTS):
        yield objects[start : start + _PIECE_OBJECTS]


def _verified(
    census: SlabCensus,
    at: Mapping[str, int],
    objects: npt.NDArray[np.uint64],
    networks: npt.NDArray[np.uint64],
    *,
    slab: int | None,
) -> npt.NDArray[np.void]:
    """Those of the objects that are sockets. `slab`: the cache that their protocol must have, 0 for kmalloc."""
    objects = objects[np.isin(census.read(objects, at["SOCK_NET"]), networks)]
    creators = census.read(objects, at["SOCK_CREATOR"])
    known, which = np.unique(creators, return_inverse=True)
    is_protocol = np.array([bool(name) for name in _names(census, at, known)], np.bool_)
    if slab is not None:
        is_protocol &= census.read(known, at["PROTO_SLAB"]) == np.uint64(slab)
    if slab == 0:
        # A network namespace and a name in other objects of kmalloc may be chance. The size makes it certain.
        sizes = census.read(known, at["PROTO_SOCKET_BYTES"], 4)
        is_protocol &= (sizes >= at["SOCK_BYTES"]) & (sizes <= _MAX_SOCKET_BYTES)
    objects = objects[is_protocol[which]] if len(objects) else objects
    table = _described(census, at, objects)
    alive: npt.NDArray[np.void] = table[
        ((table["references"] > 0) | (table["write_allocated_bytes"] > 0)) & (table["references"] <= _INT_MAX)
    ]
    return alive


def _described(census: SlabCensus, at: Mapping[str, int], objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.void]:
    table = np.zeros(len(objects), SOCKET_DTYPE)

    def field(name: str, width: int = 8) -> npt.NDArray[np.uint64]:
        return census.read(objects, at[name], width)

    table["socket"], table["network"], table["protocol"] = objects, field("SOCK_NET"), field("SOCK_CREATOR")
    table["family"], table["state"] = field("SOCK_FAMILY", 2), field("SOCK_STATE", 1)
    table["references"] = field("SOCK_REFERENCES", 4)
    received, allocated, queued = (
        np.where(words <= _INT_MAX, words, 0)
        for words in (field(f"SOCK_{name}", 4) for name in ("RECEIVE_CHARGE", "WRITE_ALLOCATED", "WRITE_QUEUED"))
    )
    # One byte is its own until it is closed, except that a socket without references has no such byte any more.
    allocated -= np.minimum(allocated, table["references"] > 0)
    table["write_allocated_bytes"] = allocated
    table["charge_bytes"] = received + np.maximum(allocated, queued)
    table["is_orphaned"] = field("SOCK_FLAGS") >> np.uint64(at["SOCK_DEAD"]) & np.uint64(1)
    byte, bit = divmod(at["SOCK_HOLDS_NETWORK_BIT"], 8)
    table["holds_network"] = census.read(objects, byte, 1) >> np.uint64(bit) & np.uint64(1)
    holders = field("SOCK_SOCKET")
    table["has_socket"] = holders != 0
    table["has_file"] = (holders != 0) & (census.read(holders, at["SOCKET_FILE"]) != 0)
    return table


def _with_socket(
    census: SlabCensus, at: Mapping[str, int], networks: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64]
) -> npt.NDArray[np.void]:
    """Sockets that a struct socket leads to and that are not `known`; each refers to its struct socket as well."""
    tables = []
    for cache in census.named("sock_inode_cache"):
        holders = census.objects(cache) + np.uint64(at["ALLOCATED_SOCKET"])
        sockets = census.read(holders, at["SOCKET_SK"])
        is_mutual = (sockets != 0) & (census.read(sockets, at["SOCK_SOCKET"]) == holders)
        new = np.setdiff1d(sockets[is_mutual], known)
        tables.append(_verified(census, at, new, networks, slab=None))
    return np.concatenate([np.empty(0, SOCKET_DTYPE), *tables])


def _named(
    census: SlabCensus, at: Mapping[str, int], protocols: npt.NDArray[np.uint64]
) -> tuple[dict[int, str], dict[int, int]]:
    sizes = np.minimum(census.read(protocols, at["PROTO_SOCKET_BYTES"], 4), _MAX_SOCKET_BYTES)
    addresses = protocols.tolist()
    names = dict(zip(addresses, _names(census, at, protocols), strict=True))
    return names, dict(zip(addresses, sizes.tolist(), strict=True))


def _names(census: SlabCensus, at: Mapping[str, int], protocols: npt.NDArray[np.uint64]) -> list[str]:
    """The name of each protocol; empty for what has none, which is not a protocol."""
    texts = census.memory.texts(protocols + np.uint64(at["PROTO_NAME"]), _NAME_BYTES)
    return [protocol_name(text) for text in texts]


def protocol_name(text: bytes) -> str:
    """The name of a protocol (struct proto); empty if the bytes are not one."""
    is_name = 0 < len(text) < _NAME_BYTES and text.isascii() and all(0x20 < byte < 0x7F for byte in text)  # noqa: PLR2004
    return printable(text, _NAME_BYTES) if is_name else ""


def _unique(tables: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    table = np.concatenate([np.empty(0, SOCKET_DTYPE), *tables])
    _, first = np.unique(table["socket"], return_index=True)
    unique: npt.NDArray[np.void] = table[first]
    return unique
