"""The input of a kind of holder, and what it reports."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Owner
from memdiag_node.census.findings import ObjectFindings
from memdiag_node.holding import Holding, pinned_blocks
from memdiag_node.processes import OwnerOf, owners_of
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.walker.walker import Status
from memdiag_node.walker.walks import Walked, Walks

_UNFINISHED = {
    Status.NOT_REACHED: "that the scan's time did not reach",
    Status.RACE: "that kept changing",
    Status.FAULT: "that could not be read",
}


@dataclass(frozen=True, slots=True)
class HolderContext:
    """The scan that just ended, and the means to search further."""

    scanner: SocketScanner
    scan: SocketScan
    owner_of: OwnerOf
    walks: Walks
    """With the time budget that all kinds of holders share."""
    proc: Path
    at: Mapping[str, int]
    """The kernel offsets that the kinds need (registry.holder_fields)."""
    objects: ObjectFindings | None = None
    """What the census of kernel objects found, if it was taken."""
    found: list[Holding] = field(default_factory=list)
    """What the kinds before this one have found."""
    not_seen: list[str] = field(default_factory=list)
    """What the kinds could not see, as text; see `notes`."""
    _left: Counter[str] = field(default_factory=Counter)
    """The number of objects that walks left out, by description."""

    def walk(self, items: npt.NDArray[np.void], subjects: str) -> Walked:
        """Walk the items (ITEM_DTYPE); unfinished ones are counted for `notes`, as a number of `subjects`."""
        walked = self.walks.walk(items, max_blocks=self.scanner.max_blocks)
        for status, why in _UNFINISHED.items():
            self._left[f"{subjects} {why}"] += walked.count(status)
        self._left[f"blocks of {subjects} beyond the number that may be kept"] += walked.blocks_left_out
        return walked

    def notes(self) -> list[str]:
        """What the kinds could not see, for the coverage."""
        return [*self.not_seen, *(f"{count} {what}" for what, count in self._left.items() if count)]

    def owners(self, pairs: Iterable[tuple[int, int]]) -> tuple[list[Owner], int]:
        """The processes of these (pid, fd) with their fds, and the number of processes."""
        return owners_of(pairs, self.owner_of)


def kernel_blocks(walked: Walked, item: int) -> npt.NDArray[np.void]:
    """The blocks of one item (PINNED_DTYPE), without pages of processes and of the page cache."""
    return pinned_blocks(walked.blocks[(walked.blocks["owner"] == item) & ~walked.blocks["user"]])
