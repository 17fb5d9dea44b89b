"""The packets of each network namespace: those of its sockets, and those on its devices that belong to no socket."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.sockets import CensusSockets
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.slab.census import SlabCensus

_PIECE_OBJECTS = 1 << 18
_FIELDS: tuple[Field, ...] = (
    ("PACKET_DEVICE", "sk_buff", "dev"),
    ("PACKET_SOCKET", "sk_buff", "sk"),
    ("PACKET_CHARGE", "sk_buff", "truesize"),
    ("CLONE", "sk_buff_fclones", "skb2"),
    ("CLONE_REFERENCES", "sk_buff_fclones", "fclone_ref"),
)


def packet_fields(btf: Btf) -> dict[str, int]:
    """The offsets that `add_packets` needs; empty if this kernel lacks one of them."""
    return optional_offsets(btf, "HAS_PACKETS", _FIELDS)


def add_packets(
    census: SlabCensus,
    at: Mapping[str, int],
    table: npt.NDArray[np.void],
    *,
    devices: npt.NDArray[np.uint64],
    owner: npt.NDArray[np.int64],
    sockets: CensusSockets,
) -> None:
    """Add the packets to `table` (NAMESPACE_DTYPE, by `network`). `owner`: the row of each of `devices`, which ascend.

    The size of packets of no socket is added; sockets are charged for theirs. A packet in a queue of TCP or UDP
    refers to neither its socket nor its device: only its charge is known.
    """
    if "HAS_PACKETS" not in at:
        return
    rows = np.searchsorted(table["network"], sockets.table["network"])
    for packets in _packets(census, at):
        device = _match(census.read(packets, at["PACKET_DEVICE"]), devices, owner)
        sk = census.read(packets, at["PACKET_SOCKET"])
        socket = _match(sk, sockets.table["socket"], rows)
        charge = census.read(packets, at["PACKET_CHARGE"], 4).astype(np.int64)
        row = np.where(socket >= 0, socket, device)
        lone = (row >= 0) & (sk == 0)
        table["packets"] += np.bincount(row[row >= 0], minlength=len(table))
        table["size_bytes"] += np.bincount(row[lone], charge[lone], len(table)).astype(np.int64)


def _packets(census: SlabCensus, at: Mapping[str, int]) -> Iterator[npt.NDArray[np.uint64]]:
    """Addresses of all packets, in pieces."""
    for cache in census.named("skbuff_head_cache"):
        objects = census.objects(cache)
        for start in range(0, len(objects), _PIECE_OBJECTS):
            piece = objects[start : start + _PIECE_OBJECTS]
            yield piece[census.still_allocated(cache, piece)]
    for cache in census.named("skbuff_fclone_cache"):
        pairs = census.objects(cache)
        pairs = pairs[census.still_allocated(cache, pairs)]
        yield pairs
        # The second of a pair, a clone of the first for the device, is used while both are counted.
        yield pairs[census.read(pairs, at["CLONE_REFERENCES"], 4) > 1] + np.uint64(at["CLONE"])


def _match(
    addresses: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The row of each address among `known`, which ascend; -1 for none."""
    if not len(known):
        return np.full(len(addresses), -1, np.int64)
    place = np.minimum(np.searchsorted(known, addresses), len(known) - 1)
    return np.where(known[place] == addresses, rows[place], -1)
