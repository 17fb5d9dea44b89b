"""What would come back if holders let go: memory that nothing else keeps (pure)."""

from collections.abc import Collection, Sequence

import numpy as np

from memdiag_api.evidence import Holder
from memdiag_node.holding import Holding, sizes_bytes, unique_blocks

PACKET_STRUCT_BYTES = 256
"""The struct sk_buff of each packet in slab: 232 to 256 bytes, rounded up to cache lines."""


def exclusive_bytes(group: Collection[int], holdings: Sequence[Holding], *, page_bytes: int) -> int:
    """Return the bytes that would be freed if the holders of `group` let go. `group`: their indexes in `holdings`.

    Blocks that no other holder has, each once; heads of packets and the packets themselves in slab; and what a holder
    keeps beyond its known blocks. A block that another holder has, too, is not freed.
    """
    members = [holdings[index] for index in sorted(set(group))]
    if not members:
        return 0
    blocks = unique_blocks(np.concatenate([one.blocks for one in members]))
    is_shared = np.zeros(len(blocks), bool)
    others = set(range(len(holdings))) - set(group)
    if len(blocks):
        for index in others:
            pages = holdings[index].blocks["page"]
            place = np.minimum(np.searchsorted(blocks["page"], pages), len(blocks) - 1)
            is_shared[place[blocks["page"][place] == pages]] = True
    slab_bytes = sum(one.holder.head_bytes + PACKET_STRUCT_BYTES * packets_of(one.holder) for one in members)
    beyond_bytes = sum(one.unlisted_bytes(page_bytes) for one in members)
    return int(sizes_bytes(blocks[~is_shared], page_bytes=page_bytes).sum()) + slab_bytes + beyond_bytes


def packets_of(holder: Holder) -> int:
    """Return the number of packets in all queues of a socket; of a sum and of other holders those that wait."""
    if holder.socket and holder.socket.queues:
        return sum(queue.packets for queue in holder.socket.queues)
    return holder.unread_packets
