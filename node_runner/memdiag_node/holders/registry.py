"""The kinds of holders besides sockets: each is one module with one function, listed here."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, Owner
from memdiag_node.holders import packet_rings, page_pools, pipes, ring_buffers
from memdiag_node.holders.context import Held, HolderContext
from memdiag_node.holders.sockets import SocketScan, SocketScanner

HOLDER_KINDS: tuple[Callable[[HolderContext], list[Held]], ...] = (
    pipes.find,
    packet_rings.find,
    page_pools.find,
    ring_buffers.find,
)


@dataclass(frozen=True, slots=True)
class OtherHolders:
    """Holders that are no socket queue, most pinned bytes first, and the blocks of each (PINNED_DTYPE) for the join."""

    holders: list[Holder]
    blocks: list[npt.NDArray[np.void]]


def other_holders(scanner: SocketScanner, scan: SocketScan, owner_of: Callable[[int], Owner | None]) -> OtherHolders:
    """What else holds blocks, as `scan` came upon it. Raises BpfError when the kernel stops answering."""
    context = HolderContext(scanner=scanner, scan=scan, owner_of=owner_of)
    found = sorted(
        (held for find in HOLDER_KINDS for held in find(context)), key=lambda held: -held.holder.pinned_bytes
    )
    return OtherHolders(holders=[held.holder for held in found], blocks=[held.blocks for held in found])
