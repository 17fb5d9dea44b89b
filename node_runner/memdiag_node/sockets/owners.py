"""Which processes hold a socket (pure)."""

from socket import SOCK_SEQPACKET, SOCK_STREAM

import numpy as np
import numpy.typing as npt

from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.source import AF_INET, AF_INET6, HAS_FILE, HAS_SOCKET, IS_ORPHANED
from memdiag_node.walker.walker import Found

_INET = (AF_INET, AF_INET6)
_CONNECTED_TYPES = (SOCK_STREAM, SOCK_SEQPACKET)


class SocketOwners:
    """The holders of a socket: the processes with an fd of it, or else those with the socket that it waits in."""

    def __init__(self, scan: SocketScan, address: int) -> None:
        self.how: int | None = None
        """How it waits in another socket (walker.Found); None if a process has it, or if nobody does."""
        pairs = scan.owners_of(address)
        self.direct = bool(pairs)
        for _ in range(8):  # a socket may be in flight in a socket that is in flight itself
            if pairs or address not in scan.holding:
                break
            address, how = scan.holding[address]
            self.how = self.how or how
            pairs = scan.owners_of(address)
        self.pairs = pairs
        """(pid, fd) of each of them."""


def first_pids(scan: SocketScan, numbers: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """The lowest pid that holds each socket, or the socket that it waits in; 0 for none."""
    addresses = scan.sockets["socket"][numbers]
    pids = np.zeros(len(numbers), np.int64)
    if len(scan.owners):
        place = np.minimum(np.searchsorted(scan.owners["socket"], addresses), len(scan.owners) - 1)
        pids = np.where(scan.owners["socket"][place] == addresses, scan.owners["pid"][place], 0).astype(np.int64)
    for index in np.flatnonzero(pids == 0).tolist():
        others = SocketOwners(scan, int(addresses[index])).pairs
        pids[index] = min((pid for pid, _ in others), default=0)
    return pids


def unowned_reason(row: np.void, how: int | None) -> str:
    """The reason why no process has an fd of the socket `row`; `how` as in SocketOwners."""
    if how == Found.IN_FLIGHT:
        return "in flight: sent over a UNIX socket (SCM_RIGHTS) and not received; the owners are those of the receiver"
    if how == Found.UNACCEPTED:
        return "not accepted yet; the owners are those of the listener"
    flags = int(row["flags"])
    if flags & IS_ORPHANED or not flags & HAS_SOCKET:
        if int(row["family"]) in _INET and int(row["type"]) in _CONNECTED_TYPES:
            return "orphaned: closed by its process, kept by the kernel until the connection ends"
        return "orphaned: closed by its process, but something still refers to it: packets, or a leaked reference"
    if not flags & HAS_FILE:
        return "the kernel's own"
    return "open, but not as an fd of a visible process: registered with io_uring, in flight, or in a hidden process"
