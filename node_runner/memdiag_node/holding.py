"""A holder and the blocks that it pins: the record shared by sockets, other holders, the join and the ledger."""

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.memory_classes import ClassName

PINNED_DTYPE = np.dtype([("page", "<u8"), ("order", "u1"), ("slab", "?")])
"""One block, identified by the address of its first struct page: a key for the join, never published.

`slab`: allocated by kmalloc, counted as slab and not as allocpage.
"""

PACKET_STRUCT_BYTES = 256
"""The struct sk_buff of each packet in slab: 232 to 256 bytes, rounded up to cache lines."""
_OF_PACKETS = frozenset({HolderKind.SOCKET, HolderKind.TUN_QUEUE, HolderKind.PACKET_QUEUE})
"""Holders of packets. In others, `unread_packets` are buffers or events."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A holder, and the blocks that it pins (PINNED_DTYPE), each once."""

    holder: Holder
    blocks: npt.NDArray[np.void]
    pool: int = 0
    """Address of a page pool, to recognize it in later findings. Never published."""
    network_namespace: int = 0
    """Inode of the network namespace of a queue outside of sockets; 0 of other holders, or if it is not known."""
    is_own: bool = False
    """Whether this run made it, so that it is gone when the run ends."""

    @property
    def is_alloc_page(self) -> bool:
        """Whether what it pins is allocpage, except for blocks that are slab."""
        return self.holder.memory_class == ClassName.ALLOC_PAGE

    @property
    def alloc_page_blocks(self) -> npt.NDArray[np.void]:
        """The blocks that are allocpage."""
        blocks: npt.NDArray[np.void] = self.blocks[~self.blocks["slab"]]
        return blocks

    def unlisted_bytes(self, page_bytes: int) -> int:
        """Return the bytes that it pins beyond `blocks`: only the sum and traced blocks of a page pool are known."""
        return max(0, self.holder.pinned_bytes - unique_bytes([self.blocks], page_bytes=page_bytes))


def kept_bytes(holder: Holder) -> int:
    """Return what holders are ranked by: pinned bytes and linear heads of packets, without the packets' structs."""
    return holder.pinned_bytes + holder.head_bytes


def packet_slab_bytes(holder: Holder) -> int:
    """Return the slab memory of its packets: their linear heads and the packets themselves."""
    return holder.head_bytes + PACKET_STRUCT_BYTES * packets_of(holder)


def packets_of(holder: Holder) -> int:
    """Return the number of packets in all queues of a socket; of a sum of sockets those that are unread."""
    if holder.kind not in _OF_PACKETS:
        return 0
    if holder.socket and holder.socket.queues:
        return sum(queue.packets for queue in holder.socket.queues)
    return holder.unread_packets


def by_size(holdings: Iterable[Holding]) -> list[Holding]:
    """Return the holdings that keep the most bytes first."""
    return sorted(holdings, key=lambda one: -kept_bytes(one.holder))


def pinned_blocks(blocks: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return these blocks as PINNED_DTYPE. Without a field `slab`, none of them is slab."""
    pinned = np.zeros(len(blocks), PINNED_DTYPE)
    for column in set(PINNED_DTYPE.names or ()) & set(blocks.dtype.names or ()):
        pinned[column] = blocks[column]
    return pinned


def unique_blocks(blocks: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return each page once, sorted by page."""
    _, first = np.unique(blocks["page"], return_index=True)
    unique: npt.NDArray[np.void] = blocks[first]
    return unique


def sizes_bytes(blocks: npt.NDArray[np.void], *, page_bytes: int = mmap.PAGESIZE) -> npt.NDArray[np.uint64]:
    """Return the size of each block of an array with orders."""
    return np.left_shift(np.uint64(page_bytes), blocks["order"].astype(np.uint64), dtype=np.uint64)


def unique_bytes(holders: Sequence[npt.NDArray[np.void]], *, page_bytes: int) -> int:
    """Return the bytes of all blocks of `holders` (fields page and order). Shared blocks are counted once."""
    if not holders:
        return 0
    return int(sizes_bytes(unique_blocks(np.concatenate(holders)), page_bytes=page_bytes).sum())


def pinned_together_bytes(holdings: Sequence[Holding], *, page_bytes: int) -> int:
    """Return the bytes that the holders pin together. Shared blocks are counted once."""
    listed_bytes = unique_bytes([one.blocks for one in holdings], page_bytes=page_bytes)
    return listed_bytes + sum(one.unlisted_bytes(page_bytes) for one in holdings)
