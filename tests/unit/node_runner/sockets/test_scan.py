"""Adding up the walker's records, and telling holders from two scans: on records made by hand."""

import socket
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_api.evidence import Owner
from memdiag_node.sockets.holders import coverage_of, holders_of
from memdiag_node.sockets.scanner import QUEUE_DTYPE, READER, RECEIVE, SOCKET_DTYPE, SocketScan, worklist
from memdiag_node.sockets.source import DESCRIPTION_DTYPE, FOUND_DTYPE, HAS_FILE, HAS_FIN, HAS_SOCKET, IS_ORPHANED
from memdiag_node.sockets.summed import summed_sockets
from memdiag_node.walker.tally import BLOCK_DTYPE, TALLY_DTYPE, Tally, unique_blocks
from memdiag_node.walker.walker import IS_DEVICE, IS_MEMBER, IS_USER, RECORD_DTYPE, UNREADABLE, RecordType, Status
from memdiag_node.walker.walks import is_better

PAGE = 4096
Record = tuple[int, int, int, int, int]


def records(*rows: Record) -> npt.NDArray[np.void]:
    """Rows of value, item, type, flags, detail."""
    return np.array(list(rows), RECORD_DTYPE)


def packet(item: int, length: int, truesize: int, *, flags: int = 0, head_bytes: int = 0) -> Record:
    return (length << 32 | truesize, item, RecordType.PACKET, flags, head_bytes // 16)


def fragment(item: int, page: int, order: int = 0, flags: int = 0) -> Record:
    return (page, item, RecordType.FRAGMENT, flags, order)


def end(item: int, packets: int, status: Status = Status.WHOLE) -> Record:
    return (packets << 32 | packets, item, RecordType.END, 0, status)


def test_members_of_a_frag_list_count_with_their_head_only() -> None:
    tally = Tally(1, max_blocks=10)
    tally.add(
        records(
            packet(0, 24_000, 27_000, head_bytes=640),
            packet(0, 8_000, 9_000, flags=IS_MEMBER, head_bytes=320),
            end(0, 1),
        )
    )
    row = tally.table[0]
    assert (row["packets"], row["payload_bytes"], row["charge_bytes"], row["head_bytes"]) == (1, 24_000, 27_000, 960)


def test_a_block_counts_once_for_each_queue_however_the_records_are_cut() -> None:
    rows = [
        packet(0, 10, 800),
        fragment(0, 64, 3),
        packet(0, 10, 800),
        fragment(0, 128, 3),
        fragment(0, 64, 3),
        end(0, 2),
    ]
    rows += [packet(1, 10, 800), fragment(1, 64, 3), end(1, 1)]
    for cut in range(len(rows)):
        tally = Tally(2, max_blocks=100)
        tally.add(records(*rows[:cut]))
        tally.add(records(*rows[cut:]))
        assert [(block["owner"], block["page"]) for block in tally.blocks()] == [(0, 64), (0, 128), (1, 64)]
        assert tally.table["packets"].tolist() == [2, 1]
        assert tally.table["status"].tolist() == [Status.WHOLE, Status.WHOLE]


def test_blocks_beyond_the_bound_are_told_not_kept() -> None:
    tally = Tally(1, max_blocks=2)
    tally.add(records(packet(0, 1, 1), *(fragment(0, 64 * number) for number in range(1, 6)), end(0, 1)))
    assert len(tally.blocks()) == 2
    assert tally.blocks_left_out == 3
    assert tally.table["unreadable"][0] > 0


def test_user_pages_device_memory_and_unreadable_ones_are_told_apart() -> None:
    tally = Tally(1, max_blocks=10)
    tally.add(
        records(
            packet(0, 1, 1, flags=UNREADABLE),
            fragment(0, 64, flags=IS_USER),
            fragment(0, 0, flags=IS_DEVICE),
            fragment(0, 0, flags=UNREADABLE),
            end(0, 1),
        )
    )
    assert tally.blocks()["user"].tolist() == [True]
    assert (tally.table["device"][0], tally.table["unreadable"][0]) == (1, 2)


def scan_of(row: dict[str, int], queues: list[dict[str, object]], *, start: float = 0, pid: int = 7) -> SocketScan:
    """A scan of one socket at address 4096, with one block of order 3."""
    sockets = np.zeros(1, SOCKET_DTYPE)
    sockets["socket"], sockets["inode"], sockets["flags"] = 4096, 99, HAS_SOCKET | HAS_FILE
    for column, value in row.items():
        sockets[column] = value
    table = np.zeros(len(queues), QUEUE_DTYPE)
    table["status"] = Status.WHOLE
    for number, queue in enumerate(queues):
        for column, content in queue.items():
            table[column][number] = content
    owners = np.array([(4096, pid, 11, 0, 0)], FOUND_DTYPE) if pid else np.empty(0, FOUND_DTYPE)
    return SocketScan(
        sockets=sockets,
        names={},
        owners=owners,
        holding={},
        queues=table,
        blocks=np.array([(0, 64, 3, False, False)], BLOCK_DTYPE),
        sockets_seen=1,
        pinned_bytes=8 * PAGE,
        start_seconds=start,
        end_seconds=start + 1,
    )


TCP = {"family": socket.AF_INET, "protocol": socket.IPPROTO_TCP, "type": socket.SOCK_STREAM, "state": 1}
UDP = {"family": socket.AF_INET, "protocol": socket.IPPROTO_UDP, "type": socket.SOCK_DGRAM, "state": 7}


def front(*packets: int) -> list[int]:
    return [*packets, *[0] * (4 - len(packets))]


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
    (holder,) = holders_of(first, last, lambda pid: Owner(pid=pid, comm="x")).holders
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
    (holder,) = holders_of(first, last, lambda pid: Owner(pid=pid, comm="x")).holders
    assert holder.stuck_seconds == (30 if stuck else None)


def test_a_socket_that_was_seen_to_be_read_is_not_stuck() -> None:
    queue = {"name": RECEIVE, "packets": 1, "identity": front(1)}
    first, last = (scan_of(UDP, [queue], start=start) for start in (0, 31))
    for read, stuck_seconds in (([], 30), ([8192], 30), ([4096], None)):
        watched = replace(last, read=np.array(read, "<u8"))
        (holder,) = holders_of(first, watched, lambda pid: Owner(pid=pid, comm="x")).holders
        assert holder.stuck_seconds == stuck_seconds


def test_a_raw_socket_of_tcps_packets_is_no_connection() -> None:
    row = TCP | {"type": socket.SOCK_RAW}
    (holder,) = holders_of(
        None, scan_of(row, [{"name": RECEIVE, "packets": 1, "payload_bytes": 80}]), lambda _: None
    ).holders
    assert holder.unread_bytes == 80


@pytest.mark.parametrize(
    ("older", "newer", "better"),
    [
        ((5, 9, Status.RACE), (3, 3, Status.WHOLE), True),
        ((5, 9, Status.RACE), (8, 9, Status.RACE), True),
        ((5, 9, Status.RACE), (30, 9, Status.RACE), False),
        ((0, 0, Status.FAULT), (0, 0, Status.FAULT), False),
    ],
)
def test_of_several_walks_the_one_counts_that_saw_what_is_there(
    older: tuple[int, int, Status], newer: tuple[int, int, Status], better: bool
) -> None:
    tables = np.zeros((2, 1), TALLY_DTYPE)
    for table, (packets, expected, status) in zip(tables, (older, newer), strict=True):
        table["packets"], table["expected"], table["status"] = packets, expected, status
    assert is_better(*tables).tolist() == [better]


def test_both_queues_of_a_udp_socket_are_walked_its_readers_first() -> None:
    rows = np.zeros(4, DESCRIPTION_DTYPE)
    rows["socket"] = 4096, 8192, 12288, 16384
    rows["family"], rows["protocol"] = socket.AF_INET, socket.IPPROTO_UDP
    rows["type"] = (socket.SOCK_DGRAM,) * 3 + (socket.SOCK_RAW,)
    rows["receive_packets"], rows["reader_packets"] = (3, 0, 0, 3), (0, 2, 0, 0)
    offset = {"SOCK_RECEIVE_QUEUE": 1, "UDP_READER_QUEUE": 2} | dict.fromkeys(
        ("SOCK_WRITE_QUEUE", "SOCK_ERROR_QUEUE", "TCP_OUT_OF_ORDER", "SOCK_RETRANSMIT", "SOCK_BACKLOG_HEAD"), 0
    )
    numbers, names, items = worklist(rows, offset | {"LISTENER_ACCEPT_HEAD": 0, "UNIX_CONSUMED": 28})
    assert list(zip(numbers.tolist(), names.tolist(), items["head"].tolist(), strict=True)) == [
        (0, READER, 4098),
        (0, RECEIVE, 4097),
        (1, READER, 8194),
        (1, RECEIVE, 8193),
        (3, RECEIVE, 16385),
    ]


def test_a_fin_is_no_unread_byte_and_a_part_that_was_read_is_none_either() -> None:
    row = TCP | {"copied_seq": 100, "received_seq": 151, "flags": HAS_FIN | HAS_SOCKET | HAS_FILE}
    last = scan_of(row, [{"name": RECEIVE, "packets": 1, "payload_bytes": 80}])
    (holder,) = holders_of(None, last, lambda pid: Owner(pid=pid, comm="x")).holders
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
        (HAS_SOCKET | HAS_FILE, "open, but as no fd"),
    ],
)
def test_why_no_process_holds_it(flags: int, reason: str) -> None:
    last = scan_of(UDP | {"flags": flags}, [{"name": RECEIVE, "packets": 1}], pid=0)
    (holder,) = holders_of(None, last, lambda _: None).holders
    assert holder.owners == []
    assert holder.unowned_reason.startswith(reason)


def test_a_process_that_vanished_is_counted_and_not_named() -> None:
    (holder,) = holders_of(None, scan_of(UDP, [{"name": RECEIVE, "packets": 1}]), lambda _: None).holders
    assert (holder.owners, holder.owners_total) == ([], 1)


def test_an_incomplete_queue_says_what_is_missing() -> None:
    last = scan_of(UDP, [{"name": RECEIVE, "packets": 5, "expected": 9, "status": Status.RACE}])
    (holder,) = holders_of(None, last, lambda _: None).holders
    assert holder.socket is not None
    (queue,) = holder.socket.queues
    assert not queue.complete
    assert "5 packets seen, 9 at its end" in queue.missing
    assert coverage_of(last).incomplete_queues == 1


def test_what_the_first_scan_did_not_reach_counts_as_well() -> None:
    """What it did not see is never found stuck, however complete the second scan is."""
    whole = scan_of(UDP, [{"name": RECEIVE, "packets": 1}])
    cut = scan_of(UDP, [{"name": RECEIVE, "packets": 1, "status": Status.NOT_REACHED}])
    cut = replace(cut, sockets_not_reached=7, lists_every_fd=False, tables_complete=False, sees_linear_heads=False)
    for first, last in ((cut, whole), (whole, cut)):
        coverage = coverage_of(last, first=first)
        assert (coverage.sockets_not_reached, coverage.queues_not_reached) == (7, 1)
        assert not coverage.lists_every_fd
        assert not coverage.socket_tables_complete
        assert coverage.is_compared
        assert coverage.sees_linear_heads == last.sees_linear_heads
    assert not coverage_of(whole).is_compared
    assert coverage_of(whole).sockets_not_reached == coverage_of(whole).queues_not_reached == 0


def test_the_largest_come_first_and_the_rest_is_counted() -> None:
    one = scan_of(UDP, [{"name": RECEIVE, "packets": 1}])
    sockets = np.repeat(one.sockets, 3)
    sockets["socket"], sockets["inode"] = (4096, 8192, 12288), (1, 2, 3)
    blocks = np.array([(0, 64, 0, False, False), (1, 128, 3, False, False), (2, 192, 1, False, False)], BLOCK_DTYPE)
    last = replace(one, sockets=sockets, blocks=blocks)
    found = holders_of(None, last, lambda _: None, limit=2)
    assert [holder.socket.inode for holder in found.holders if holder.socket] == [2, 3]
    assert [blocks["page"].tolist() for blocks in found.blocks] == [[128], [192]]
    assert found.rest.tolist() == [0]


def test_what_is_beyond_the_listed_is_summed_up_by_process_stuck_sockets_apart() -> None:
    """Of six sockets one is listed; 7 has four of the others, two of them stuck, and nobody the last."""
    one = scan_of(UDP, [])
    sockets = np.repeat(one.sockets, 6)
    sockets["socket"], sockets["inode"] = np.arange(1, 7) * 4096, np.arange(1, 7)
    queues = np.zeros(6, QUEUE_DTYPE)
    queues["socket"], queues["name"], queues["packets"] = range(6), RECEIVE, 1
    queues["payload_bytes"], queues["charge_bytes"], queues["identity"][:, 0] = 10, 100, range(1, 7)
    owners = np.array(
        [(4096 * number, pid, 11, 0, 0) for number, pid in ((1, 8), *((n, 7) for n in range(2, 6)))], FOUND_DTYPE
    )
    blocks = np.array(
        [(0, 64, 5, False, False), *((number, 4096, 1, False, False) for number in range(1, 6))], BLOCK_DTYPE
    )
    first = replace(one, sockets=sockets, queues=queues[:3], owners=owners, blocks=blocks)
    last = replace(first, queues=queues, start_seconds=31, end_seconds=32)

    def owner_of(pid: int) -> Owner:
        return Owner(pid=pid, comm="x")

    found = holders_of(first, last, owner_of, limit=1)
    summed = list(summed_sockets(last, found, owner_of))
    assert [
        (one.owners[0].pid if one.owners else 0, one.summed, one.stuck_seconds, one.unread_bytes, one.charge_bytes)
        for one, _ in summed
    ] == [(0, 1, None, 10, 100), (7, 2, None, 20, 200), (7, 2, 30, 20, 200)]
    assert {(one.pinned_bytes, one.pinned_blocks, len(blocks)) for one, blocks in summed} == {(2 * PAGE, 1, 1)}
    assert summed[0][0].unowned_reason
    assert not list(summed_sockets(last, holders_of(first, last, owner_of), owner_of))


def test_unique_blocks_keeps_each_page_of_each_owner() -> None:
    blocks = np.array(
        [(1, 64, 0, False, False), (0, 64, 0, False, False), (1, 64, 0, False, False), (0, 0, 0, True, False)],
        BLOCK_DTYPE,
    )
    assert unique_blocks(blocks)[["owner", "page"]].tolist() == [(0, 0), (0, 64), (1, 64)]
