"""Packets in tun fds that nobody reads: found with their owner, their device and their pages."""

import pytest

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.common import MIB
from planted.sockets.planter import Planter
from support.sockets import fds_of, holders_of, other_holders_of

SIZE = 60_000


def tun_queues(scanner: SocketScanner, pid: int) -> list[Holder]:
    found = other_holders_of(scanner, scanner.scan())
    return [one for one in found if one.kind is HolderKind.TUN_QUEUE and pid in fds_of(one)]


def test_packets_are_named_with_process_fd_device_and_bytes(scanner: SocketScanner, planter: Planter) -> None:
    truth = planter.plant("tun_queue", 1_000, SIZE)
    (one,) = tun_queues(scanner, planter.pid)
    assert fds_of(one) == {planter.pid: [truth["fd"]]}
    assert f"tun {truth['device']}, interface " in one.description
    assert f"in network namespace {planter.network_namespace()}" in one.description
    assert (one.unread_packets, one.unread_bytes) == (truth["packets"], truth["unread_bytes"])
    assert one.pinned_bytes + one.head_bytes == pytest.approx(truth["unread_bytes"], rel=0.02)
    # The sender's socket is charged, but keeps nothing: its queue is empty.
    assert sum(holder.pinned_bytes for holder in holders_of(scanner.scan()) if planter.pid in fds_of(holder)) == 0


@pytest.mark.parametrize("read", [1, 15, 16, 40, 99])
def test_packets_that_were_read_do_not_count(scanner: SocketScanner, planter: Planter, read: int) -> None:
    """The kernel clears the slots of read packets later, several at once."""
    truth = planter.plant("tun_queue_that_was_read", 100, SIZE, read)
    (one,) = tun_queues(scanner, planter.pid)
    assert (one.unread_packets, one.unread_bytes) == (truth["packets"], truth["unread_bytes"])
    left = planter.plant("drain_tun", 0)
    assert (left["packets"], left["unread_bytes"]) == (truth["packets"], truth["unread_bytes"])
    assert tun_queues(scanner, planter.pid) == []


def test_small_packets_keep_heads_in_slab(scanner: SocketScanner, planter: Planter) -> None:
    truth = planter.plant("tun_queue", 500, 100)
    (one,) = tun_queues(scanner, planter.pid)
    assert (one.unread_packets, one.unread_bytes) == (truth["packets"], truth["unread_bytes"])
    assert one.head_bytes >= truth["unread_bytes"]
    assert one.pinned_bytes < MIB


def test_another_count_of_slots_than_of_packets_changes_nothing(scanner: SocketScanner, planter: Planter) -> None:
    """A ring that was full once and wrapped: packets are before and after the place of the next read."""
    truth = planter.plant("tun_queue_that_was_read", 64, SIZE, 32)
    more = planter.plant("send_to_tun", 20, SIZE)
    (one,) = tun_queues(scanner, planter.pid)
    assert one.unread_packets == truth["packets"] + more["packets"]
    assert one.unread_bytes == truth["unread_bytes"] + more["unread_bytes"]
