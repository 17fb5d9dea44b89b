"""Adding up the walker's records, queue by queue (pure)."""

import numpy as np
import numpy.typing as npt

from memdiag_node.walker.walker import (
    HEAD_UNIT_BYTES,
    IDENTITIES,
    IS_DEVICE,
    IS_MEMBER,
    IS_SLAB,
    IS_USER,
    UNREADABLE,
    RecordType,
    Status,
)

TALLY_DTYPE = np.dtype(
    [
        ("packets", "<u4"),
        ("expected", "<u4"),
        ("status", "u1"),
        ("unreadable", "<u4"),
        ("device", "<u4"),
        ("payload_bytes", "<u8"),
        ("charge_bytes", "<u8"),
        ("head_bytes", "<u8"),
        ("identity", "<u8", IDENTITIES),
    ]
)
"""The result for one item of the worklist.

`identity`: hash of the address and length of its first packets. `expected`: its length when the walk ended.
"""

BLOCK_DTYPE = np.dtype([("owner", "<u4"), ("page", "<u8"), ("order", "u1"), ("user", "?"), ("slab", "?")])
"""A block of item or socket number `owner`.

`user`: a page of a process or of the page cache. `slab`: from kmalloc, counted as slab and not as allocpage.
"""

FINDING_DTYPE = np.dtype([("item", "<u4"), ("how", "<u2"), ("socket", "<u8")])


class Tally:
    """The result of a walk for each item. Blocks beyond `max_blocks` are counted in `blocks_left_out`, not kept."""

    def __init__(self, items: int, *, max_blocks: int) -> None:
        self.table = np.zeros(items, TALLY_DTYPE)
        self.tables: list[tuple[int, int]] = []
        self.blocks_left_out = 0
        self._max_blocks = max_blocks
        self._blocks: list[npt.NDArray[np.void]] = []
        self._block_count = 0
        self._findings: list[npt.NDArray[np.void]] = []

    def add(self, records: npt.NDArray[np.void]) -> None:
        """Add one piece of the walker's records; the items of a piece are consecutive."""
        if not len(records):
            return
        first = int(records["item"].min())
        part = self.table[first : int(records["item"].max()) + 1]
        kind = records["type"]
        self._add_packets(records[kind == RecordType.PACKET], first, part)
        self._add_blocks(records[(kind == RecordType.FRAGMENT) | (kind == RecordType.HEAD)], first, part)
        identities = records[kind == RecordType.IDENTITY]
        part["identity"][identities["item"] - first, identities["detail"]] = identities["value"]
        sockets = records[kind == RecordType.SOCKET]
        if len(sockets):
            findings = np.empty(len(sockets), FINDING_DTYPE)
            findings["item"], findings["how"], findings["socket"] = sockets["item"], sockets["detail"], sockets["value"]
            self._findings.append(findings)
        nets = records[kind == RecordType.NET]
        self.tables += zip(nets["detail"].tolist(), nets["value"].tolist(), strict=True)
        ends = records[kind == RecordType.END]
        part["status"][ends["item"] - first] = ends["detail"]
        part["expected"][ends["item"] - first] = ends["value"] >> np.uint64(32)

    def _add_packets(self, packets: npt.NDArray[np.void], first: int, part: npt.NDArray[np.void]) -> None:
        index = (packets["item"] - first).astype(np.intp)
        heads = packets["flags"] & IS_MEMBER == 0  # len and truesize of a frag list's head include its members
        top = packets[heads]
        top_index = index[heads]
        part["packets"] += np.bincount(top_index, minlength=len(part)).astype("<u4")
        _accumulate(part["payload_bytes"], top_index, top["value"] >> np.uint64(32))
        _accumulate(part["charge_bytes"], top_index, top["value"] & np.uint64(0xFFFFFFFF))
        _accumulate(part["head_bytes"], index, packets["detail"].astype("<u8") * HEAD_UNIT_BYTES)
        unreadable = index[packets["flags"] & UNREADABLE != 0]
        part["unreadable"] += np.bincount(unreadable, minlength=len(part)).astype("<u4")

    def _add_blocks(self, fragments: npt.NDArray[np.void], first: int, part: npt.NDArray[np.void]) -> None:
        index = (fragments["item"] - first).astype(np.intp)
        flags = fragments["flags"]
        for name, flag in (("device", IS_DEVICE), ("unreadable", UNREADABLE)):
            part[name] += np.bincount(index[flags & flag != 0], minlength=len(part)).astype("<u4")
        real = fragments[fragments["value"] != 0]
        blocks = np.empty(len(real), BLOCK_DTYPE)
        blocks["owner"], blocks["page"], blocks["order"] = real["item"], real["value"], real["detail"]
        blocks["user"] = real["flags"] & IS_USER != 0
        blocks["slab"] = real["flags"] & IS_SLAB != 0
        blocks = unique_blocks(blocks)
        room = self._max_blocks - self._block_count
        if len(blocks) > room:
            self.blocks_left_out += len(blocks) - room
            left_out = np.unique(blocks["owner"][room:]) - first
            part["unreadable"][left_out] += 1
            blocks = blocks[:room]
        self._blocks.append(blocks)
        self._block_count += len(blocks)

    def blocks(self) -> npt.NDArray[np.void]:
        """Every block once for each item (BLOCK_DTYPE, sorted by item)."""
        return unique_blocks(np.concatenate(self._blocks)) if self._blocks else np.empty(0, BLOCK_DTYPE)

    def findings(self) -> npt.NDArray[np.void]:
        """Sockets that the walk found (FINDING_DTYPE)."""
        return np.concatenate(self._findings) if self._findings else np.empty(0, FINDING_DTYPE)


def _accumulate(column: npt.NDArray[np.uint64], index: npt.NDArray[np.intp], values: npt.NDArray[np.uint64]) -> None:
    # bincount sums in float64: exact below 2**53 bytes, which one piece of records never reaches
    column += np.bincount(index, weights=values, minlength=len(column)).astype("<u8")


def unique_blocks(blocks: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Each page of each owner once, sorted by owner, then page."""
    if len(blocks) < 2:  # noqa: PLR2004 - fewer than two cannot repeat
        return blocks
    blocks = blocks[np.lexsort((blocks["page"], blocks["owner"]))]
    fresh = np.empty(len(blocks), bool)
    fresh[0] = True
    fresh[1:] = (blocks["page"][1:] != blocks["page"][:-1]) | (blocks["owner"][1:] != blocks["owner"][:-1])
    return blocks[fresh]


def bytes_by_owner(blocks: npt.NDArray[np.void], owners: int, *, page_size_bytes: int) -> npt.NDArray[np.uint64]:
    """Size of the blocks of each owner, for owners 0 to `owners` - 1."""
    sizes = np.left_shift(np.uint64(page_size_bytes), blocks["order"].astype("<u8"))
    return np.bincount(blocks["owner"], weights=sizes, minlength=owners).astype("<u8")


def unfinished(table: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    """Items that changed during the walk, and should be walked again."""
    return np.flatnonzero((table["status"] == Status.RACE) | (table["status"] == Status.FAULT))
