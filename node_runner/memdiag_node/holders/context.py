"""What a kind of holder gets to look with, and what it gives back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, Owner
from memdiag_node.ebpf.tally import Tally
from memdiag_node.holders.sockets import PINNED_DTYPE, SocketScan, SocketScanner

MAX_OWNERS = 16
MAX_FDS = 64


class Held(NamedTuple):
    """A holder and its blocks (PINNED_DTYPE)."""

    holder: Holder
    blocks: npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class HolderContext:
    """The scan that just ended, and the means to look further."""

    scanner: SocketScanner
    scan: SocketScan
    owner_of: Callable[[int], Owner | None]

    def owners(self, pairs: Iterable[tuple[int, int]]) -> tuple[list[Owner], int]:
        """The processes of these (pid, fd) with their fds, and how many there are."""
        fds: dict[int, list[int]] = {}
        for pid, fd in pairs:
            fds.setdefault(pid, []).append(fd)
        owners = [
            owner.model_copy(update={"fds": sorted(fds[pid])[:MAX_FDS]})
            for pid in sorted(fds)[:MAX_OWNERS]
            if (owner := self.owner_of(pid)) is not None
        ]
        return owners, len(fds)


def kernel_blocks(tally: Tally, item: int) -> npt.NDArray[np.void]:
    """The blocks of one item (PINNED_DTYPE), without pages of processes and of the page cache."""
    blocks = tally.blocks()
    blocks = blocks[(blocks["owner"] == item) & ~blocks["user"]]
    pinned = np.empty(len(blocks), PINNED_DTYPE)
    pinned["page"], pinned["order"] = blocks["page"], blocks["order"]
    return pinned
