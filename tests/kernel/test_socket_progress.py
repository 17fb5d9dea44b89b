"""What is read from real sockets and sent through them between two scans, compared with what the processes counted."""

import time

import pytest

from memdiag_api.evidence import Holder, Pace
from memdiag_node.holding import kept_bytes
from memdiag_node.sockets.holders import socket_holdings
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.common import MIB
from planted.sockets.planter import Planter
from support.sockets import holder_of, is_kept, owner_of

WINDOW_SECONDS = 3


def two_scans(scanner: SocketScanner) -> tuple[SocketScan, SocketScan]:
    first = scanner.watch(scanner.scan())
    time.sleep(WINDOW_SECONDS)
    return first, scanner.scan()


def drain_seconds(holder: Holder) -> float:
    assert holder.socket is not None
    assert holder.socket.read_bytes_per_second
    return holder.unread_bytes / holder.socket.read_bytes_per_second


@pytest.mark.parametrize(
    ("load", "amount", "kept"), [("tcp_slow_reader", 1_000, 1_000 * 32_768), ("udp_slow_reader", 20_000, 20_000 * 512)]
)
def test_what_a_slow_reader_reads_is_counted(
    planter: Planter, scanner: SocketScanner, load: str, amount: int, kept: int
) -> None:
    truth = planter.plant(load, amount, 640)
    time.sleep(0.5)
    earlier = planter.plant("read_so_far", truth["fd"])["read_bytes"]
    first = scanner.watch(scanner.scan())
    early = planter.plant("read_so_far", truth["fd"])["read_bytes"]
    time.sleep(WINDOW_SECONDS)
    late = planter.plant("read_so_far", truth["fd"])["read_bytes"]
    last = scanner.scan()
    later = planter.plant("read_so_far", truth["fd"])["read_bytes"]

    holder = holder_of(last, planter.inode(truth["fd"]), first=first)
    assert holder.socket is not None
    assert holder.socket.read_bytes_per_second is not None
    counted = holder.socket.read_bytes_per_second * (last.start_seconds - first.end_seconds)
    assert late - early <= counted + 1 <= later - earlier + 2
    assert holder.stuck_seconds is None
    assert holder.socket.arrived_bytes_per_second == pytest.approx(0, abs=1)
    assert holder.kept_throughout_bytes is not None
    assert kept * 0.8 <= holder.kept_throughout_bytes <= kept_bytes(holder) * 1.01
    assert holder.unread_age_seconds is not None
    assert holder.unread_age_seconds >= WINDOW_SECONDS


def test_data_that_nobody_reads_is_as_old_as_the_last_that_arrived(planter: Planter, scanner: SocketScanner) -> None:
    truth = planter.plant("tcp_bulk", 100_000)
    planted = time.monotonic()
    time.sleep(2)
    first, last = two_scans(scanner)
    holder = holder_of(last, planter.inode(truth["fd"]), first=first)
    assert holder.stuck_seconds == pytest.approx(last.start_seconds - first.end_seconds)
    assert holder.unread_age_seconds is not None
    age_at_least = last.start_seconds - planted
    assert age_at_least * 0.97 <= holder.unread_age_seconds <= time.monotonic() - planted + 1


def test_a_sender_whose_peer_reads_nothing_is_stalled(planter: Planter, scanner: SocketScanner) -> None:
    truth = planter.plant("tcp_write_queue", MIB)
    first, last = two_scans(scanner)
    sender = holder_of(last, planter.inode(truth["fd"]), first=first).socket
    assert sender is not None
    assert sender.acked_bytes_per_second == 0
    assert sender.send_stalled_seconds is not None
    assert sender.send_stalled_seconds >= WINDOW_SECONDS
    assert sender.peer_window_closed
    receiver = holder_of(last, planter.inode(truth["receiver_fd"]), first=first)
    assert receiver.socket is not None
    assert receiver.stuck_seconds is not None
    assert receiver.socket.peer_window_closed is None
    assert (receiver.socket.local_address, receiver.socket.remote_address) == (
        sender.remote_address,
        sender.local_address,
    )


def test_a_sender_without_a_route_is_stalled_and_no_window_is_closed(planter: Planter, scanner: SocketScanner) -> None:
    truth = planter.plant("tcp_retransmit", 100_000)
    first, last = two_scans(scanner)
    sender = holder_of(last, planter.inode(truth["fd"]), first=first).socket
    assert sender is not None
    assert sender.send_stalled_seconds is not None
    assert sender.send_stalled_seconds >= WINDOW_SECONDS
    assert sender.peer_window_closed is False


@pytest.mark.parametrize(("load", "amount"), [("tcp_transfer", 4 * MIB), ("tcp_steady_reader", 10_000_000)])
def test_a_transfer_is_neither_slow_nor_stalled(
    planter: Planter, scanner: SocketScanner, load: str, amount: int
) -> None:
    """Both queues may be full at both scans: what moved in between tells that they are in use."""
    truth = planter.plant(load, amount)
    time.sleep(1)
    first, last = two_scans(scanner)
    moving = 0
    for one in socket_holdings(first, last, owner_of, limit=1_000_000):
        described = one.holder.socket
        if described is None or described.inode not in (planter.inode(truth["fd"]), planter.inode(truth["sender_fd"])):
            continue
        moving += 1
        assert one.holder.stuck_seconds is None
        assert described.send_stalled_seconds is None
        if described.read_bytes_per_second is not None:
            assert drain_seconds(one.holder) < 60
            assert described.arrived_bytes_per_second == pytest.approx(described.read_bytes_per_second, rel=0.5)
        if described.acked_bytes_per_second is not None:
            assert described.acked_bytes_per_second > 1_000_000
    assert moving or load == "tcp_transfer"
    for one in socket_holdings(first, last, owner_of, limit=0):
        if any(owner.pid == planter.pid for owner in one.holder.owners):
            assert one.holder.summed_sockets is not None
            assert {one.holder.summed_sockets.reading, one.holder.summed_sockets.sending} == {Pace.STEADY}


def test_idle_connections_hold_nothing(planter: Planter, scanner: SocketScanner) -> None:
    truth = planter.plant("tcp_keepalive", 20)
    _, last = two_scans(scanner)
    assert not any(is_kept(last, planter.inode(fd)) for fd in truth["fds"])


def test_small_sockets_are_summed_up_by_how_fast_they_move(planter: Planter, scanner: SocketScanner) -> None:
    stuck = planter.plant("tcp_bulk", 50_000)
    planter.plant("tcp_slow_reader", 300, 10)
    unsent = planter.plant("tcp_write_queue", MIB)
    first, last = two_scans(scanner)
    sums = [
        one.holder
        for one in socket_holdings(first, last, owner_of, limit=0)
        if any(owner.pid == planter.pid for owner in one.holder.owners)
    ]
    paces = {(one.summed_sockets.reading, one.summed_sockets.sending): one for one in sums if one.summed_sockets}
    assert set(paces) == {(Pace.STUCK, Pace.STEADY), (Pace.SLOW, Pace.STEADY), (Pace.STEADY, Pace.STUCK)}
    assert paces[Pace.STUCK, Pace.STEADY].summed == 2, "the bulk's receiver, and the one that the writer waits for"
    assert paces[Pace.STUCK, Pace.STEADY].unread_bytes >= stuck["unread_bytes"]
    slow = paces[Pace.SLOW, Pace.STEADY].summed_sockets
    assert slow is not None
    assert 0 < (slow.read_bytes_per_second or 0) < 30
    stalled = paces[Pace.STEADY, Pace.STUCK].summed_sockets
    assert stalled is not None
    assert stalled.unsent_bytes == unsent["unsent_bytes"]
    assert stalled.unsent_kept_bytes == pytest.approx(unsent["unsent_bytes"], rel=0.1)
    assert [peer.connections for peer in stalled.peers] == [1]
    assert stalled.peers[0].size_bytes == stalled.unsent_kept_bytes
