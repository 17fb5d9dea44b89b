"""Convert hand-made scans to holders."""

import socket
from dataclasses import replace

import numpy as np
import pytest

from memdiag_node.sockets.coverage import coverage_of
from memdiag_node.sockets.holders import socket_holdings
from memdiag_node.sockets.scan import QUEUE_DTYPE, RECEIVE
from memdiag_node.sockets.source import FOUND_DTYPE, HAS_FILE, HAS_FIN, HAS_SOCKET, IS_ORPHANED
from memdiag_node.walker.tally import BLOCK_DTYPE
from memdiag_node.walker.walker import Status
from support.socket_scans import TCP, UDP, holders_of, process, scan_of

PAGE = 4096


def test_a_raw_socket_of_tcps_packets_is_not_a_connection() -> None:
    row = TCP | {"type": socket.SOCK_RAW}
    (holder,) = holders_of(None, scan_of(row, [{"name": RECEIVE, "packets": 1, "payload_bytes": 80}]))
    assert holder.unread_bytes == 80


def test_neither_a_fin_nor_a_part_that_was_read_is_an_unread_byte() -> None:
    row = TCP | {"copied_seq": 100, "received_seq": 151, "flags": HAS_FIN | HAS_SOCKET | HAS_FILE}
    last = scan_of(row, [{"name": RECEIVE, "packets": 1, "payload_bytes": 80}])
    (holder,) = holders_of(None, last)
    assert holder.unread_bytes == 50
    assert holder.socket is not None
    assert holder.socket.queues[0].unread_bytes == 50
    assert (holder.owners[0].pid, holder.owners[0].fds) == (7, [11])
    assert (holder.pinned_bytes, holder.pinned_blocks) == (8 * PAGE, 1)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (IS_ORPHANED, "orphaned"),
        (HAS_SOCKET, "the kernel's own"),
        (HAS_SOCKET | HAS_FILE, "open, but not as an fd"),
    ],
)
def test_why_no_process_holds_it(flags: int, reason: str) -> None:
    last = scan_of(UDP | {"flags": flags}, [{"name": RECEIVE, "packets": 1}], pid=0)
    (holder,) = holders_of(None, last)
    assert holder.owners == []
    assert holder.unowned_reason.startswith(reason)


def test_a_process_that_vanished_is_counted_and_not_named() -> None:
    (one,) = socket_holdings(None, scan_of(UDP, [{"name": RECEIVE, "packets": 1}]), lambda _: None)
    holder = one.holder
    assert (holder.owners, holder.owners_total) == ([], 1)


def test_an_incomplete_queue_says_what_is_missing() -> None:
    last = scan_of(UDP, [{"name": RECEIVE, "packets": 5, "expected": 9, "status": Status.RACE}])
    (holder,) = holders_of(None, last)
    assert holder.socket is not None
    (queue,) = holder.socket.queues
    assert not queue.complete
    assert "5 packets seen, 9 at its end" in queue.missing
    assert coverage_of(last).incomplete_queues == 1


def test_the_largest_come_first_and_the_rest_is_counted() -> None:
    one = scan_of(UDP, [{"name": RECEIVE, "packets": 1}])
    sockets = np.repeat(one.sockets, 3)
    sockets["socket"], sockets["inode"] = (4096, 8192, 12288), (1, 2, 3)
    blocks = np.array([(0, 64, 0, False, False), (1, 128, 3, False, False), (2, 192, 1, False, False)], BLOCK_DTYPE)
    last = replace(one, sockets=sockets, blocks=blocks)
    found = socket_holdings(None, last, process, limit=2)
    assert [one.holder.socket.inode for one in found if one.holder.socket] == [2, 3]
    assert [one.blocks["page"].tolist() for one in found] == [[128], [192], [64]]
    assert [one.holder.summed for one in found] == [1, 1, 1]


def test_heads_in_slab_count_for_the_order() -> None:
    one = scan_of(UDP, [])
    sockets = np.repeat(one.sockets, 3)
    sockets["socket"], sockets["inode"] = (4096, 8192, 12288), (1, 2, 3)
    queues = np.zeros(2, QUEUE_DTYPE)
    queues["socket"], queues["name"], queues["packets"], queues["head_bytes"] = (0, 2), RECEIVE, 1, (PAGE, 9 * PAGE)
    blocks = np.array([(0, 64, 0, False, False), (1, 128, 2, False, False)], BLOCK_DTYPE)
    found = socket_holdings(None, replace(one, sockets=sockets, queues=queues, blocks=blocks), process)
    assert [one.holder.socket.inode for one in found if one.holder.socket] == [3, 2, 1]
    assert [one.holder.head_bytes for one in found] == [9 * PAGE, 0, PAGE]


def test_what_is_beyond_the_listed_is_summed_up_by_process_stuck_sockets_apart() -> None:
    """One of six sockets is listed; process 7 has four of the others, two of them stuck; the last has no owner."""
    one = scan_of(UDP, [])
    sockets = np.repeat(one.sockets, 6)
    sockets["socket"], sockets["inode"] = np.arange(1, 7) * 4096, np.arange(1, 7)
    queues = np.zeros(6, QUEUE_DTYPE)
    queues["socket"], queues["name"], queues["packets"] = range(6), RECEIVE, 1
    queues["payload_bytes"], queues["charge_bytes"], queues["identity"][:, 0] = 10, 100, range(1, 7)
    queues["head_bytes"] = 50
    owners = np.array(
        [(4096 * number, pid, 11, 0, 0) for number, pid in ((1, 8), *((n, 7) for n in range(2, 6)))], FOUND_DTYPE
    )
    blocks = np.array(
        [(0, 64, 5, False, False), *((number, 4096, 1, False, False) for number in range(1, 6))], BLOCK_DTYPE
    )
    first = replace(one, sockets=sockets, queues=queues[:3], owners=owners, blocks=blocks)
    last = replace(first, queues=queues, start_seconds=31, end_seconds=32)

    largest, *summed = socket_holdings(first, last, process, limit=1)
    assert largest.holder.socket is not None
    assert [
        (one.owners[0].pid if one.owners else 0, one.summed, one.stuck_seconds, one.unread_bytes, one.charge_bytes)
        for one in (each.holder for each in summed)
    ] == [(7, 2, None, 20, 200), (7, 2, 30, 20, 200), (0, 1, None, 10, 100)]
    assert {(one.holder.pinned_bytes, one.holder.pinned_blocks, len(one.blocks)) for one in summed} == {
        (2 * PAGE, 1, 1)
    }
    assert [one.holder.head_bytes for one in (largest, *summed)] == [50, 100, 100, 50]
    assert all(one.holder.unowned_reason for one in summed if not one.holder.owners)
    assert all(one.holder.socket for one in socket_holdings(first, last, process))
