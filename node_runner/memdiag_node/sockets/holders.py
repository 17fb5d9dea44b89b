"""From two scans of the node's sockets to holders: who pins how much, and is it stuck (pure).

Who pins memory is whoever has the socket in whose queue it lies: a receive queue's owner is the receiver, also where
the kernel charges the sender (AF_UNIX); a write queue's owner is the sender.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind, Owner, Queue, ScanCoverage, Socket
from memdiag_node.sockets.names import (
    LISTEN,
    family_name,
    inet_address,
    protocol_name,
    state_name,
    unix_address,
)
from memdiag_node.sockets.scanner import (
    ACCEPT,
    OUT_OF_ORDER,
    QUEUE_NAMES,
    READABLE,
    READER,
    RECEIVE,
    RETRANSMIT,
    WRITE,
    SocketScan,
)
from memdiag_node.sockets.source import HAS_FILE, HAS_FIN, HAS_SOCKET, IS_ORPHANED
from memdiag_node.walker.walker import IDENTITIES, Found, Status

MAX_HOLDERS = 256
_MAX_OWNERS = 16
_MAX_FDS = 64
_MAX_TEXT = 256
_SEQUENCE_NUMBERS = 1 << 32
_INET = (socket.AF_INET, socket.AF_INET6)

Rows = npt.NDArray[np.void] | np.void
"""One socket's row or those of many (holders.sockets.SOCKET_DTYPE)."""

OwnerOf = Callable[[int], Owner | None]
"""What a pid is, None when it has vanished."""


@dataclass(frozen=True, slots=True)
class SocketHolders:
    """The holders, most pinned bytes first, and for each its blocks (holders.sockets.PINNED_DTYPE) for the join."""

    holders: list[Holder]
    blocks: list[npt.NDArray[np.void]]
    rest: npt.NDArray[np.intp]
    """Numbers of the sockets beyond the listed (analyze.summed_sockets)."""
    stuck: npt.NDArray[np.bool_]
    """Of every socket of the scan, by number."""
    stuck_seconds: float
    """For at least how long."""


def holders_of(
    first: SocketScan | None, last: SocketScan, owner_of: OwnerOf, *, limit: int = MAX_HOLDERS
) -> SocketHolders:
    """The sockets of `last` that hold something, by pinned bytes, then by unread bytes.

    `first` is an earlier scan of the same node; with it a socket that has not been read in between is told as stuck.
    """
    count = len(last.sockets)
    pinned, charge, unread = (np.zeros(count, "<u8") for _ in range(3))
    np.add.at(charge, last.queues["socket"], last.queues["charge_bytes"])
    readable = np.isin(last.queues["name"], READABLE)
    np.add.at(unread, last.queues["socket"][readable], last.queues["payload_bytes"][readable])
    np.add.at(pinned, last.blocks["owner"], last.sizes_bytes(last.blocks))
    holding = np.flatnonzero((pinned > 0) | (charge > 0) | (last.sockets["unaccepted"] > 0))
    order = holding[
        np.lexsort((last.sockets["inode"][holding], -unread[holding].astype("<i8"), -pinned[holding].astype("<i8")))
    ]
    stuck = np.zeros(count, bool) if first is None else _stuck_sockets(first, last)
    seconds = max(0.0, last.start_seconds - first.end_seconds) if first is not None else 0.0
    top = [int(number) for number in order[:limit]]
    return SocketHolders(
        holders=[_holder(last, number, owner_of, seconds if stuck[number] else None) for number in top],
        blocks=[last.blocks_of(number) for number in top],
        rest=order[limit:],
        stuck=stuck,
        stuck_seconds=seconds,
    )


def coverage_of(
    last: SocketScan, also_not_seen: Sequence[str] = (), *, first: SocketScan | None = None
) -> ScanCoverage:
    """What the scan saw and what it could not see. `also_not_seen`: by the other kinds of holders.

    `first`: the scan that `last` is compared with. What that one did not reach is never found stuck.
    """
    walked = last.queues[last.queues["name"] != ACCEPT]
    scans = [last, first] if first else [last]
    return ScanCoverage(
        sockets=last.sockets_seen,
        queues=len(walked),
        packets=int(walked["packets"].sum()),
        incomplete_queues=int(np.count_nonzero((walked["status"] != Status.WHOLE) | (walked["unreadable"] > 0))),
        is_compared=first is not None,
        lists_every_fd=all(scan.lists_every_fd for scan in scans),
        sockets_not_reached=max(scan.sockets_not_reached for scan in scans),
        queues_not_reached=max(_not_reached(scan) for scan in scans),
        blocks_not_kept=last.blocks_not_kept,
        sees_linear_heads=last.sees_linear_heads,
        socket_tables_complete=all(scan.tables_complete for scan in scans),
        scan_seconds=last.end_seconds - last.start_seconds,
        pinned_bytes=last.pinned_bytes,
        not_seen=[note[:_MAX_TEXT] for note in (*last.not_seen, *also_not_seen)][:16],
    )


def _not_reached(scan: SocketScan) -> int:
    return int(np.count_nonzero(scan.queues["status"] == Status.NOT_REACHED))


def tcp_unread_bytes(rows: Rows) -> npt.NDArray[np.int64]:
    """Payload that each TCP connection has received and its process has not read (net/ipv4/tcp.c, tcp_inq).

    ss counts the peer's FIN as one byte more.
    """
    waiting = (rows["received_seq"].astype(np.int64) - rows["copied_seq"].astype(np.int64)) % _SEQUENCE_NUMBERS
    unread: npt.NDArray[np.int64] = waiting - ((waiting > 0) & (rows["flags"] & HAS_FIN != 0))
    return unread


def is_tcp(rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether the counters of a TCP connection mean anything for each socket."""
    inet = (rows["family"] == socket.AF_INET) | (rows["family"] == socket.AF_INET6)
    stream = inet & (rows["type"] == socket.SOCK_STREAM)  # a raw socket may have the same protocol
    tcp: npt.NDArray[np.bool_] = stream & (rows["protocol"] == socket.IPPROTO_TCP) & (rows["state"] != LISTEN)
    return tcp


def _stuck_sockets(first: SocketScan, last: SocketScan) -> npt.NDArray[np.bool_]:
    """Which sockets of `last` have something unread of which nothing was read between the scans.

    TCP counts what it hands out. Of other sockets, the packets that waited in front must be those that wait there now.
    A packet's memory is soon used again, so one address alone would prove little; several in the same order, each with
    its length, do. A socket with a single one was watched for reads, where the kernel allows it.
    """
    if not len(first.sockets):
        return np.zeros(len(last.sockets), bool)
    place = np.minimum(np.searchsorted(first.sockets["socket"], last.sockets["socket"]), len(first.sockets) - 1)
    after = last.sockets
    same = np.ones(len(after), bool)
    for column in ("socket", "inode", "netns"):
        same &= first.sockets[column][place] == after[column]
    unread = (tcp_unread_bytes(first.sockets)[place] > 0) & (tcp_unread_bytes(after) > 0)
    unmoved = unread & (first.sockets["copied_seq"][place] == after["copied_seq"])
    waiting = _front_unmoved(first, last, place) & ~np.isin(after["socket"], last.read)
    stuck: npt.NDArray[np.bool_] = same & np.where(is_tcp(after), unmoved, waiting)
    return stuck


def _front_unmoved(first: SocketScan, last: SocketScan, place: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Whether the first packets that waited are those that wait now. `place`: of each socket of `last` in `first`."""
    earlier, later = _front(first)[place], _front(last)
    kept: npt.NDArray[np.bool_] = ((earlier == later) | (earlier == 0)).all(axis=1) & (earlier[:, 0] != 0)
    return kept


def _front(scan: SocketScan) -> npt.NDArray[np.uint64]:
    """What tells each socket's first IDENTITIES unread packets from others, a row for each socket; 0 for none.

    What UDP's reader has in its own queue comes first: it takes packets there whenever it looks, without reading them.
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


def _readable_sum(queues: npt.NDArray[np.void], column: str) -> int:
    return int(queues[column][np.isin(queues["name"], READABLE)].sum())


def _holder(scan: SocketScan, number: int, owner_of: OwnerOf, stuck_seconds: float | None) -> Holder:
    row = scan.sockets[number]
    address = int(row["socket"])
    queues = scan.queues_of(number)
    blocks = scan.blocks_of(number)
    found = SocketOwners(scan, address)
    owners = [owner for pid in found.pids[:_MAX_OWNERS] if (owner := _owner(pid, found, owner_of)) is not None]
    described = _socket(scan, number, queues)
    unread = int(tcp_unread_bytes(row)) if is_tcp(row) else _readable_sum(queues, "payload_bytes")
    readable = queues[np.isin(queues["name"], READABLE)]
    return Holder(
        kind=HolderKind.SOCKET,
        description=_describe(described)[:1024],
        owners=owners,
        owners_total=len(found.pids),
        unowned_reason="" if found.direct else _unowned_reason(row, found.how),
        unread_bytes=unread,
        unread_packets=int(readable["packets"].sum()),
        charge_bytes=int(queues["charge_bytes"].sum()),
        pinned_bytes=int(scan.sizes_bytes(blocks).sum()),
        pinned_blocks=len(blocks),
        stuck_seconds=stuck_seconds,
        socket=described,
    )


class SocketOwners:
    """Who holds a socket: the processes with an fd of it, or else those with the socket that it waits in."""

    def __init__(self, scan: SocketScan, address: int) -> None:
        self.how: int | None = None
        pairs = scan.owners_of(address)
        self.direct = bool(pairs)
        for _ in range(8):  # a socket may travel in a socket that travels itself
            if pairs or address not in scan.holding:
                break
            address, how = scan.holding[address]
            self.how = self.how or how
            pairs = scan.owners_of(address)
        self.fds: dict[int, list[int]] = {}
        for pid, fd in pairs:
            self.fds.setdefault(pid, []).append(fd)
        self.pids = sorted(self.fds)


def _owner(pid: int, found: SocketOwners, owner_of: OwnerOf) -> Owner | None:
    owner = owner_of(pid)
    return None if owner is None else owner.model_copy(update={"fds": found.fds[pid][:_MAX_FDS]})


def _unowned_reason(row: np.void, how: int | None) -> str:
    if how == Found.IN_FLIGHT:
        return "in flight: sent over a UNIX socket (SCM_RIGHTS) and not received; the owners are the receiver's"
    if how == Found.UNACCEPTED:
        return "not accepted yet; the owners are the listener's"
    flags = int(row["flags"])
    if flags & IS_ORPHANED or not flags & HAS_SOCKET:
        return "orphaned: closed by its process, kept by the kernel until the connection ends"
    if not flags & HAS_FILE:
        return "the kernel's own"
    return "open, but as no fd of a visible process: registered with io_uring, in flight, or in a hidden process"


def _socket(scan: SocketScan, number: int, queues: npt.NDArray[np.void]) -> Socket:
    row = scan.sockets[number]
    family, kind = int(row["family"]), int(row["type"])
    local, remote = addresses(row, scan.names.get(int(row["socket"]), (b"", b"")))
    return Socket(
        family=family_name(family),
        protocol=protocol_name(family, int(row["protocol"]), kind),
        state=state_name(family, kind, int(row["state"])),
        inode=int(row["inode"]),
        network_namespace=int(row["netns"]),
        local_address=local[:_MAX_TEXT],
        remote_address=remote[:_MAX_TEXT],
        backlog=int(row["unaccepted"]) if int(row["state"]) == LISTEN else None,
        queues=[_queue(row, queue) for queue in queues if queue["name"] != ACCEPT][:8],
    )


def addresses(row: np.void, names: tuple[bytes, bytes]) -> tuple[str, str]:
    """Local and remote address as people write them; empty where a socket has none."""
    family = int(row["family"])
    local, remote = int(row["local_number"]), int(row["remote_number"])
    if family in _INET:
        remote_address = row["remote_address"].tobytes()
        connected = any(remote_address) or remote
        if int(row["type"]) == socket.SOCK_RAW:  # its number is a protocol, no port
            local = remote = 0
        return (
            inet_address(family, row["local_address"].tobytes(), local),
            inet_address(family, remote_address, remote) if connected else "",
        )
    if family == socket.AF_UNIX:
        return unix_address(names[0], int(row["inode"])), unix_address(names[1], int(row["peer_inode"]))
    if family == socket.AF_NETLINK:
        return f"port {local}", ""
    if family == socket.AF_PACKET:
        return f"interface {local}" if local else "every interface", ""
    if family == socket.AF_VSOCK:
        return f"cid {int(row['local_cid'])}:{local}", f"cid {int(row['remote_cid'])}:{remote}"
    return "", ""


def _queue(row: np.void, queue: np.void) -> Queue:
    name = int(queue["name"])
    payload = int(queue["payload_bytes"])
    if name == RECEIVE and is_tcp(row):
        payload = min(payload, int(tcp_unread_bytes(row)))  # a part of the first packet may have been read
    missing = _missing(queue)
    return Queue(
        name=QUEUE_NAMES[name],
        packets=int(queue["packets"]),
        unread_bytes=payload,
        charge_bytes=int(queue["charge_bytes"]),
        pinned_bytes=int(queue["pinned_bytes"]),
        head_bytes=int(queue["head_bytes"]),
        user_bytes=int(queue["user_bytes"]),
        complete=not missing,
        missing=missing,
    )


_MISSING = {
    Status.NOT_REACHED: "the scan's time ran out before its end",
    Status.RACE: "it changed under every walk",
    Status.FAULT: "memory of it could not be read",
    Status.TOO_LONG: "it did not end",
    Status.TOO_DEEP: "packets nested deeper than the walk goes",
}


def _missing(queue: np.void) -> str:
    """What an incomplete walk lacks; empty when it is complete."""
    parts = []
    status = Status(int(queue["status"]))
    if status is not Status.WHOLE:
        parts.append(f"{_MISSING[status]}: {int(queue['packets'])} packets seen, {int(queue['expected'])} at its end")
    if queue["unreadable"]:
        parts.append(f"{int(queue['unreadable'])} blocks or packets could not be read or kept")
    return "; ".join(parts)


def _describe(described: Socket) -> str:
    """One line for people."""
    words = [described.family, described.protocol, described.local_address or "unbound"]
    if described.remote_address:
        words += ["from", described.remote_address]
    line = " ".join(words)
    if described.state:
        line += f", {described.state}"
    if described.backlog is not None:
        line += f", {described.backlog} not accepted"
    names = {QUEUE_NAMES[WRITE], QUEUE_NAMES[RETRANSMIT], QUEUE_NAMES[OUT_OF_ORDER]}
    sending = sum(queue.packets for queue in described.queues if queue.name in names)
    return f"{line}, {sending} packets to send or out of order" if sending else line
