"""Rings of packet sockets (PACKET_RX_RING, PACKET_TX_RING): blocks that are mapped into the process, full or not.

Kernel: net/packet/af_packet.c, alloc_pg_vec. A block that came from vmalloc, because no large one was free, is not
allocpage and is left out.
"""

import numpy as np

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.holders.context import HolderContext, kernel_blocks
from memdiag_node.holding import Holding, sizes_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.walker.walker import ITEM_DTYPE, Kind

_POINTER_BYTES = 8


def fields(_btf: Btf) -> dict[str, int]:
    """None: rings are part of the description of their socket."""
    return {}


def find(context: HolderContext) -> list[Holding]:
    """Every packet socket with rings, its receive and its transmit ring together."""
    scan = context.scan
    holders = []
    for number in np.flatnonzero((scan.sockets["rx_ring"] != 0) | (scan.sockets["tx_ring"] != 0)):
        row = scan.sockets[number]
        items = np.zeros(2, ITEM_DTYPE)
        items["head"] = row["rx_ring"], row["tx_ring"]
        items["count"] = row["rx_ring_blocks"] * (row["rx_ring"] != 0), row["tx_ring_blocks"] * (row["tx_ring"] != 0)
        items["stride"], items["kind"] = _POINTER_BYTES, Kind.BLOCKS
        walked = context.walk(items, "packet rings")
        blocks = np.concatenate([kernel_blocks(walked, item) for item in range(len(items))])
        blocks = blocks[np.isin(blocks["order"], (row["rx_ring_order"], row["tx_ring_order"]))]
        owners, total = context.owners(scan.owners_of(int(row["socket"])))
        holders.append(
            Holding(
                Holder(
                    kind=HolderKind.PACKET_RING,
                    description=f"ring of a packet socket, inode {row['inode']}, interface {row['local_number']}",
                    owners=owners,
                    owners_total=total,
                    pinned_bytes=int(sizes_bytes(blocks).sum()),
                    pinned_blocks=len(blocks),
                ),
                blocks,
            )
        )
    return holders
