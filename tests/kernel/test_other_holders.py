"""Pipes and packet rings, planted with known content, found by the scan."""

import pytest

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.common import PAGE_BYTES
from planted.sockets.planter import Planter
from support.sockets import fds_of, holder_of, other_holders_of


def holders(scanner: SocketScanner, planter: Planter, kind: HolderKind, fd: int) -> list[Holder]:
    """The holders of a kind that the planting child has an fd of."""
    return [
        holder
        for holder in other_holders_of(scanner, scanner.scan())
        if holder.kind is kind and fd in fds_of(holder).get(planter.pid, [])
    ]


def test_a_pipe_holds_the_pages_that_were_written(scanner: SocketScanner, planter: Planter) -> None:
    truth = planter.plant("pipe", 200)
    (pipe,) = holders(scanner, planter, HolderKind.PIPE, truth["fds"][0])
    assert fds_of(pipe) == {planter.pid: truth["fds"]}
    assert (pipe.unread_bytes, pipe.pinned_bytes) == (truth["unread_bytes"], truth["pinned_bytes"])
    assert str(planter.inode(truth["fds"][0])) in pipe.description


def test_a_ring_holds_its_blocks_full_or_not(scanner: SocketScanner, planter: Planter) -> None:
    truth = planter.plant("packet_ring", 16)
    (ring,) = holders(scanner, planter, HolderKind.PACKET_RING, truth["fd"])
    assert ring.pinned_bytes == truth["pinned_bytes"]
    assert ring.pinned_blocks == 16


def test_blocks_moved_into_a_pipe_leave_the_socket(scanner: SocketScanner, planter: Planter) -> None:
    """Splice from a stuck socket into a pipe: the pipe's pinned bytes grow by as much as the socket's shrink."""
    truth = planter.plant("tcp_bulk", 4_000_000)
    before = holder_of(scanner.scan(), planter.inode(truth["fd"]))
    moved = planter.plant("pipe_from_last_socket", 1_000_000)
    after = holder_of(scanner.scan(), planter.inode(truth["fd"]))
    (pipe,) = holders(scanner, planter, HolderKind.PIPE, moved["fds"][0])
    assert pipe.unread_bytes == moved["unread_bytes"]
    assert before.unread_bytes - after.unread_bytes == moved["unread_bytes"]
    assert pipe.pinned_bytes == pytest.approx(moved["unread_bytes"], rel=0.1)
    assert before.pinned_bytes - after.pinned_bytes == pytest.approx(pipe.pinned_bytes, abs=2 * 8 * PAGE_BYTES)
