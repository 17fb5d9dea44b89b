"""Convert two scans of the node's sockets to holders: who pins how much, and whether it is stuck (pure).

Memory is pinned by the owner of the socket whose queue it is in: for a receive queue that is the receiver, even if the
kernel charges the sender (AF_UNIX); for a write queue it is the sender.
"""

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.evidence import Holder, HolderKind, Queue, Socket
from memdiag_node.holding import Holding, by_size, sizes_bytes
from memdiag_node.processes import OwnerOf, owners_of
from memdiag_node.sockets.names import LISTEN, addresses, family_name, protocol_name, state_name
from memdiag_node.sockets.owners import SocketOwners, unowned_reason
from memdiag_node.sockets.progress import Progress, progress_of
from memdiag_node.sockets.scan import (
    ACCEPT,
    OUT_OF_ORDER,
    QUEUE_NAMES,
    READABLE,
    RECEIVE,
    RETRANSMIT,
    WRITE,
    SocketScan,
)
from memdiag_node.sockets.source import COUNTS_SENDS, IS_WINDOW_CLOSED
from memdiag_node.sockets.stuck import is_tcp, tcp_unread_bytes
from memdiag_node.sockets.summed import summed_sockets
from memdiag_node.walker.walker import Status

SLOW_DRAIN_SECONDS = 600.0
"""Default of the threshold `slow_drain_seconds`."""


def socket_holdings(
    first: SocketScan | None,
    last: SocketScan,
    owner_of: OwnerOf,
    *,
    limit: int = limits.MAX_HOLDERS,
    slow_drain_seconds: float = SLOW_DRAIN_SECONDS,
) -> list[Holding]:
    """The sockets of `last` that hold memory, largest first; beyond `limit` summed up by process.

    `first` is an earlier scan of the same node: with it, a socket that was not read in between is reported as stuck,
    and others with what was read and sent. Sums of sockets whose backlog would take `slow_drain_seconds` are separate.
    """
    order = _largest_first(last)
    progress = progress_of(first, last)
    listed = [_holding(last, number, owner_of, progress) for number in order[:limit].tolist()]
    summed = summed_sockets(last, order[limit:], owner_of, progress=progress, slow_drain_seconds=slow_drain_seconds)
    return by_size([*listed, *summed])


def _largest_first(scan: SocketScan) -> npt.NDArray[np.intp]:
    """Numbers of the sockets that hold memory, by pinned bytes and heads in slab, then by unread bytes."""
    kept, charge, unread = scan.kept_bytes(), scan.sum_of("charge_bytes"), scan.sum_of("payload_bytes", READABLE)
    holding = np.flatnonzero((kept > 0) | (charge > 0) | (scan.sockets["unaccepted"] > 0))
    order: npt.NDArray[np.intp] = holding[
        np.lexsort((scan.sockets["inode"][holding], -unread[holding], -kept[holding]))
    ]
    return order


def _holding(scan: SocketScan, number: int, owner_of: OwnerOf, progress: Progress) -> Holding:
    row = scan.sockets[number]
    queues = scan.queues_of(number)
    blocks = scan.blocks_of(number)
    found = SocketOwners(scan, int(row["socket"]))
    owners, owners_total = owners_of(found.pairs, owner_of)
    described = _socket(scan, number, queues, progress)
    readable = queues[np.isin(queues["name"], READABLE)]
    holder = Holder(
        kind=HolderKind.SOCKET,
        description=_describe(described)[: limits.MAX_SENTENCE],
        owners=owners,
        owners_total=owners_total,
        unowned_reason="" if found.direct else unowned_reason(row, found.how),
        unread_bytes=int(tcp_unread_bytes(row)) if is_tcp(row) else int(readable["payload_bytes"].sum()),
        unread_packets=int(readable["packets"].sum()),
        charge_bytes=int(queues["charge_bytes"].sum()),
        pinned_bytes=int(sizes_bytes(blocks).sum()),
        pinned_blocks=len(blocks),
        head_bytes=int(queues["head_bytes"].sum()),
        stuck_seconds=progress.seconds if progress.stuck[number] else None,
        unread_age_seconds=_or_none(progress.unread_age_seconds[number]),
        kept_throughout_bytes=int(progress.kept_throughout_bytes[number]) if progress.is_compared else None,
        socket=described,
    )
    return Holding(holder, blocks)


def _or_none(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def _socket(scan: SocketScan, number: int, queues: npt.NDArray[np.void], progress: Progress) -> Socket:
    row = scan.sockets[number]
    family, kind = int(row["family"]), int(row["type"])
    local, remote = addresses(row, scan.names.get(int(row["socket"]), (b"", b"")))
    return Socket(
        family=family_name(family),
        protocol=protocol_name(family, int(row["protocol"]), kind),
        state=state_name(family, kind, int(row["state"])),
        inode=int(row["inode"]),
        network_namespace=int(row["netns"]),
        local_address=local[: limits.MAX_SHORT_TEXT],
        remote_address=remote[: limits.MAX_SHORT_TEXT],
        backlog=int(row["unaccepted"]) if int(row["state"]) == LISTEN else None,
        queues=[_queue(row, queue) for queue in queues if queue["name"] != ACCEPT][: limits.MAX_QUEUES],
        read_bytes_per_second=progress.per_second(int(progress.read_bytes[number])),
        arrived_bytes_per_second=progress.per_second(int(progress.arrived_bytes[number])),
        acked_bytes_per_second=progress.per_second(int(progress.acked_bytes[number])),
        send_stalled_seconds=_or_none(progress.send_stalled_seconds[number]),
        peer_window_closed=bool(row["flags"] & IS_WINDOW_CLOSED) if row["flags"] & COUNTS_SENDS else None,
    )


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
    Status.RACE: "it changed during every walk",
    Status.FAULT: "memory of it could not be read",
    Status.TOO_LONG: "it did not end",
    Status.TOO_DEEP: "packets were nested deeper than the walk supports",
}


def _missing(queue: np.void) -> str:
    """What an incomplete walk lacks; empty if the walk is complete."""
    parts = []
    status = Status(int(queue["status"]))
    if status is not Status.WHOLE:
        parts.append(f"{_MISSING[status]}: {int(queue['packets'])} packets seen, {int(queue['expected'])} at its end")
    if queue["unreadable"]:
        parts.append(f"{int(queue['unreadable'])} blocks or packets could not be read or kept")
    return "; ".join(parts)


def _describe(described: Socket) -> str:
    """A one-line description in readable form."""
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
