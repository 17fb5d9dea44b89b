"""Every family and state of socket, planted with known content in a separate network namespace, found by the scan."""

import re
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_api.units import format_bytes
from memdiag_node.breakdown.classes import breakdown
from memdiag_node.breakdown.reading import take_readings
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.sockets.source import SocketSource
from planted.sockets.common import MIB, PAGE_BYTES, TCP_HEADER_BYTES
from planted.sockets.planter import Planter
from support.machine_noise import change_by, too_busy
from support.sockets import fds_of, holder_at, holder_of, is_kept, queue_of

FREED_TOLERANCE = 0.02
QUIET_BYTES = MIB // 2
QUIET_ROUNDS, ROUNDS = 3, 20


@pytest.fixture
def scan(scanner: SocketScanner) -> Callable[[], SocketScan]:
    return scanner.scan


@pytest.mark.parametrize(
    ("load", "amount", "named"),
    [
        ("tcp_bulk", 3 * MIB, ("IPv4", "TCP", "ESTABLISHED")),
        ("tcp6_bulk", 100_000, ("IPv6", "TCP", "ESTABLISHED")),
        ("tcp_small_messages", 200, ("IPv4", "TCP", "ESTABLISHED")),
        ("tcp_partly_read", 90_001, ("IPv4", "TCP", "ESTABLISHED")),
        ("tcp_finished", 5_000, ("IPv4", "TCP", "CLOSE-WAIT")),
        ("mptcp_partly_read", 90_001, ("IPv4", "MPTCP", "ESTABLISHED")),
        ("udp_small", 1_000, ("IPv4", "UDP", "UNCONNECTED")),
        ("udp6_large", 50, ("IPv6", "UDP", "UNCONNECTED")),
        ("udp_reader_queue", 40, ("IPv4", "UDP", "UNCONNECTED")),
        ("udp_fragmented", 20, ("IPv4", "UDP", "UNCONNECTED")),
        ("udp_nested_fragments", 5, ("IPv4", "UDP", "UNCONNECTED")),
        ("udp_head_fragments", 20, ("IPv4", "UDP", "UNCONNECTED")),
        ("udp_lite", 10, ("IPv4", "UDP-Lite", "UNCONNECTED")),
        ("udp6_lite", 10, ("IPv6", "UDP-Lite", "UNCONNECTED")),
        ("udp_spliced", 5, ("IPv4", "UDP", "UNCONNECTED")),
        ("unix_stream", 50, ("UNIX", "stream", "ESTABLISHED")),
        ("unix_seqpacket", 50, ("UNIX", "sequential packets", "ESTABLISHED")),
        ("unix_datagram", 8, ("UNIX", "datagram", "UNCONNECTED")),
        ("unix_partly_read", 9_001, ("UNIX", "stream", "ESTABLISHED")),
        ("raw_icmp", 10, ("IPv4", "raw ICMP", "UNCONNECTED")),
        ("raw6_icmp", 10, ("IPv6", "raw ICMPv6", "UNCONNECTED")),
        ("raw_udp", 10, ("IPv4", "raw UDP", "UNCONNECTED")),
        ("raw_tcp", 10_000, ("IPv4", "raw TCP", "UNCONNECTED")),
        ("netlink_messages", 5, ("netlink", "route", "UNCONNECTED")),
        ("packet_socket", 10, ("packet", "0x0800", "UNCONNECTED")),
    ],
)
def test_unread_bytes_are_exact_and_the_owner_is_right(
    planter: Planter, scan: Callable[[], SocketScan], load: str, amount: int, named: tuple[str, str, str]
) -> None:
    truth = planter.plant(load, amount)
    holder = holder_of(scan(), planter.inode(truth["fd"]))
    assert holder.unread_bytes == truth["unread_bytes"]
    assert fds_of(holder) == {planter.pid: [truth["fd"]]}
    assert holder.socket is not None
    assert (holder.socket.family, holder.socket.protocol, holder.socket.state) == named
    assert holder.socket.network_namespace == planter.network_namespace()
    assert all(queue.complete for queue in holder.socket.queues)
    assert holder.unread_packets == truth.get("packets", holder.unread_packets)


def test_addresses_are_those_of_the_connection(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    for load, host in (("tcp_bulk", "127.0.0.1"), ("tcp6_bulk", "[::1]")):
        truth = planter.plant(load, 1_000)
        described = holder_of(scan(), planter.inode(truth["fd"])).socket
        assert described is not None
        assert described.local_address == f"{host}:{truth['port']}"
        assert described.remote_address == f"{host}:{truth['remote_port']}"


def class_sizes() -> dict[str, int]:
    return {line.name: line.size_bytes for line in breakdown(take_readings(HostRoots())).classes}


def kernel_bytes() -> int:
    """Allocpage and slab memory: memory that is freed with a socket, and is independent of the machine's processes."""
    sizes = class_sizes()
    return sizes["AllocPage"] + sizes["SUnreclaim"]


def freed_by_the_end_of(planter: Planter, quiet_bytes: float) -> int | None:
    """Kernel memory freed with the child; None if the machine changed it by more than `quiet_bytes` meanwhile."""
    change_bytes = change_by(planter.kill, kernel_bytes, quiet_bytes=quiet_bytes)
    return None if change_bytes is None else -change_bytes


def agreeing(errors: Sequence[float], within: float) -> list[float]:
    """The `QUIET_ROUNDS` errors that are closest to each other; none if they differ by more than `within`."""
    ordered = sorted(errors)
    groups = [ordered[first : first + QUIET_ROUNDS] for first in range(len(ordered) - QUIET_ROUNDS + 1)]
    closest = min(groups, key=lambda group: group[-1] - group[0], default=[])
    return closest if closest and closest[-1] - closest[0] <= within else []


@pytest.fixture(scope="module")
def empty_child_bytes() -> float:
    """The memory freed with a child that holds almost nothing: its network namespace, and so on."""
    found: list[int] = []
    for _ in range(ROUNDS):
        with Planter() as planter:
            planter.plant("tcp_small_messages", 1)
            freed_bytes = freed_by_the_end_of(planter, QUIET_BYTES)
        found += [] if freed_bytes is None else [freed_bytes]
        if len(found) == QUIET_ROUNDS:
            return statistics.median(found)
    raise too_busy(f"kernel memory moved by more than {format_bytes(QUIET_BYTES)} in most of {ROUNDS} rounds")


@pytest.mark.parametrize(
    ("load", "amount", "per_unread_byte"),
    [
        ("tcp_small_messages", 6_000, 512),
        ("tcp_bulk", 200 * MIB, 1),
        ("udp6_large", 6_000, 1),
        ("udp_head_fragments", 4_000, 32_768 / 1_000),
        ("unix_stream", 4_000, 28_672 / 30_000),
    ],
)
def test_pinned_bytes_are_what_the_end_of_the_holder_frees(
    scan: Callable[[], SocketScan], empty_child_bytes: float, load: str, amount: int, per_unread_byte: float
) -> None:
    """64-byte messages pin a 32 KiB block each, five hundred times the unread bytes; bulk data pins its own size.

    Heads in slab are freed too. What is freed with the holder is seen in the node's kernel memory, which changes for
    other reasons too. So three rounds that agree with each other within half of the tolerance are judged: their
    median, once. What they agree on may be anything.
    """
    errors: list[float] = []
    moved: list[dict[str, str]] = []
    agreed: list[float] = []
    for _ in range(ROUNDS):
        with Planter() as planter:
            truth = planter.plant(load, amount)
            holder = holder_of(scan(), planter.inode(truth["fd"]))
            before = class_sizes()
            assert holder.pinned_bytes == pytest.approx(per_unread_byte * holder.unread_bytes, rel=0.02)
            assert holder.socket is not None
            held_bytes = holder.pinned_bytes + sum(queue.head_bytes for queue in holder.socket.queues)
            quiet_bytes = FREED_TOLERANCE / 2 * held_bytes
            freed_bytes = freed_by_the_end_of(planter, quiet_bytes)
        errors += [] if freed_bytes is None else [(freed_bytes - empty_child_bytes) / held_bytes - 1]
        changes = {name: after - before[name] for name, after in class_sizes().items()}
        moved.append({name: format_bytes(change) for name, change in changes.items() if abs(change) > QUIET_BYTES})
        agreed = agreeing(errors, FREED_TOLERANCE / 2)
        if agreed:
            break
    details = "\n".join(map(str, (errors, *moved)))
    if not agreed:
        raise too_busy(f"of {ROUNDS} rounds, no {QUIET_ROUNDS} agree within {format_bytes(quiet_bytes)}: {details}")
    assert abs(statistics.median(agreed)) <= FREED_TOLERANCE, details


def test_the_healthy_connection_beside_the_stuck_one_holds_nothing(
    planter: Planter, scan: Callable[[], SocketScan]
) -> None:
    truth = planter.plant("tcp_small_messages", 50)
    assert not is_kept(scan(), planter.inode(truth["healthy_fd"]))


def test_spliced_pages_are_the_pages_of_their_owner(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    """Pages of a process are counted separately: they are not kernel memory."""
    truth = planter.plant("udp_spliced", 20)
    queue = queue_of(holder_of(scan(), planter.inode(truth["fd"])), "receive")
    assert (queue.user_bytes, queue.pinned_bytes) == (truth["user_bytes"], 0)


def test_pipe_pages_moved_into_a_socket_are_pinned_by_it(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    truth = planter.plant("udp_spliced_pipe_pages", 64)
    assert holder_of(scan(), planter.inode(truth["fd"])).pinned_bytes == truth["pinned_bytes"]


def test_heads_that_are_pages_of_their_own_are_pinned_bytes(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    """A 32,000-byte datagram is in one linear head of 32 KiB, too large for slab, or in fragments of that size."""
    truth = planter.plant("udp6_large", 100)
    queue = queue_of(holder_of(scan(), planter.inode(truth["fd"])), "receive")
    assert queue.pinned_bytes >= truth["unread_bytes"]
    assert queue.pinned_bytes == pytest.approx(queue.charge_bytes, rel=0.3)


def test_lists_of_packets_inside_lists_of_packets_are_walked_to_their_end(
    planter: Planter, scan: Callable[[], SocketScan]
) -> None:
    """The kernel charged each fragment: everything charged, except for the packets' structs, is found."""
    truth = planter.plant("udp_nested_fragments", 5)
    queue = queue_of(holder_of(scan(), planter.inode(truth["fd"])), "receive")
    assert queue.packets == 5
    assert truth["unread_bytes"] < queue.head_bytes < queue.charge_bytes
    assert queue.head_bytes == pytest.approx(queue.charge_bytes, rel=0.1)


def test_heads_cut_from_a_page_fragment_keep_the_whole_block(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    truth = planter.plant("udp_head_fragments", 20)
    queue = queue_of(holder_of(scan(), planter.inode(truth["fd"])), "receive")
    assert (queue.pinned_bytes, queue.head_bytes) == (20 * 32_768, 0)


def test_every_fd_of_every_process_that_shares_the_socket(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    truth = planter.plant("shared_socket", 5)
    holder = holder_of(scan(), planter.inode(truth["fd"]))
    assert fds_of(holder) == {planter.pid: truth["fds"], truth["child_pid"]: [truth["child_fd"]]}
    assert holder.owners_total == 2


def test_a_connection_that_was_not_accepted_belongs_to_its_listener(
    planter: Planter, scan: Callable[[], SocketScan]
) -> None:
    truth = planter.plant("tcp_unaccepted", 50_000)
    seen = scan()
    holder = holder_at(seen, truth["port"], truth["remote_port"])
    assert holder.unread_bytes == 50_000
    assert fds_of(holder) == {planter.pid: [truth["fd"]]}
    assert holder.unowned_reason.startswith("not accepted yet")
    listener = holder_of(seen, planter.inode(truth["fd"])).socket
    assert listener is not None
    assert (listener.state, listener.backlog) == ("LISTEN", 1)


def test_a_unix_connection_that_was_not_accepted(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    truth = planter.plant("unix_unaccepted", 7_000)
    seen = scan()
    unaccepted = [
        number
        for number, row in enumerate(seen.sockets)
        if seen.holding.get(int(row["socket"]), (0, 0))[0]
        in {int(other["socket"]) for other in seen.sockets if other["inode"] == planter.inode(truth["fd"])}
    ]
    assert len(unaccepted) == 1
    assert seen.queues_of(unaccepted[0])["payload_bytes"].tolist() == [7_000]


def test_a_socket_in_flight_belongs_to_its_receiver(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    truth = planter.plant("unix_in_flight", 5)
    holder = holder_of(scan(), truth["inode"])
    assert holder.unread_bytes == truth["unread_bytes"]
    assert fds_of(holder) == {planter.pid: [truth["carrier_fd"]]}
    assert holder.unowned_reason.startswith("in flight")


@pytest.mark.parametrize("load", ["tcp_write_queue", "tcp6_write_queue"])
def test_what_waits_to_be_sent_is_the_senders(planter: Planter, scan: Callable[[], SocketScan], load: str) -> None:
    truth = planter.plant(load, MIB)
    holder = holder_of(scan(), planter.inode(truth["fd"]))
    assert holder.unread_bytes == 0
    assert fds_of(holder) == {planter.pid: [truth["fd"]]}
    assert holder.socket is not None
    waiting = sum(queue.unread_bytes for queue in holder.socket.queues if queue.name in ("write", "retransmit"))
    assert waiting == truth["unsent_bytes"]
    assert holder.pinned_bytes == pytest.approx(truth["unsent_bytes"], rel=0.1)


def test_what_was_sent_and_not_acknowledged_is_the_senders(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    truth = planter.plant("tcp_retransmit", 100_000)
    holder = holder_of(scan(), planter.inode(truth["fd"]))
    assert holder.socket is not None
    waiting = {queue.name: queue.unread_bytes for queue in holder.socket.queues}
    assert waiting["retransmit"] > 0
    assert sum(waiting.values()) == truth["unsent_bytes"]


def test_pages_that_are_sent_without_a_copy_are_their_owners(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    """MSG_ZEROCOPY: the packets refer to the process's pages, which are not kernel memory."""
    truth = planter.plant("tcp_zerocopy", 200)
    holder = holder_of(scan(), planter.inode(truth["fd"]))
    assert holder.socket is not None
    assert sum(queue.unread_bytes for queue in holder.socket.queues) == truth["unsent_bytes"]
    user_bytes = sum(queue.user_bytes for queue in holder.socket.queues)
    assert user_bytes == pytest.approx(truth["user_bytes"], rel=0.02)  # a page may be in two packets, of two queues
    assert holder.pinned_bytes == 0


def test_what_was_sent_and_asked_about_waits_in_the_error_queue(
    planter: Planter, scan: Callable[[], SocketScan]
) -> None:
    truth = planter.plant("udp_error_queue", 30)
    holder = holder_of(scan(), planter.inode(truth["fd"]))
    queue = queue_of(holder, "error")
    assert (queue.packets, queue.unread_bytes, queue.complete) == (30, truth["bytes"], True)
    assert fds_of(holder) == {planter.pid: [truth["fd"]]}
    assert holder.unread_bytes == 0  # nothing that a read would return


def test_the_notice_that_pages_were_sent_waits_in_the_error_queue(
    planter: Planter, scan: Callable[[], SocketScan]
) -> None:
    """One notice covers any number of sends, and has no bytes."""
    truth = planter.plant("tcp_zerocopy_done", 10)
    holder = holder_of(scan(), planter.inode(truth["fd"]))
    queue = queue_of(holder, "error")
    assert queue.packets >= 1
    assert (queue.unread_bytes, queue.pinned_bytes, queue.complete) == (0, 0, True)
    assert queue.charge_bytes >= 512 * queue.packets


def test_segments_out_of_order(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    truth = planter.plant("tcp_out_of_order", 20)
    holder = holder_of(scan(), planter.inode(truth["fd"]))
    assert holder.unread_bytes == truth["unread_bytes"]
    queue = queue_of(holder, "outOfOrder")
    assert (queue.packets, queue.unread_bytes, queue.complete) == (20, 2_000, True)


def test_packets_for_a_socket_whose_owner_sleeps_with_its_lock(
    planter: Planter, scan: Callable[[], SocketScan]
) -> None:
    truth = planter.plant("tcp_backlog", 30)
    queue = queue_of(holder_of(scan(), planter.inode(truth["fd"])), "backlog")
    assert queue.packets > 0
    payload_bytes = queue.unread_bytes - TCP_HEADER_BYTES * queue.packets
    assert payload_bytes >= 10_000, "TCP's first window"
    assert payload_bytes % 1_000 == 0
    assert queue.charge_bytes > queue.unread_bytes


def test_a_socket_that_nobody_reads_is_stuck_and_one_that_is_read_is_not(
    planter: Planter, scan: Callable[[], SocketScan]
) -> None:
    inodes = {}
    for load, amount in (("udp_small", 10), ("unix_stream", 5), ("tcp_bulk", 100_000)):
        inodes[load] = planter.inode(planter.plant(load, amount)["fd"])
    first = scan()
    planter.plant("tcp_read_on", 10)
    last = scan()
    window_seconds = last.start_seconds - first.end_seconds
    assert holder_of(last, inodes["tcp_bulk"], first=first).stuck_seconds is None
    for load in ("udp_small", "unix_stream"):
        assert holder_of(last, inodes[load], first=first).stuck_seconds == pytest.approx(window_seconds)


LONE = ["udp_lone", "udp6_lone", "unix_lone", "unix_lone_seqpacket"]


@pytest.mark.parametrize("load", LONE)
def test_a_single_packet_that_nobody_reads_is_stuck(planter: Planter, scanner: SocketScanner, load: str) -> None:
    truth = planter.plant(load, 300)
    inode = planter.inode(truth["fd"])
    first = scanner.watch(scanner.scan())
    planter.plant("read_nothing", truth["fd"])
    last = scanner.scan()
    assert holder_of(last, inode, first=first).stuck_seconds == pytest.approx(last.start_seconds - first.end_seconds)


@pytest.mark.parametrize("load", LONE)
def test_single_packets_that_are_read_one_by_one_are_not_stuck(
    planter: Planter, scanner: SocketScanner, load: str
) -> None:
    """Each has the length and content of the previous one, and soon its memory: only reads distinguish them."""
    truth = planter.plant(load, 300)
    inode = planter.inode(truth["fd"])
    first = scanner.watch(scanner.scan())
    assert holder_of(first, inode).unread_packets == 1
    for _ in range(20):
        planter.plant("read_and_refill", truth["fd"], truth["sender_fd"], 300)
    holder = holder_of(scanner.scan(), inode, first=first)
    assert (holder.unread_packets, holder.unread_bytes) == (1, 300)
    assert holder.stuck_seconds is None


def test_a_single_packet_that_was_read_before_the_watch_started_is_not_stuck(
    planter: Planter, scanner: SocketScanner
) -> None:
    truth = planter.plant("udp_lone", 300)
    early = scanner.scan()
    planter.plant("read_fd", truth["fd"], 300)
    first = scanner.watch(early)
    scan = scanner.scan()
    address = next(int(row["socket"]) for row in early.sockets if row["inode"] == planter.inode(truth["fd"]))
    assert address in scan.read
    assert first.end_seconds > early.end_seconds


def test_a_block_in_two_sockets_is_counted_once_on_the_node(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    """A tap and a receiver with clones of the same datagrams keep the same blocks."""
    truth = planter.plant("packet_socket", 20)
    seen = scan()
    pages = [set(blocks_of(seen, planter.inode(truth[name]))["page"].tolist()) for name in ("fd", "udp_fd")]
    assert pages[0] == pages[1]
    assert len(pages[0]) >= 20
    orders = dict(zip(seen.blocks["page"].tolist(), seen.blocks["order"].tolist(), strict=True))
    assert seen.pinned_bytes == sum(PAGE_BYTES << order for order in orders.values())


def blocks_of(seen: SocketScan, inode: int) -> npt.NDArray[np.void]:
    """The blocks of the socket with this inode."""
    number = next(number for number, row in enumerate(seen.sockets) if row["inode"] == inode)
    return seen.blocks_of(number)


def kpageflags() -> Iterator[bytes]:
    with Path("/proc/kpageflags").open("rb", buffering=0) as file:
        while part := file.read(1 << 20):  # the kernel accepts only whole entries
            yield part


def blocks_in_kpageflags(order: int) -> int:
    """Compound blocks of an order without any other flag: memory that kernel code took from the buddy allocator."""
    head, tail = 1 << 15, 1 << 16
    flags = np.frombuffer(b"".join(kpageflags()), "<u8")
    first = np.flatnonzero(flags[: -(2 << order)] == head)
    first = first[flags[first + (1 << order)] != tail]
    return int(np.count_nonzero((flags[first + 1] == tail) & (flags[first + (1 << order) - 1] == tail)))


def test_there_are_as_many_more_blocks_of_that_order_in_kpageflags(scan: Callable[[], SocketScan]) -> None:
    """Other work on the machine allocates and frees such blocks too: such a round shows after the planter's end.

    The first round without such work is judged, with any result.
    """
    planted, moved = 4_000, []
    for _ in range(ROUNDS):
        with Planter() as planter:
            before = blocks_in_kpageflags(3)
            truth = planter.plant("tcp_small_messages", planted)
            during = blocks_in_kpageflags(3)
            orders = blocks_of(scan(), planter.inode(truth["fd"]))["order"]
        assert (orders == 3).sum() == pytest.approx(planted, rel=0.02)
        after = blocks_in_kpageflags(3)
        moved.append(abs(after - before))
        if moved[-1] <= FREED_TOLERANCE / 2 * planted:
            assert during - (before + after) / 2 == pytest.approx(planted, rel=0.02)
            return
    raise too_busy(f"{min(moved)} or more blocks of order 3 came or went by themselves in each of {ROUNDS} rounds")


def test_processes_are_named_as_in_the_proc_of_the_scans_own_pid_namespace() -> None:
    script = (
        "import os, socket\n"
        "from memdiag_node.kernel.btf import Btf\n"
        "from memdiag_node.sockets.scanner import SocketScanner\n"
        "a, b = socket.socketpair()\n"
        "a.send(b'x')\n"
        "with SocketScanner(btf=Btf.load()) as scanner:\n"
        "    scan = scanner.scan()\n"
        "row = next(row for row in scan.sockets if row['inode'] == os.fstat(b.fileno()).st_ino)\n"
        "assert scan.owners_of(int(row['socket'])) == [(os.getpid(), b.fileno())], scan.owners_of(int(row['socket']))\n"
        "print('pid', os.getpid())\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "pid 1\n"


@pytest.mark.parametrize(
    ("load", "amount"),
    [("tcp_bulk", 5_000), ("udp_small", 5), ("unix_stream", 3), ("packet_socket", 3), ("udp6_large", 3)],
)
def test_a_socket_of_another_network_namespace_is_found_without_any_fd(
    planter: Planter, scan: Callable[[], SocketScan], load: str, amount: int
) -> None:
    """Registered with io_uring, it is open without an fd: it is found in the namespace's hash tables."""
    truth = planter.plant(load, amount)
    inode = planter.plant("register_fd", truth["fd"])["inode"]
    holder = holder_of(scan(), inode)
    assert holder.unread_bytes == truth["unread_bytes"]
    assert holder.owners == []
    assert holder.unowned_reason.startswith("open, but not as an fd of a visible process: registered with io_uring")


@pytest.mark.parametrize(
    ("load", "named"), [("udp_lite", "UDP-Lite"), ("raw_icmp", "raw"), ("netlink_messages", "netlink")]
)
def test_what_is_not_seen_without_an_fd_is_reported(
    planter: Planter, scan: Callable[[], SocketScan], load: str, named: str
) -> None:
    fd = planter.plant(load, 5)["fd"]
    assert is_kept(scan(), planter.inode(fd))
    inode = planter.plant("register_fd", fd)["inode"]
    seen = scan()
    assert not is_kept(seen, inode)
    assert any(re.search(rf"\b{named}\b.* that no fd and no listener leads to", note) for note in seen.not_seen)


def test_a_vsock_socket(planter: Planter, scan: Callable[[], SocketScan]) -> None:
    """If the kernel has no transport within the machine (vsock_loopback), it can hold nothing."""
    truth = planter.plant("vsock", 10_000)
    with SocketSource(Btf.load()) as source:
        held = np.concatenate(list(source.held()))
        mine = held[(held["pid"] == planter.pid) & (held["fd"] == truth["fd"])]
        (described,) = source.describe(mine["socket"].astype("<u8"))
    assert (described["family"][0], described["local_number"][0]) == (socket.AF_VSOCK, truth["port"])
    seen = scan()
    inode = planter.inode(truth["fd"])
    if truth["unread_bytes"]:
        assert holder_of(seen, inode).unread_bytes == truth["unread_bytes"]
    else:
        assert not is_kept(seen, inode)


def test_a_closed_connection_with_data_to_send_is_found_in_another_network_namespace(
    planter: Planter, scan: Callable[[], SocketScan]
) -> None:
    truth = planter.plant("tcp_orphan", 500_000)
    holder = holder_at(scan(), truth["port"])
    assert holder.owners == []
    assert holder.unowned_reason.startswith("orphaned")
    assert holder.socket is not None
    assert holder.socket.network_namespace == planter.network_namespace()
    waiting = sum(queue.unread_bytes for queue in holder.socket.queues if queue.name in ("write", "retransmit"))
    assert waiting == truth["unsent_bytes"]
