"""Sum up by process the sockets that are not among the largest, which are listed individually (pure).

A leak may be spread over ten thousand connections that each hold little.
"""

import socket
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind, Pace, Peer, SummedSockets
from memdiag_node.holding import Holding, pinned_blocks, sizes_bytes, unique_blocks
from memdiag_node.processes import OwnerOf
from memdiag_node.sockets.names import inet_address
from memdiag_node.sockets.owners import first_pids
from memdiag_node.sockets.peers import largest_peers
from memdiag_node.sockets.progress import NOT_KNOWN, Progress
from memdiag_node.sockets.scan import READABLE, UNSENT, SocketScan

_PACES = (Pace.STEADY, Pace.SLOW, Pace.STUCK)
_INET = (socket.AF_INET, socket.AF_INET6)
_Group = tuple[int, int, int]
"""A pid, and how fast its sockets are read and sent: indexes in _PACES."""


def summed_sockets(
    scan: SocketScan,
    rest: npt.NDArray[np.intp],
    owner_of: OwnerOf,
    *,
    progress: Progress,
    slow_drain_seconds: float,
) -> Iterator[Holding]:
    """A holding for each process that has sockets among `rest` (their numbers).

    The sockets of a process that are stuck, or whose backlog would take `slow_drain_seconds` to be read or sent, are
    summed up separately.
    """
    if not len(rest):
        return
    reading = np.where(progress.stuck, 2, np.where(progress.slow_reads(slow_drain_seconds), 1, 0))
    sending = np.where(progress.acked_bytes == 0, 2, np.where(progress.slow_sends(slow_drain_seconds), 1, 0))
    packets, charge, heads = scan.sum_of("packets", READABLE), scan.sum_of("charge_bytes"), scan.sum_of("head_bytes")
    unsent_kept = scan.sum_of("pinned_bytes", UNSENT) + scan.sum_of("head_bytes", UNSENT)
    for group, sockets, blocks in _groups(scan, rest, reading, sending):
        pid = group[0]
        owner = owner_of(pid) if pid else None
        is_stuck = _PACES[group[1]] is Pace.STUCK
        holder = Holder(
            kind=HolderKind.SOCKET,
            description=f"{len(sockets)} smaller sockets, together",
            owners=[owner] if owner else [],
            owners_total=1 if pid else 0,
            unowned_reason="" if pid else "none of them is held by a process that can be named",
            summed=len(sockets),
            unread_bytes=int(progress.unread_bytes[sockets].sum()),
            unread_packets=int(packets[sockets].sum()),
            charge_bytes=int(charge[sockets].sum()),
            pinned_bytes=int(sizes_bytes(blocks).sum()),
            pinned_blocks=len(blocks),
            head_bytes=int(heads[sockets].sum()),
            stuck_seconds=progress.seconds if is_stuck else None,
            unread_age_seconds=_youngest(progress.unread_age_seconds[sockets]),
            kept_throughout_bytes=_kept_throughout(progress, sockets, _kept(blocks, heads[sockets])),
            summed_sockets=_sums(scan, progress, group, sockets, unsent_kept),
        )
        yield Holding(holder, blocks)


def _sums(
    scan: SocketScan,
    progress: Progress,
    group: _Group,
    sockets: npt.NDArray[np.intp],
    unsent_kept_bytes: npt.NDArray[np.int64],
) -> SummedSockets:
    _, reading, sending = group
    stalled = progress.send_stalled_seconds[sockets]
    return SummedSockets(
        reading=_PACES[reading],
        sending=_PACES[sending],
        read_bytes_per_second=_rate(progress, progress.read_bytes[sockets]),
        arrived_bytes_per_second=_rate(progress, progress.arrived_bytes[sockets]),
        acked_bytes_per_second=_rate(progress, progress.acked_bytes[sockets]),
        send_stalled_seconds=float(stalled.min()) if _PACES[sending] is Pace.STUCK else None,
        unsent_bytes=int(progress.unsent_bytes[sockets].sum()),
        unsent_kept_bytes=int(unsent_kept_bytes[sockets].sum()),
        peers=_peers(scan, sockets, unsent_kept_bytes) if _PACES[sending] is not Pace.STEADY else [],
    )


def _rate(progress: Progress, moved_bytes: npt.NDArray[np.int64]) -> float | None:
    known = moved_bytes[moved_bytes != NOT_KNOWN]
    return progress.per_second(int(known.sum())) if len(known) else None


def _youngest(ages_seconds: npt.NDArray[np.float64]) -> float | None:
    """The age that the oldest unread data of every one of them has at least; None if that of one is not known."""
    least = ages_seconds.min()
    return None if np.isnan(least) else float(least)


def _kept(blocks: npt.NDArray[np.void], heads_bytes: npt.NDArray[np.int64]) -> int:
    return int(sizes_bytes(blocks).sum()) + int(heads_bytes.sum())


def _kept_throughout(progress: Progress, sockets: npt.NDArray[np.intp], kept_bytes: int) -> int | None:
    """The sum for all of them, at most what they keep now: blocks that they share count for each in the sum."""
    if not progress.is_compared:
        return None
    return min(int(progress.kept_throughout_bytes[sockets].sum()), kept_bytes)


def _peers(scan: SocketScan, sockets: npt.NDArray[np.intp], size_bytes: npt.NDArray[np.int64]) -> list[Peer]:
    rows = scan.sockets[sockets]
    is_inet = np.isin(rows["family"], _INET)
    rows, sizes = rows[is_inet], size_bytes[sockets[is_inet]].tolist()
    places = zip(rows["family"].tolist(), rows["remote_address"], rows["remote_number"].tolist(), strict=True)
    return largest_peers(
        Peer(address=inet_address(family, address.tobytes(), port), connections=1, size_bytes=size)
        for (family, address, port), size in zip(places, sizes, strict=True)
    )


def _groups(
    scan: SocketScan, rest: npt.NDArray[np.intp], reading: npt.NDArray[np.int64], sending: npt.NDArray[np.int64]
) -> Iterator[tuple[_Group, npt.NDArray[np.intp], npt.NDArray[np.void]]]:
    """Each group, its sockets, and their blocks (PINNED_DTYPE), each once."""
    keys = np.stack((first_pids(scan, rest), reading[rest], sending[rest]), axis=1)
    groups, group_of = np.unique(keys, axis=0, return_inverse=True)
    group_of_socket = np.full(len(scan.sockets), -1, np.int64)
    group_of_socket[rest] = group_of.reshape(-1)
    members = rest[np.argsort(group_of.reshape(-1), kind="stable")]
    edges = np.searchsorted(group_of_socket[members], np.arange(len(groups) + 1))
    group_of_block = group_of_socket[scan.blocks["owner"]]
    order = np.argsort(group_of_block, kind="stable")
    block_edges = np.searchsorted(group_of_block[order], np.arange(len(groups) + 1))
    for number, (pid, read, sent) in enumerate(groups.tolist()):
        blocks = scan.blocks[order[block_edges[number] : block_edges[number + 1]]]
        yield (pid, read, sent), members[edges[number] : edges[number + 1]], pinned_blocks(unique_blocks(blocks))
