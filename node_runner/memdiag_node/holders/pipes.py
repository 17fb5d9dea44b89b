"""Pipes and FIFOs: pages that were written and not read (include/linux/pipe_fs_i.h)."""

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.holders.context import HolderContext
from memdiag_node.holding import Holding, pinned_blocks, sizes_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.file_kinds import FileKind
from memdiag_node.walker.tally import unique_blocks
from memdiag_node.walker.walker import ITEM_DTYPE, Kind

_PIPES_AT_ONCE = 1 << 16
"""The result of a walk takes about 150 bytes per pipe, even if empty: a node may have millions."""


def fields(_btf: Btf) -> dict[str, int]:
    """None: the walker knows pipes."""
    return {}


def find(context: HolderContext) -> list[Holding]:
    """Every pipe with an fd and with pages, and all its ends."""
    fds = context.scan.files[context.scan.files["kind"] == FileKind.PIPE]  # sorted by pipe, pid, fd
    addresses, first_fd = np.unique(fds["socket"], return_index=True)
    first_fd = np.append(first_fd, len(fds))
    held = []
    for start in range(0, len(addresses), _PIPES_AT_ONCE):
        end = min(start + _PIPES_AT_ONCE, len(addresses))
        held += _holders(context, fds, addresses[start:end], first_fd[start : end + 1])
    return held


def _holders(
    context: HolderContext,
    fds: npt.NDArray[np.void],
    addresses: npt.NDArray[np.uint64],
    first_fd: npt.NDArray[np.intp],
) -> list[Holding]:
    """Those of the pipes at `addresses` that hold pages; fds[first_fd[n]:first_fd[n + 1]] are the fds of number n."""
    items = np.zeros(len(addresses), ITEM_DTYPE)
    items["head"], items["kind"] = addresses, Kind.PIPE
    walked = context.walk(items, "pipes")
    blocks = unique_blocks(walked.blocks[~walked.blocks["user"]])
    numbers, first_block = np.unique(blocks["owner"], return_index=True)
    first_block = np.append(first_block, len(blocks))
    holders = []
    for place, number in enumerate(numbers.tolist()):
        mine = blocks[first_block[place] : first_block[place + 1]]
        ends = fds[first_fd[number] : first_fd[number + 1]]
        owners, total = context.owners((int(end["pid"]), int(end["fd"])) for end in ends)
        holders.append(
            Holding(
                Holder(
                    kind=HolderKind.PIPE,
                    description=f"pipe, inode {ends['pipe_inode'][0]}",
                    owners=owners,
                    owners_total=total,
                    unread_bytes=int(walked.table["payload_bytes"][number]),
                    unread_packets=int(walked.table["packets"][number]),
                    pinned_bytes=int(sizes_bytes(mine).sum()),
                    pinned_blocks=len(mine),
                ),
                pinned_blocks(mine),
            )
        )
    return holders
