"""Compare two hand-made scans: what was read and sent, and how old what waits is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memdiag_api.evidence import Holder, Pace, Peer
from memdiag_node.sockets.holders import socket_holdings
from memdiag_node.sockets.peers import host_of, largest_peers
from memdiag_node.sockets.progress import ticks_per_second
from memdiag_node.sockets.scan import QUEUE_DTYPE, RECEIVE, RETRANSMIT, WRITE, SocketScan
from memdiag_node.sockets.source import COUNTS_READS, COUNTS_SENDS, FOUND_DTYPE, HAS_FIN, IS_WINDOW_CLOSED, READS_DTYPE
from memdiag_node.walker.tally import BLOCK_DTYPE
from support.socket_scans import PAGE, TCP, UDP, front, holders_of, process, scan_of

WRAP = 1 << 32


def receiving(unread: int, received: int, *, start: float = 0, **row: Any) -> SocketScan:
    """A TCP connection that has received so much since it was connected, and so much of it is unread."""
    counters = {
        "bytes_received": received,
        "received_seq": received % WRAP,
        "copied_seq": (received - unread) % WRAP,
        "flags": COUNTS_READS,
    }
    queue: dict[str, object] = {"name": RECEIVE, "packets": 1, "payload_bytes": unread}
    return scan_of(TCP | counters | row, [queue], start=start)


def sending(unsent: int, acked: int, *, start: float = 0, name: int = WRITE, **row: Any) -> SocketScan:
    counters = {"bytes_acked": acked, "flags": COUNTS_SENDS}
    return scan_of(TCP | counters | row, [{"name": name, "packets": 1, "payload_bytes": unsent}], start=start)


def rates(first: SocketScan, last: SocketScan) -> tuple[object, ...]:
    (holder,) = holders_of(first, last)
    assert holder.socket is not None
    described = holder.socket
    return described.read_bytes_per_second, described.arrived_bytes_per_second, described.acked_bytes_per_second


@pytest.mark.parametrize(
    ("before", "after", "read", "arrived"),
    [
        ((9_000, 10_000), (6_000, 10_000), 100, 0),
        ((9_000, 10_000), (9_000, 13_000), 100, 100),
        ((9_000, 10_000), (9_000, 10_000), 0, 0),
        ((9_000, WRAP - 10), (9_000, WRAP + 2_990), 100, 100),
        ((9_000, 10_000), (9_000, 10_000 + 5 * WRAP), 5 * WRAP / 30, 5 * WRAP / 30),
        ((0, 10_000), (9_000, 19_000), None, None),
    ],
)
def test_what_was_read_follows_from_what_was_received(
    before: tuple[int, int], after: tuple[int, int], read: float | None, arrived: float | None
) -> None:
    first, last = receiving(*before), receiving(*after, start=31)
    assert rates(first, last) == (pytest.approx(read), pytest.approx(arrived), None)


def test_without_counters_no_rate_is_known() -> None:
    first, last = receiving(9_000, 10_000, flags=0), receiving(9_000, 13_000, start=31, flags=0)
    assert rates(first, last) == (None, None, None)


def test_a_fin_was_not_read() -> None:
    fin = {"flags": COUNTS_READS | HAS_FIN, "received_seq": 13_001}
    assert rates(receiving(9_000, 10_000), receiving(9_000, 13_000, start=31, **fin))[0] == pytest.approx(100)


@pytest.mark.parametrize(
    ("before", "after", "acked", "stalled"),
    [
        ((5_000, 10), (5_000, 10), 0, 30),
        ((5_000, 10), (9_000, 10), 0, 30),
        ((5_000, 10), (5_000, 3_010), 100, None),
        ((5_000, 10), (5_000, 10 + 3 * WRAP), 3 * WRAP / 30, None),
        ((0, 10), (5_000, 10), None, None),
    ],
)
@pytest.mark.parametrize("name", [WRITE, RETRANSMIT])
def test_what_the_peer_acknowledged(
    before: tuple[int, int], after: tuple[int, int], acked: float | None, stalled: float | None, name: int
) -> None:
    first, last = sending(*before, name=name), sending(*after, start=31, name=name)
    assert rates(first, last) == (None, None, pytest.approx(acked))
    (holder,) = holders_of(first, last)
    assert holder.socket is not None
    assert holder.socket.send_stalled_seconds == stalled
    assert holder.socket.peer_window_closed is False


def test_a_stall_is_as_old_as_the_kernel_knows() -> None:
    stalled = {"delivered_age_ms": 500_000, "flags": COUNTS_SENDS | IS_WINDOW_CLOSED}
    (holder,) = holders_of(sending(5_000, 10), sending(5_000, 10, start=31, **stalled))
    assert holder.socket is not None
    assert holder.socket.send_stalled_seconds == 500
    assert holder.socket.peer_window_closed is True


def test_the_kernels_clock_follows_from_two_scans() -> None:
    first, last = receiving(9, 9), receiving(9, 9, start=20)
    assert ticks_per_second(first, last) == 0
    first, last = replace(first, start_jiffies=WRAP - 500), replace(last, start_jiffies=WRAP + 4_500)
    assert ticks_per_second(first, last) == 250
    assert ticks_per_second(first, replace(last, start_seconds=0.2)) == 0


@pytest.mark.parametrize(
    ("after", "data_age_jiffies", "age_seconds"),
    [
        ((9_000, 10_000), 0, 30),  # nothing was read
        ((8_000, 10_000), 0, 30),  # not all of it was
        ((9_000, 19_000), 0, None),  # all of it was: what is unread now came later
        ((9_000, 19_000), 1_000, 10),
        ((9_000, 10_000), 50_000, 500),
    ],
)
def test_the_age_of_unread_data(after: tuple[int, int], data_age_jiffies: int, age_seconds: float | None) -> None:
    first = replace(receiving(9_000, 10_000), start_jiffies=1_000)
    last = replace(receiving(*after, start=31, data_age_jiffies=data_age_jiffies), start_jiffies=4_100)
    (holder,) = holders_of(first, last)
    assert holder.unread_age_seconds == (None if age_seconds is None else pytest.approx(age_seconds))


def datagrams(packets: int, *identity: int, start: float = 0) -> SocketScan:
    queue = {"name": RECEIVE, "packets": packets, "payload_bytes": 200 * packets, "identity": front(*identity)}
    return scan_of(UDP, [queue], start=start)


def test_reads_of_other_sockets_are_known_if_they_were_watched() -> None:
    first, last = datagrams(50, 1, 2, 3, 4), datagrams(40, 11, 12, 13, 14, start=31)
    assert rates(first, last) == (None, None, None)
    watched = replace(last, watched=np.array([(4096, 12, 2_400), (8192, 1, 7)], READS_DTYPE))
    assert rates(first, watched) == (pytest.approx(80), pytest.approx(400 / 30), None)
    other = replace(last, watched=np.array([(8192, 1, 7)], READS_DTYPE))
    assert rates(first, other) == (None, None, None)


def test_what_was_kept_all_the_time() -> None:
    first, last = receiving(9_000, 10_000), receiving(9_000, 13_000, start=31)
    small = replace(first, blocks=np.array([(0, 64, 1, False, False)], BLOCK_DTYPE))
    assert [holders_of(one, last)[0].kept_throughout_bytes for one in (None, first, small)] == [
        None,
        8 * PAGE,
        2 * PAGE,
    ]


def many(rows: list[dict[str, Any]], queues: list[dict[str, Any]], *, start: float) -> SocketScan:
    """Sockets of process 7, with one queue each."""
    one = scan_of(TCP, [])
    sockets = np.repeat(one.sockets, len(rows))
    table = np.zeros(len(rows), QUEUE_DTYPE)
    for number, (row, queue) in enumerate(zip(rows, queues, strict=True)):
        sockets["socket"][number], sockets["inode"][number] = 4096 * (number + 1), number + 1
        for column, value in row.items():
            sockets[column][number] = value
        table["socket"][number], table["packets"][number] = number, 1
        for column, value in queue.items():
            table[column][number] = value
    owners = np.array([(4096 * (number + 1), 7, 11, 0, 0) for number in range(len(rows))], FOUND_DTYPE)
    blocks = np.array([(number, 4096 * (number + 1), 1, False, False) for number in range(len(rows))], BLOCK_DTYPE)
    return replace(
        one, sockets=sockets, queues=table, owners=owners, blocks=blocks, start_seconds=start, end_seconds=start + 1
    )


def test_sums_are_separate_by_how_fast_the_backlogs_move() -> None:
    def scan(moved: int, start: float) -> SocketScan:
        rows: list[dict[str, Any]] = []
        queues: list[dict[str, Any]] = []
        for number, read in enumerate((0, 0, 1, 1, 5_000)):
            received = 100_000 + moved * read
            rows.append(
                {"bytes_received": received, "received_seq": received, "flags": COUNTS_READS}
                | {"copied_seq": received - 9_000, "remote_number": number}
            )
            queues.append({"name": RECEIVE, "payload_bytes": 9_000})
        for number, acked in enumerate((0, 0, 2, 6_000)):
            rows.append(
                {"bytes_acked": 1_000 + moved * acked, "flags": COUNTS_SENDS}
                | {"remote_address": [10, 0, 0, number, *[0] * 12], "remote_number": 80}
            )
            queues.append({"name": WRITE, "payload_bytes": 6_000, "pinned_bytes": 2 * PAGE, "head_bytes": 100 * number})
        return many(rows, queues, start=start)

    sums = [one.holder for one in socket_holdings(scan(0, 0), scan(30, 31), process, limit=0)]
    groups: dict[tuple[Pace, Pace], Holder] = {
        (one.summed_sockets.reading, one.summed_sockets.sending): one for one in sums if one.summed_sockets
    }
    assert {key: one.summed for key, one in groups.items()} == {
        (Pace.STUCK, Pace.STEADY): 2,
        (Pace.SLOW, Pace.STEADY): 2,
        (Pace.STEADY, Pace.STUCK): 2,
        (Pace.STEADY, Pace.SLOW): 1,
        (Pace.STEADY, Pace.STEADY): 2,
    }
    slow, stalled = (groups[key].summed_sockets for key in ((Pace.SLOW, Pace.STEADY), (Pace.STEADY, Pace.STUCK)))
    assert slow is not None
    assert stalled is not None
    assert (slow.read_bytes_per_second, slow.arrived_bytes_per_second) == (2, 2)
    assert (stalled.unsent_bytes, stalled.unsent_kept_bytes) == (12_000, 4 * PAGE + 100)
    assert (stalled.send_stalled_seconds, stalled.acked_bytes_per_second) == (30, 0)
    assert [(peer.address, peer.size_bytes) for peer in stalled.peers] == [
        ("10.0.0.1:80", 2 * PAGE + 100),
        ("10.0.0.0:80", 2 * PAGE),
    ]
    assert groups[Pace.SLOW, Pace.STEADY].kept_throughout_bytes == 4 * PAGE
    assert groups[Pace.STUCK, Pace.STEADY].unread_age_seconds == 30


def test_few_places_keep_their_ports_and_many_clients_do_not() -> None:
    def peers(*addresses: str) -> list[tuple[str, int, int]]:
        found = largest_peers(Peer(address=one, connections=1, size_bytes=10) for one in addresses)
        return [(one.address, one.connections, one.size_bytes) for one in found]

    assert peers("10.0.0.1:80", "10.0.0.1:80", "10.0.0.1:81") == [("10.0.0.1:80", 2, 20), ("10.0.0.1:81", 1, 10)]
    assert peers(*(f"[2001:db8::1]:{port}" for port in range(9))) == [("[2001:db8::1]", 9, 90)]
    assert peers(*(f"10.0.0.{host}:80" for host in range(9)))[0] == ("10.0.0.0:80", 1, 10)
    assert peers() == []


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.1:80", "10.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host
