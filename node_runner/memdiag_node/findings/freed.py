"""What would come back if holders let go: memory that nothing else keeps (pure)."""

from collections.abc import Collection, Sequence

import numpy as np

from memdiag_node.holding import Holding, packet_slab_bytes, sizes_bytes, unique_blocks


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
    slab_bytes = sum(packet_slab_bytes(one.holder) for one in members)
    beyond_bytes = sum(one.unlisted_bytes(page_bytes) for one in members)
    return int(sizes_bytes(blocks[~is_shared], page_bytes=page_bytes).sum()) + slab_bytes + beyond_bytes
