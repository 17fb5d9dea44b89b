"""Look up planted sockets in a scan by inode, a value from outside of the scan."""

from functools import cache
from pathlib import Path

import numpy as np

from memdiag_api.evidence import Holder, Owner, Queue
from memdiag_node.holders.registry import holder_fields, other_holders
from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.holders import socket_holdings
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner


@cache
def holder_layout() -> dict[str, int]:
    """The kernel offsets that the kinds of holders need."""
    return holder_fields(Btf.load())


def owner_of(pid: int) -> Owner | None:
    """A process with only its pid."""
    return Owner(pid=pid, comm="") if Path(f"/proc/{pid}").exists() else None


def holders_of(scan: SocketScan, *, first: SocketScan | None = None) -> list[Holder]:
    """Every socket that holds memory, listed individually."""
    return [one.holder for one in socket_holdings(first, scan, owner_of, limit=1_000_000)]


def other_holders_of(scanner: SocketScanner, scan: SocketScan) -> list[Holder]:
    """Every other holder."""
    return [one.holder for one in other_holders(scanner, scan, owner_of, holder_layout())[0]]


def holder_of(scan: SocketScan, inode: int, *, first: SocketScan | None = None) -> Holder:
    """The one holder whose socket has this inode."""
    found = [
        holder for holder in holders_of(scan, first=first) if holder.socket is not None and holder.socket.inode == inode
    ]
    assert len(found) == 1, f"{len(found)} holders have the inode {inode}"
    return found[0]


def holder_at(scan: SocketScan, local_port: int, remote_port: int = 0) -> Holder:
    """The one holder whose socket has these ports, for sockets without an inode."""
    found = [
        holder
        for holder in holders_of(scan)
        if holder.socket is not None
        and holder.socket.local_address.endswith(f":{local_port}")
        and (not remote_port or holder.socket.remote_address.endswith(f":{remote_port}"))
        and holder.socket.state != "LISTEN"
    ]
    assert len(found) == 1, f"{len(found)} holders have the local port {local_port}"
    return found[0]


def queue_of(holder: Holder, name: str) -> Queue:
    """The one queue of that name."""
    assert holder.socket is not None
    found = [queue for queue in holder.socket.queues if queue.name == name]
    assert len(found) == 1, f"{len(found)} queues {name} in {holder.socket}"
    return found[0]


def fds_of(holder: Holder) -> dict[int, list[int]]:
    """Pid to fds of a holder's owners."""
    return {owner.pid: owner.fds for owner in holder.owners}


def is_kept(scan: SocketScan, inode: int) -> bool:
    """Whether the scan found anything in the socket with this inode."""
    return bool(np.isin(inode, scan.sockets["inode"]))
