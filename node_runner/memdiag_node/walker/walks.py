"""Walking items of the worklist, and again those that changed during the walk, until the time is up."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.memory import Fact, KernelMemory
from memdiag_node.time_budget import Budget
from memdiag_node.walker.tally import Tally, unfinished
from memdiag_node.walker.walker import QueueWalker, Status

ATTEMPTS = 5


@dataclass(slots=True)
class Walked:
    """The results of the items."""

    table: npt.NDArray[np.void]
    """TALLY_DTYPE, one row for each item."""
    blocks: npt.NDArray[np.void]
    """BLOCK_DTYPE, each block once for each item, `owner` its number."""
    findings: npt.NDArray[np.void]
    """FINDING_DTYPE: sockets that the walks found, including walks that were repeated."""
    tables: list[tuple[int, int]]
    """Hash tables of network namespaces (QueueWalker.table_items)."""
    blocks_left_out: int

    def count(self, status: Status) -> int:
        """The number of items that ended with this status."""
        return int(np.count_nonzero(self.table["status"] == status))

    def replace(self, again: npt.NDArray[np.intp], newer: "Walked", *, better: npt.NDArray[np.bool_]) -> None:
        """Take the items that `newer` saw better; its item n is item again[n] here. The findings of both are kept."""
        replaced = again[better]
        self.table[replaced] = newer.table[better]
        blocks = newer.blocks[better[newer.blocks["owner"]]]
        blocks["owner"] = again[blocks["owner"]]
        self.blocks = np.concatenate([self.blocks[~np.isin(self.blocks["owner"], replaced)], blocks])
        newer.findings["item"] = again[newer.findings["item"]]
        self.findings = np.concatenate([self.findings, newer.findings])
        self.tables += newer.tables
        self.blocks_left_out += newer.blocks_left_out


@dataclass(frozen=True, slots=True)
class Walks:
    """The walker and its time budget: items left when the time is up are not reached."""

    memory: KernelMemory
    walker: QueueWalker
    budget: Budget

    def late(self) -> bool:
        """Whether the time is up."""
        return self.budget.late()

    def walk(self, items: npt.NDArray[np.void], *, max_blocks: int, attempts: int = ATTEMPTS) -> Walked:
        """Walk the items (ITEM_DTYPE), and repeat those that changed meanwhile or could not be read.

        Of several incomplete walks of an item, the one whose number of packets is nearest to the queue's length counts.
        """
        walked = self._walk_once(items, max_blocks)
        for _ in range(attempts - 1):
            again = unfinished(walked.table)
            if not len(again) or self.late():
                break
            newer = self._walk_once(items[again], max(0, max_blocks - len(walked.blocks)))
            walked.replace(again, newer, better=is_better(walked.table[again], newer.table))
        return walked

    def _walk_once(self, items: npt.NDArray[np.void], max_blocks: int) -> Walked:
        tally = Tally(len(items), max_blocks=max_blocks)
        for records in self.walker.walk(
            items,
            late=self.late,
            linear_to_page=self.memory.fact(Fact.LINEAR_TO_PAGE),
            socket_file_operations=self.memory.fact(Fact.SOCKET_FILE_OPERATIONS),
            net_operations=self.memory.fact(Fact.NET_OPERATIONS),
        ):
            tally.add(records)
        return Walked(tally.table, tally.blocks(), tally.findings(), tally.tables, tally.blocks_left_out)


def is_better(older: npt.NDArray[np.void], newer: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """For each item (TALLY_DTYPE) whether `newer` is complete, or at least nearer to the queue's length."""

    def missed(table: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        difference: npt.NDArray[np.int64] = table["packets"].astype(np.int64) - table["expected"]
        return np.abs(difference)

    is_whole: npt.NDArray[np.bool_] = newer["status"] == Status.WHOLE
    return is_whole | (missed(newer) < missed(older))
