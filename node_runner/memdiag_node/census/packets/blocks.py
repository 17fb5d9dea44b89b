"""The memory behind packets: blocks of pages, and slab objects that are the linear heads."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.census.packets.table import FRAGMENT_BYTES, PacketTable
from memdiag_node.holding import PINNED_DTYPE
from memdiag_node.kernel.page_array import block_heads
from memdiag_node.slab.census import SlabCensus

_PIECE_PACKETS = 1 << 17
MAX_BLOCKS = 1 << 20
"""Blocks that are kept in one reading."""
_MAX_ORDER_MASK = np.uint64(31)
_IS_DEVICE_MEMORY = np.uint64(1)  # include/net/netmem.h: a net_iov has no page

BLOCK_DTYPE = np.dtype([("packet", "<u4"), ("page", "<u8"), ("order", "u1"), ("user", "?"), ("slab", "?")])
"""A block that packet number `packet` keeps. `user`: of a process or of the page cache. `slab`: large kmalloc."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The linear heads of packets."""

    slab_bytes: npt.NDArray[np.int64]
    """Of each packet: the size of the slab object that is its head, for one of those that share it; else 0."""
    is_page: npt.NDArray[np.bool_]
    """Whether the head is in a block of pages of its own, not in a slab."""


def read_heads(census: SlabCensus, head: npt.NDArray[np.uint64]) -> Heads:
    """Where the linear heads (their first bytes) are."""
    starts, slabs = census.find(head)
    # Several packets may share one head, or have heads cut from one object: the first one counts.
    _, first = np.unique(starts, return_index=True)
    first = first[slabs[first] >= 0]
    slab_bytes = np.zeros(len(head), np.int64)
    strides = np.array([cache.stride_bytes for cache in census.caches], np.int64)
    slab_bytes[first] = strides[census.slabs.table["cache"][slabs[first]]]
    return Heads(slab_bytes, (slabs < 0) & (head >= np.uint64(census.linear_base)))


def read_blocks(
    census: SlabCensus,
    at: Mapping[str, int],
    table: PacketTable,
    chosen: npt.NDArray[np.int64],
    is_page_head: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.void], int]:
    """The blocks behind chosen packets, each once for each packet, and the number of those beyond MAX_BLOCKS.

    `packet` of a block (BLOCK_DTYPE) is an index of `chosen`; `is_page_head` is of each chosen packet, from
    `read_heads`. `at` is the result of `packet_fields`.
    """
    found, count, left_out = [np.empty(0, BLOCK_DTYPE)], 0, 0
    for start in range(0, len(chosen), _PIECE_PACKETS):
        piece = slice(start, start + _PIECE_PACKETS)
        owner, page, is_slab = _pages(census, at, table, chosen[piece], is_page_head[piece])
        blocks = _blocks(census, owner + start, page, is_slab)
        room = max(0, MAX_BLOCKS - count)
        left_out += max(0, len(blocks) - room)
        found.append(blocks[:room])
        count += len(found[-1])
    return np.concatenate(found), left_out


def pinned(blocks: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """These blocks as PINNED_DTYPE, each page once, without pages of processes and of the page cache."""
    kernel = blocks[~blocks["user"]]
    _, first = np.unique(kernel["page"], return_index=True)
    result = np.zeros(len(first), PINNED_DTYPE)
    for column in ("page", "order", "slab"):
        result[column] = kernel[column][first]
    return result


def _pages(
    census: SlabCensus,
    at: Mapping[str, int],
    table: PacketTable,
    chosen: npt.NDArray[np.int64],
    is_page_head: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Any struct page of each block: of fragments, and of heads in pages of their own. May have duplicates."""
    packets, shared, head = table.address[chosen], table.shared[chosen], table.head[chosen]
    own = np.flatnonzero(is_page_head)
    frames = (head[own] - np.uint64(census.linear_base)) >> np.uint64(census.at["PAGE_SHIFT"])
    is_cut = census.read(packets[own], at["PACKET_HEAD_FRAG_BYTE"], 1) >> np.uint64(at["PACKET_HEAD_FRAG_SHIFT"])
    owners = [own]
    pages = [frames * np.uint64(census.at["STRUCT_PAGE_BYTES"]) + np.uint64(census.first_page)]
    slab = [is_cut & np.uint64(1) == 0]
    has_shared = np.flatnonzero(shared)
    pieces = np.zeros(len(packets), np.int64)
    pieces[has_shared] = census.read(shared[has_shared], at["SHARED_PIECES"], 1).astype(np.int64)
    pieces[pieces > at["MAX_PIECES"]] = 0  # freed and reused meanwhile
    for number in range(int(pieces.max(initial=0))):
        more = np.flatnonzero(pieces > number)
        page = census.read(shared[more], at["SHARED_FRAGMENTS"] + FRAGMENT_BYTES * number)
        is_page = (page != 0) & (page & _IS_DEVICE_MEMORY == 0)
        owners.append(more[is_page])
        pages.append(page[is_page])
        slab.append(np.zeros(int(is_page.sum()), np.bool_))
    return np.concatenate(owners), np.concatenate(pages), np.concatenate(slab)


def _blocks(
    census: SlabCensus, owner: npt.NDArray[np.int64], page: npt.NDArray[np.uint64], is_slab: npt.NDArray[np.bool_]
) -> npt.NDArray[np.void]:
    """The block that each page is in, once for each owner."""
    engine, memory = census.at, census.memory
    unique, inverse = np.unique(page, return_inverse=True)
    heads = block_heads(memory, engine, unique)
    flags = memory.peek(heads + np.uint64(engine["PAGE_FLAGS"]))
    order = memory.peek(heads + np.uint64(engine["PAGE_ORDER"])) & _MAX_ORDER_MASK
    order = np.where(flags >> np.uint64(engine["PG_HEAD"]) & np.uint64(1) != 0, order, 0)
    is_user = memory.peek(heads + np.uint64(engine["PAGE_MAPPING"])) != 0
    is_readable = flags != 0
    blocks = np.zeros(len(page), BLOCK_DTYPE)
    blocks["packet"], blocks["page"], blocks["slab"] = owner, heads[inverse], is_slab
    blocks["order"], blocks["user"] = order[inverse], is_user[inverse]
    blocks = blocks[is_readable[inverse]]
    key = np.lexsort((blocks["page"], blocks["packet"]))
    blocks = blocks[key]
    keep = np.ones(len(blocks), np.bool_)
    keep[1:] = (blocks["page"][1:] != blocks["page"][:-1]) | (blocks["packet"][1:] != blocks["packet"][:-1])
    each_once: npt.NDArray[np.void] = blocks[keep]
    return each_once
