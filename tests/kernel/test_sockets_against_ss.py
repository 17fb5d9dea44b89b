"""Every TCP, UDP and UNIX socket that ss shows, with the same values, on planted sockets that do not change."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.planter import Planter
from support.sockets import holders_of

_LOADS = (
    ("tcp_bulk", 300_000),
    ("tcp6_bulk", 100_000),
    ("tcp_partly_read", 90_001),
    ("tcp_write_queue", 500_000),
    ("udp_small", 100),
    ("udp6_large", 20),
    ("unix_stream", 20),
    ("unix_seqpacket", 20),
    ("unix_partly_read", 9_001),
)


@pytest.fixture(scope="module")
def planter() -> Iterator[Planter]:
    with Planter() as child:
        for load, amount in _LOADS:
            child.plant(load, amount)
        yield child


@pytest.fixture(scope="module")
def scan(planter: Planter) -> SocketScan:
    with SocketScanner(btf=Btf.load()) as scanner:
        return scanner.scan()


def ss(planter: Planter, *options: str) -> dict[int, tuple[int, int]]:
    """Inode to receive and send queue as ss shows them."""
    command = ["nsenter", f"--net=/proc/{planter.pid}/ns/net", "ss", "--no-header", "--extended", "--all", *options]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    found = {}
    for line in text.splitlines():
        fields = line.split()
        inode = re.search(r"\bino:(\d+)", line)
        if inode is not None:
            found[int(inode[1])] = int(fields[1]), int(fields[2])
        else:  # UNIX: the kind comes first, and the inode replaces the port
            found[int(fields[5])] = int(fields[2]), int(fields[3])
    return found


def ours(scan: SocketScan, family: tuple[str, ...], protocol: tuple[str, ...]) -> dict[int, tuple[int, int, int]]:
    """Inode to unread bytes, bytes to send, and charge of the receive queues."""
    found = {}
    for holder in holders_of(scan):
        described = holder.socket
        assert described is not None
        if described.family in family and described.protocol in protocol and described.state != "LISTEN":
            queues = described.queues
            sending = sum(queue.unread_bytes for queue in queues if queue.name in ("write", "retransmit"))
            charge = sum(queue.charge_bytes for queue in queues if queue.name in ("receive", "reader"))
            found[described.inode] = holder.unread_bytes, sending, charge
    return found


def test_tcp_queues_agree(planter: Planter, scan: SocketScan) -> None:
    shown = ss(planter, "--tcp", "--numeric")
    seen = ours(scan, ("IPv4", "IPv6"), ("TCP",))
    assert len(shown) >= 8
    assert sum(1 for queues in shown.values() if any(queues)) >= 5
    assert {inode: seen.get(inode, (0, 0, 0))[:2] for inode in shown} == shown


def test_udp_charges_agree(planter: Planter, scan: SocketScan) -> None:
    """ss shows what the kernel charges a UDP socket, not its unread bytes (net/ipv4/udp_diag.c)."""
    shown = ss(planter, "--udp", "--numeric")
    seen = ours(scan, ("IPv4", "IPv6"), ("UDP",))
    assert any(receive for receive, _ in shown.values())
    assert {inode: seen.get(inode, (0, 0, 0))[2] for inode in shown} == {
        inode: receive for inode, (receive, _) in shown.items()
    }


def test_unix_queues_agree(planter: Planter, scan: SocketScan) -> None:
    shown = {inode: receive for inode, (receive, _) in ss(planter, "--unix").items()}
    seen = ours(scan, ("UNIX",), ("stream", "sequential packets"))
    assert sum(1 for receive in shown.values() if receive) >= 3
    assert {inode: seen.get(inode, (0, 0, 0))[0] for inode in shown} == shown
