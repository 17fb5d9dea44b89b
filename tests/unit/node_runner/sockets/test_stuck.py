"""Find stuck sockets in two hand-made scans."""

from dataclasses import replace

import numpy as np
import pytest

from memdiag_node.sockets.scan import READER, RECEIVE
from memdiag_node.sockets.source import HAS_FIN
from support.socket_scans import TCP, UDP, front, holders_of, scan_of


@pytest.mark.parametrize(
    ("before", "after", "stuck"),
    [
        ({"copied_seq": 5, "received_seq": 9}, {"copied_seq": 5, "received_seq": 900}, True),
        ({"copied_seq": 5, "received_seq": 9}, {"copied_seq": 6, "received_seq": 900}, False),
        ({"copied_seq": 5, "received_seq": 5}, {"copied_seq": 5, "received_seq": 900}, False),
        ({"copied_seq": 2**32 - 2, "received_seq": 3}, {"copied_seq": 2**32 - 2, "received_seq": 9}, True),
        ({"copied_seq": 5, "received_seq": 6, "flags": HAS_FIN}, {"copied_seq": 5, "received_seq": 6}, False),
        ({"copied_seq": 5, "received_seq": 9, "inode": 98}, {"copied_seq": 5, "received_seq": 9}, False),
        ({"copied_seq": 5, "received_seq": 9, "socket": 8192}, {"copied_seq": 5, "received_seq": 9}, False),
    ],
)
def test_a_tcp_connection_is_stuck_when_nothing_was_copied(
    before: dict[str, int], after: dict[str, int], stuck: bool
) -> None:
    first = scan_of(TCP | before, [{"name": RECEIVE, "packets": 1}])
    last = scan_of(TCP | after, [{"name": RECEIVE, "packets": 2}], start=31)
    (holder,) = holders_of(first, last)
    assert holder.stuck_seconds == (30 if stuck else None)


@pytest.mark.parametrize(
    ("before", "after", "stuck"),
    [
        ([(RECEIVE, front(1, 2))], [(RECEIVE, front(1, 2, 3))], True),
        ([(RECEIVE, front(1, 2))], [(RECEIVE, front(2, 3))], False),
        ([(RECEIVE, front(1, 2, 3, 4))], [(RECEIVE, front(1, 2, 3, 5))], False),
        ([(READER, front(1)), (RECEIVE, front(5))], [(READER, front(1)), (RECEIVE, front(5, 6))], True),
        ([(READER, front(1)), (RECEIVE, front(5))], [(READER, front(5)), (RECEIVE, front(6))], False),
        ([(RECEIVE, front(1, 2))], [(READER, front(1, 2)), (RECEIVE, front(3))], True),
        ([(READER, front(1)), (RECEIVE, front(5, 6))], [(READER, front(1, 5, 6)), (RECEIVE, front(7))], True),
        ([(RECEIVE, front(1, 2))], [(READER, front(2)), (RECEIVE, front(3))], False),
        ([(RECEIVE, front(1, 2))], [], False),
        ([], [(RECEIVE, front(1))], False),
    ],
)
def test_another_socket_is_stuck_when_the_same_packets_wait_in_front(
    before: list[tuple[int, list[int]]], after: list[tuple[int, list[int]]], stuck: bool
) -> None:
    first, last = (
        scan_of(UDP, [{"name": name, "packets": 1, "identity": identity} for name, identity in queues], start=start)
        for queues, start in ((before, 0), (after, 31))
    )
    (holder,) = holders_of(first, last)
    assert holder.stuck_seconds == (30 if stuck else None)


def test_a_socket_that_was_seen_to_be_read_is_not_stuck() -> None:
    queue = {"name": RECEIVE, "packets": 1, "identity": front(1)}
    first, last = (scan_of(UDP, [queue], start=start) for start in (0, 31))
    for read, stuck_seconds in (([], 30), ([8192], 30), ([4096], None)):
        watched = replace(last, read=np.array(read, "<u8"))
        (holder,) = holders_of(first, watched)
        assert holder.stuck_seconds == stuck_seconds
