"""Find sockets with unread data that nobody reads (pure)."""

import socket

import numpy as np
import numpy.typing as npt

from memdiag_node.sockets.names import LISTEN
from memdiag_node.sockets.scan import READABLE, READER, RECEIVE, SocketScan
from memdiag_node.sockets.source import HAS_FIN
from memdiag_node.walker.walker import IDENTITIES

LARGE_BACKLOG_BYTES = 1 << 18
"""A socket that keeps so much is watched for how much is read from it."""
_SEQUENCE_NUMBERS = 1 << 32
Rows = npt.NDArray[np.void] | np.void
"""One socket's row or those of many (sockets.scan.SOCKET_DTYPE)."""


def tcp_unread_bytes(rows: Rows) -> npt.NDArray[np.int64]:
    """The payload that each TCP connection has received and its process has not read (net/ipv4/tcp.c, tcp_inq).

    ss counts the peer's FIN as one byte more.
    """
    waiting = (rows["received_seq"].astype(np.int64) - rows["copied_seq"].astype(np.int64)) % _SEQUENCE_NUMBERS
    unread: npt.NDArray[np.int64] = waiting - ((waiting > 0) & (rows["flags"] & HAS_FIN != 0))
    return unread


def is_tcp(rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether the counters of a TCP connection are meaningful for each socket."""
    inet = (rows["family"] == socket.AF_INET) | (rows["family"] == socket.AF_INET6)
    stream = inet & (rows["type"] == socket.SOCK_STREAM)  # a raw socket may have the same protocol
    tcp: npt.NDArray[np.bool_] = stream & (rows["protocol"] == socket.IPPROTO_TCP) & (rows["state"] != LISTEN)
    return tcp


def stuck_sockets(first: SocketScan, last: SocketScan) -> npt.NDArray[np.bool_]:
    """Which sockets of `last` have unread data, none of which was read between the scans.

    TCP counts the bytes copied to the process. For other sockets, the first packets in the queue must be the same now.
    A packet's memory is soon reused, so a single address would prove little; several in the same order, each with the
    same length, do. A socket with a single packet was watched for reads, if the kernel allows it.
    """
    if not len(first.sockets):
        return np.zeros(len(last.sockets), bool)
    place, same = matched(first, last)
    after = last.sockets
    unread = (tcp_unread_bytes(first.sockets)[place] > 0) & (tcp_unread_bytes(after) > 0)
    unmoved = unread & (first.sockets["copied_seq"][place] == after["copied_seq"])
    waiting = _front_unmoved(first, last, place) & ~np.isin(after["socket"], last.read)
    stuck: npt.NDArray[np.bool_] = same & np.where(is_tcp(after), unmoved, waiting)
    return stuck


def matched(first: SocketScan, last: SocketScan) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """For each socket of `last` its number in `first`, which has sockets, and whether it is the same socket."""
    place = np.minimum(np.searchsorted(first.sockets["socket"], last.sockets["socket"]), len(first.sockets) - 1)
    same = np.ones(len(last.sockets), bool)
    for column in ("socket", "inode", "netns"):
        same &= first.sockets[column][place] == last.sockets[column]
    return place, same


def _front_unmoved(first: SocketScan, last: SocketScan, place: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Whether the first packets are the same as before. `place`: the index of each socket of `last` in `first`."""
    earlier, later = _front(first)[place], _front(last)
    kept: npt.NDArray[np.bool_] = ((earlier == later) | (earlier == 0)).all(axis=1) & (earlier[:, 0] != 0)
    return kept


def _front(scan: SocketScan) -> npt.NDArray[np.uint64]:
    """The identities of each socket's first IDENTITIES unread packets, a row for each socket; 0 for none.

    Packets in the own queue of UDP's reader come first: it moves packets there on every check, without reading them.
    """
    reader, received = _identities(scan, READER), _identities(scan, RECEIVE)
    taken = np.count_nonzero(reader, axis=1)[:, np.newaxis]
    number = np.arange(IDENTITIES)
    front: npt.NDArray[np.uint64] = np.where(
        number < taken, reader, np.take_along_axis(received, np.maximum(number - taken, 0), axis=1)
    )
    return front


def _identities(scan: SocketScan, name: int) -> npt.NDArray[np.uint64]:
    chosen = scan.queues[scan.queues["name"] == name]
    identities = np.zeros((len(scan.sockets), IDENTITIES), "<u8")
    identities[chosen["socket"]] = chosen["identity"]
    return identities


def large_backlogs(scan: SocketScan) -> npt.NDArray[np.intp]:
    """The sockets with much unread, largest first, of protocols that do not count what is read."""
    kept = scan.kept_bytes()
    chosen = (kept >= LARGE_BACKLOG_BYTES) & (scan.sum_of("packets", READABLE) > 1) & ~is_tcp(scan.sockets)
    numbers = np.flatnonzero(chosen & (scan.sockets["family"] != socket.AF_VSOCK))
    largest: npt.NDArray[np.intp] = numbers[np.argsort(-kept[numbers], kind="stable")]
    return largest


def lone_packets(scan: SocketScan) -> npt.NDArray[np.intp]:
    """The queues with the only unread packet of a socket, largest first; not of TCP, which counts copied bytes."""
    readable = np.flatnonzero(np.isin(scan.queues["name"], READABLE) & (scan.queues["packets"] > 0))
    packets = np.bincount(
        scan.queues["socket"][readable], weights=scan.queues["packets"][readable], minlength=len(scan.sockets)
    )
    row = scan.sockets[scan.queues["socket"][readable]]
    counted = (row["protocol"] == socket.IPPROTO_TCP) & (row["type"] == socket.SOCK_STREAM)
    lone = readable[(packets[scan.queues["socket"][readable]] == 1) & ~counted & (row["family"] != socket.AF_VSOCK)]
    largest: npt.NDArray[np.intp] = lone[np.argsort(-scan.queues["charge_bytes"][lone].astype(np.int64), kind="stable")]
    return largest
