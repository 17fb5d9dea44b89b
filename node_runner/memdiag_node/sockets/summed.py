"""Sockets beyond the largest, which are listed one by one: those of one process together (pure).

A leak may be spread over ten thousand connections that each hold little.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.sockets.holders import OwnerOf, SocketHolders, SocketOwners, is_tcp, tcp_unread_bytes
from memdiag_node.sockets.scanner import READABLE, SocketScan, pinned_blocks


def summed_sockets(
    last: SocketScan, found: SocketHolders, owner_of: OwnerOf
) -> Iterator[tuple[Holder, npt.NDArray[np.void]]]:
    """A holder for each process that has sockets among `found.rest`, stuck ones apart, and its blocks."""
    if not len(found.rest):
        return
    readable = last.queues[np.isin(last.queues["name"], READABLE)]
    unread = _sum_by_socket(last, readable, "payload_bytes")
    unread = np.where(is_tcp(last.sockets), tcp_unread_bytes(last.sockets), unread)
    packets = _sum_by_socket(last, readable, "packets")
    charge = _sum_by_socket(last, last.queues, "charge_bytes")
    keys = np.stack((_first_pids(last, found.rest), found.stuck[found.rest].astype(np.int64)), axis=1)
    groups, group_of = np.unique(keys, axis=0, return_inverse=True)
    group_of_socket = np.full(len(last.sockets), -1, np.int64)
    group_of_socket[found.rest] = group_of.reshape(-1)
    members = found.rest[np.argsort(group_of.reshape(-1), kind="stable")]
    edges = np.searchsorted(group_of_socket[members], np.arange(len(groups) + 1))
    group_of_block = group_of_socket[last.blocks["owner"]]
    order = np.argsort(group_of_block, kind="stable")
    block_edges = np.searchsorted(group_of_block[order], np.arange(len(groups) + 1))
    for number, (pid, is_stuck) in enumerate(groups.tolist()):
        sockets = members[edges[number] : edges[number + 1]]
        blocks = last.blocks[order[block_edges[number] : block_edges[number + 1]]]
        _, first = np.unique(blocks["page"], return_index=True)
        blocks = pinned_blocks(blocks[first])
        owner = owner_of(pid) if pid else None
        yield (
            Holder(
                kind=HolderKind.SOCKET,
                description=f"{len(sockets)} smaller sockets, together",
                owners=[owner] if owner else [],
                owners_total=1 if pid else 0,
                unowned_reason="" if pid else "none of them is held by a process that can be named",
                summed=len(sockets),
                unread_bytes=int(unread[sockets].sum()),
                unread_packets=int(packets[sockets].sum()),
                charge_bytes=int(charge[sockets].sum()),
                pinned_bytes=int(last.sizes_bytes(blocks).sum()),
                pinned_blocks=len(blocks),
                stuck_seconds=found.stuck_seconds if is_stuck else None,
            ),
            blocks,
        )


def _sum_by_socket(scan: SocketScan, queues: npt.NDArray[np.void], column: str) -> npt.NDArray[np.int64]:
    sums = np.zeros(len(scan.sockets), np.int64)
    np.add.at(sums, queues["socket"], queues[column].astype(np.int64))
    return sums


def _first_pids(scan: SocketScan, numbers: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """The lowest pid of those who hold each socket, or the socket that it waits in; 0 for none."""
    addresses = scan.sockets["socket"][numbers]
    pids = np.zeros(len(numbers), np.int64)
    if len(scan.owners):
        place = np.minimum(np.searchsorted(scan.owners["socket"], addresses), len(scan.owners) - 1)
        pids = np.where(scan.owners["socket"][place] == addresses, scan.owners["pid"][place], 0).astype(np.int64)
    for index in np.flatnonzero(pids == 0).tolist():
        others = SocketOwners(scan, int(addresses[index])).pids
        pids[index] = others[0] if others else 0
    return pids
