"""Packets whose memory is in slab: what a socket of small datagrams keeps, compared with the node's slab."""

from pathlib import Path

from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.common import MIB, wait_for
from planted.sockets.planter import Planter
from support.sockets import fds_of, holder_of, holders_of

PACKETS = 150_000


def unreclaimable_slab_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("SUnreclaim:"))


def test_heads_are_what_the_nodes_slab_loses_when_the_owner_dies(
    btf: Btf, scanner: SocketScanner, planter: Planter
) -> None:
    truth = planter.plant("udp_small", PACKETS)
    scan = scanner.scan()
    held = holder_of(scan, planter.inode(truth["fd"]))
    assert held.unread_packets == PACKETS
    assert holders_of(scan)[0] == held  # nothing else on this machine keeps as much
    assert held.head_bytes > 50 * MIB
    assert held.pinned_bytes < MIB
    assert planter.pid in fds_of(held)
    kept_bytes = held.head_bytes + PACKETS * btf.size_bytes("sk_buff")
    before_bytes = unreclaimable_slab_bytes()
    planter.kill()  # the socket is freed after a grace period of RCU
    wait_for(lambda: before_bytes - unreclaimable_slab_bytes() > 0.85 * kept_bytes, "the end of the socket's packets")
    assert before_bytes - unreclaimable_slab_bytes() < 1.15 * kept_bytes
