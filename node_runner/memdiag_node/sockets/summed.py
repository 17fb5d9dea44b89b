"""Sum up by process the sockets that are not among the largest, which are listed individually (pure).

A leak may be spread over ten thousand connections that each hold little.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.holding import Holding, pinned_blocks, sizes_bytes, unique_blocks
from memdiag_node.processes import OwnerOf
from memdiag_node.sockets.owners import first_pids
from memdiag_node.sockets.scan import READABLE, SocketScan
from memdiag_node.sockets.stuck import is_tcp, tcp_unread_bytes


def summed_sockets(
    scan: SocketScan,
    rest: npt.NDArray[np.intp],
    owner_of: OwnerOf,
    *,
    stuck: npt.NDArray[np.bool_],
    stuck_seconds: float,
) -> Iterator[Holding]:
    """A holding for each process that has sockets among `rest` (their numbers); stuck ones are summed up separately.

    `stuck` has a value for every socket of the scan, by number; `stuck_seconds` is the minimum time.
    """
    if not len(rest):
        return
    readable = scan.queues[np.isin(scan.queues["name"], READABLE)]
    unread = _sum_by_socket(scan, readable, "payload_bytes")
    unread = np.where(is_tcp(scan.sockets), tcp_unread_bytes(scan.sockets), unread)
    packets = _sum_by_socket(scan, readable, "packets")
    charge = _sum_by_socket(scan, scan.queues, "charge_bytes")
    heads = _sum_by_socket(scan, scan.queues, "head_bytes")
    for (pid, is_stuck), sockets, blocks in _groups(scan, rest, stuck):
        owner = owner_of(pid) if pid else None
        holder = Holder(
            kind=HolderKind.SOCKET,
            description=f"{len(sockets)} smaller sockets, together",
            owners=[owner] if owner else [],
            owners_total=1 if pid else 0,
            unowned_reason="" if pid else "none of them is held by a process that can be named",
            summed=len(sockets),
            unread_bytes=int(unread[sockets].sum()),
            unread_packets=int(packets[sockets].sum()),
            charge_bytes=int(charge[sockets].sum()),
            pinned_bytes=int(sizes_bytes(blocks).sum()),
            pinned_blocks=len(blocks),
            head_bytes=int(heads[sockets].sum()),
            stuck_seconds=stuck_seconds if is_stuck else None,
        )
        yield Holding(holder, blocks)


def _groups(
    scan: SocketScan, rest: npt.NDArray[np.intp], stuck: npt.NDArray[np.bool_]
) -> Iterator[tuple[tuple[int, int], npt.NDArray[np.intp], npt.NDArray[np.void]]]:
    """Per process: pid and whether its sockets are stuck, the sockets, and their blocks (PINNED_DTYPE), each once."""
    keys = np.stack((first_pids(scan, rest), stuck[rest].astype(np.int64)), axis=1)
    groups, group_of = np.unique(keys, axis=0, return_inverse=True)
    group_of_socket = np.full(len(scan.sockets), -1, np.int64)
    group_of_socket[rest] = group_of.reshape(-1)
    members = rest[np.argsort(group_of.reshape(-1), kind="stable")]
    edges = np.searchsorted(group_of_socket[members], np.arange(len(groups) + 1))
    group_of_block = group_of_socket[scan.blocks["owner"]]
    order = np.argsort(group_of_block, kind="stable")
    block_edges = np.searchsorted(group_of_block[order], np.arange(len(groups) + 1))
    for number, (pid, is_stuck) in enumerate(groups.tolist()):
        blocks = scan.blocks[order[block_edges[number] : block_edges[number + 1]]]
        yield (pid, is_stuck), members[edges[number] : edges[number + 1]], pinned_blocks(unique_blocks(blocks))


def _sum_by_socket(scan: SocketScan, queues: npt.NDArray[np.void], column: str) -> npt.NDArray[np.int64]:
    sums = np.zeros(len(scan.sockets), np.int64)
    np.add.at(sums, queues["socket"], queues[column].astype(np.int64))
    return sums
