"""Pipes and FIFOs: pages that were written and not read (include/linux/pipe_fs_i.h)."""

import numpy as np

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.ebpf.queues import ITEM_DTYPE, Kind
from memdiag_node.ebpf.sockets import FOUND_PIPE
from memdiag_node.holders.context import Held, HolderContext
from memdiag_node.holders.sockets import pinned_blocks


def find(context: HolderContext) -> list[Held]:
    """Every pipe that an fd holds and that holds pages, with all its ends."""
    fds = context.scan.files[context.scan.files["kind"] == FOUND_PIPE]
    addresses, inodes = np.unique(fds["socket"]), fds["pipe_inode"]
    items = np.zeros(len(addresses), ITEM_DTYPE)
    items["head"], items["kind"] = addresses, Kind.PIPE
    walked = context.walk(items, "pipes")
    blocks = walked.blocks[~walked.blocks["user"]]
    holders = []
    for number in np.unique(blocks["owner"]):
        mine = blocks[blocks["owner"] == number]
        ends = fds[fds["socket"] == addresses[number]]
        owners, total = context.owners((int(end["pid"]), int(end["fd"])) for end in ends)
        inode = int(inodes[fds["socket"] == addresses[number]][0])
        holders.append(
            Held(
                Holder(
                    kind=HolderKind.PIPE,
                    description=f"pipe, inode {inode}",
                    owners=owners,
                    owners_total=total,
                    unread_bytes=int(walked.table["payload_bytes"][number]),
                    unread_packets=int(walked.table["packets"][number]),
                    pinned_bytes=int(context.scan.sizes_bytes(mine).sum()),
                    pinned_blocks=len(mine),
                ),
                pinned_blocks(mine),
            )
        )
    return holders
