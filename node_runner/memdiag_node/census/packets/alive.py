"""Whether what looks like a packet is one: freed packets keep their contents, and are not always on a free list.

The kernel keeps some freed packets for each CPU (napi_alloc_cache), which the slab counts as allocated. What such a
packet points to belongs to others, and does not fit its lengths.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.census.packets.table import FRAGMENT_BYTES, PacketTable
from memdiag_node.slab.census import SlabCensus

_DATA_REFERENCES = np.int64(0xFFFF)  # include/linux/skbuff.h, SKB_DATAREF_SHIFT: the upper half counts payload only
_MAX_DATA_REFERENCES = 1 << 12
_LARGEST_SLAB_OBJECT_PAGES = 2  # include/linux/slab.h, KMALLOC_MAX_CACHE_SIZE


def own_data(
    census: SlabCensus,
    at: Mapping[str, int],
    table: PacketTable,
    chosen: npt.NDArray[np.int64],
    in_slab: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Of the chosen packets: references to their data, and whether their data fits their lengths.

    `in_slab`: whether the linear head of each is a slab object.
    """
    address, shared, head = table.address[chosen], table.shared[chosen], table.head[chosen]

    def number(name: str, width_bytes: int) -> npt.NDArray[np.int64]:
        return census.read(address, at[name], width_bytes).astype(np.int64)

    length, paged, end = number("PACKET_LENGTH", 4), number("PACKET_PAGED_LENGTH", 4), number("PACKET_END", 4)
    reserved = (census.read(address, at["PACKET_DATA"]) - head).astype(np.int64)
    counters = census.read(shared, at["SHARED_REFERENCES"], 4).astype(np.int64)
    references, payload_only = counters & _DATA_REFERENCES, counters >> 16
    is_cut = number("PACKET_HEAD_FRAG_BYTE", 1) >> at["PACKET_HEAD_FRAG_SHIFT"] & 1 != 0
    is_own = (shared != 0) & (table.truesize[chosen] != 0)
    is_own &= (references > 0) & (references <= _MAX_DATA_REFERENCES) & (payload_only <= references)
    is_own &= (reserved >= 0) & (length >= paged) & (reserved + length - paged <= end)
    # A head in no slab is cut from a page, or too large for a slab.
    is_large = end >= (_LARGEST_SLAB_OBJECT_PAGES << census.at["PAGE_SHIFT"]) - at["SHARED_BYTES"]
    is_own &= in_slab | is_cut | is_large
    in_fragments = _fragment_bytes(census, at, shared)
    has_list = table.fragment_list[chosen] != 0
    is_own &= (in_fragments == paged) | (has_list & (in_fragments >= 0) & (in_fragments <= paged))
    return references, np.asarray(is_own, np.bool_)


def _fragment_bytes(census: SlabCensus, at: Mapping[str, int], shared: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The bytes in the fragments of each packet, -1 if it has an impossible number of them."""
    pieces = census.read(shared, at["SHARED_PIECES"], 1).astype(np.int64)
    total = np.where(pieces <= at["MAX_PIECES"], 0, -1)
    pieces[pieces > at["MAX_PIECES"]] = 0
    for number in range(int(pieces.max(initial=0))):
        more = np.flatnonzero(pieces > number)
        offset = at["SHARED_FRAGMENTS"] + FRAGMENT_BYTES * number + 8  # after the page: length, offset
        total[more] += census.read(shared[more], offset, 4).astype(np.int64)
    return total


def still_allocated(census: SlabCensus, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether the slab object that each address points into is in use now; False for what is in no slab."""
    starts, slabs = census.find(addresses)
    result = np.zeros(len(addresses), np.bool_)
    inside = np.flatnonzero(slabs >= 0)
    caches = census.slabs.table["cache"][slabs[inside]]
    for cache in np.unique(caches).tolist():
        own = inside[caches == cache]
        result[own] = census.still_allocated(cache, starts[own])
    return result
