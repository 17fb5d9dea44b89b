"""The result of one scan of the node's sockets, as records."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_node.holding import pinned_blocks, sizes_bytes
from memdiag_node.sockets.source import DESCRIPTION_DTYPE, FOUND_DTYPE, READS_DTYPE
from memdiag_node.walker.tally import TALLY_DTYPE

QUEUE_NAMES = ("receive", "reader", "outOfOrder", "backlog", "write", "retransmit", "error", "accept")
RECEIVE, READER, OUT_OF_ORDER, BACKLOG, WRITE, RETRANSMIT, ERROR, ACCEPT = range(len(QUEUE_NAMES))
READABLE = (RECEIVE, READER)
UNSENT = (WRITE, RETRANSMIT)

_NAMES = ("local_name", "remote_name", "unused")
_FOR_THE_WALK = (
    *("vsock_queue", "receive_packets", "write_packets", "error_packets", "reader_packets"),
    *("vsock_packets", "receive_charge_bytes", "write_queued_bytes", "backlog_bytes"),
)


def _without(fields: tuple[str, ...]) -> np.dtype[np.void]:
    return np.dtype([(name, DESCRIPTION_DTYPE[name]) for name in DESCRIPTION_DTYPE.names or () if name not in fields])


NAMELESS_DTYPE = _without(_NAMES)
"""The part of a description that the walk needs: all except its names."""
SOCKET_DTYPE = _without((*_NAMES, *_FOR_THE_WALK))
"""The part of a description that a scan keeps: a node may have a hundred thousand of them."""

QUEUE_DTYPE = np.dtype(
    [("socket", "<u4"), ("name", "u1"), ("pinned_bytes", "<u8"), ("user_bytes", "<u8"), *TALLY_DTYPE.descr]
)
"""A tally of one queue of socket number `socket` (index in SocketScan.sockets). `name`: index in QUEUE_NAMES."""


@dataclass(frozen=True, slots=True)
class SocketScan:
    """The result of one scan. Sockets with nothing queued, pinned or waiting are counted, not kept."""

    sockets: npt.NDArray[np.void]
    """SOCKET_DTYPE, sorted by socket address."""
    names: dict[int, tuple[bytes, bytes]]
    """Local and remote name of UNIX sockets that have one, by socket address."""
    owners: npt.NDArray[np.void]
    """OWNER_DTYPE: every fd of every process, sorted by socket address, also of sockets that are not kept."""
    holding: dict[int, tuple[int, int]]
    """For a socket that no fd holds: the socket it waits in (address), and how (walker.Found)."""
    queues: npt.NDArray[np.void]
    """QUEUE_DTYPE, sorted by socket."""
    blocks: npt.NDArray[np.void]
    """BLOCK_DTYPE: every block once for each socket, `owner` its number, sorted by it. Without user pages."""
    sockets_seen: int
    pinned_bytes: int
    """Pinned by all sockets; each block of the node counts once."""
    files: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, FOUND_DTYPE))
    """FOUND_DTYPE: every fd of every process that leads to a FileKind other than a socket, for the other holders."""
    not_seen: list[str] = field(default_factory=list)
    lists_every_fd: bool = True
    """False if time or room ran out before every fd, and every socket without one, was listed."""
    sockets_not_reached: int = 0
    """Sockets that were found but not read, because the time ran out."""
    blocks_not_kept: int = 0
    """Blocks beyond the number that the scan may keep."""
    sees_linear_heads: bool = True
    """False if linear heads that are pages of their own cannot be distinguished from slab."""
    tables_complete: bool = True
    """False if a part of the kernel's socket tables changed or was not reached."""
    read: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, "<u8"))
    """Addresses of sockets that were watched until this scan (SocketScanner.watch), and read from."""
    watched: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, READS_DTYPE))
    """The reads from each of the sockets that were watched until this scan, by address."""
    start_seconds: float = 0
    """Start time of the scan on the monotonic clock."""
    end_seconds: float = 0
    start_jiffies: int = 0
    """The kernel's clock at `start_seconds`; 0 if not known."""

    def kept_bytes(self) -> npt.NDArray[np.int64]:
        """What each socket keeps: the blocks that it pins, and linear heads of packets in slab."""
        kept = np.zeros(len(self.sockets), "<i8")
        np.add.at(kept, self.queues["socket"], self.queues["head_bytes"].astype("<i8"))
        np.add.at(kept, self.blocks["owner"], sizes_bytes(self.blocks).astype("<i8"))
        return kept

    def sum_of(self, column: str, names: tuple[int, ...] | None = None) -> npt.NDArray[np.int64]:
        """The sum of a column of QUEUE_DTYPE for each socket, over its queues with these names; None for all."""
        queues = self.queues if names is None else self.queues[np.isin(self.queues["name"], names)]
        sums = np.zeros(len(self.sockets), "<i8")
        np.add.at(sums, queues["socket"], queues[column].astype("<i8"))
        return sums

    def blocks_of(self, socket: int) -> npt.NDArray[np.void]:
        """The blocks that socket number `socket` pins, as PINNED_DTYPE."""
        start, end = np.searchsorted(self.blocks["owner"], (socket, socket + 1))
        return pinned_blocks(self.blocks[start:end])

    def queues_of(self, socket: int) -> npt.NDArray[np.void]:
        """The queues of socket number `socket`."""
        start, end = np.searchsorted(self.queues["socket"], (socket, socket + 1))
        return self.queues[start:end]

    def owners_of(self, address: int) -> list[tuple[int, int]]:
        """(pid, fd) of every holder of the socket at `address`."""
        start = np.searchsorted(self.owners["socket"], np.uint64(address), "left")
        end = np.searchsorted(self.owners["socket"], np.uint64(address), "right")
        return [(int(owner["pid"]), int(owner["fd"])) for owner in self.owners[start:end]]
