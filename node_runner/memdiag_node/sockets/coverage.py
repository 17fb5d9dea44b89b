"""The coverage of the socket scan: what it saw and what it could not see (pure)."""

from collections.abc import Sequence

import numpy as np

from memdiag_api import limits
from memdiag_api.evidence import ScanCoverage
from memdiag_node.sockets.scan import ACCEPT, SocketScan
from memdiag_node.walker.walker import Status


def coverage_of(
    last: SocketScan, also_not_seen: Sequence[str] = (), *, first: SocketScan | None = None
) -> ScanCoverage:
    """The coverage of the scan `last`. `also_not_seen`: notes of the other kinds of holders.

    `first`: the scan that `last` is compared with. Sockets that it did not reach are never found stuck.
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
        not_seen=[note[: limits.MAX_SHORT_TEXT] for note in (*last.not_seen, *also_not_seen)][: limits.MAX_NOT_SEEN],
    )


def _not_reached(scan: SocketScan) -> int:
    return int(np.count_nonzero(scan.queues["status"] == Status.NOT_REACHED))
