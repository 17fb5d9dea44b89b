"""Hand-made scans of sockets, and the holders that they result in."""

import socket

import numpy as np

from memdiag_api.evidence import Holder, Owner
from memdiag_node.sockets.holders import socket_holdings
from memdiag_node.sockets.scan import QUEUE_DTYPE, SOCKET_DTYPE, SocketScan
from memdiag_node.sockets.source import FOUND_DTYPE, HAS_FILE, HAS_SOCKET
from memdiag_node.walker.tally import BLOCK_DTYPE
from memdiag_node.walker.walker import Status

PAGE = 4096
TCP = {"family": socket.AF_INET, "protocol": socket.IPPROTO_TCP, "type": socket.SOCK_STREAM, "state": 1}
UDP = {"family": socket.AF_INET, "protocol": socket.IPPROTO_UDP, "type": socket.SOCK_DGRAM, "state": 7}


def scan_of(row: dict[str, int], queues: list[dict[str, object]], *, start: float = 0, pid: int = 7) -> SocketScan:
    """A scan of one socket at address 4096, with one block of order 3."""
    sockets = np.zeros(1, SOCKET_DTYPE)
    sockets["socket"], sockets["inode"], sockets["flags"] = 4096, 99, HAS_SOCKET | HAS_FILE
    for column, value in row.items():
        sockets[column] = value
    table = np.zeros(len(queues), QUEUE_DTYPE)
    table["status"] = Status.WHOLE
    for number, queue in enumerate(queues):
        for column, content in queue.items():
            table[column][number] = content
    owners = np.array([(4096, pid, 11, 0, 0)], FOUND_DTYPE) if pid else np.empty(0, FOUND_DTYPE)
    return SocketScan(
        sockets=sockets,
        names={},
        owners=owners,
        holding={},
        queues=table,
        blocks=np.array([(0, 64, 3, False, False)], BLOCK_DTYPE),
        sockets_seen=1,
        pinned_bytes=8 * PAGE,
        start_seconds=start,
        end_seconds=start + 1,
    )


def front(*packets: int) -> list[int]:
    return [*packets, *[0] * (4 - len(packets))]


def process(pid: int) -> Owner:
    return Owner(pid=pid, comm="x")


def holders_of(first: SocketScan | None, last: SocketScan) -> list[Holder]:
    return [one.holder for one in socket_holdings(first, last, process)]
