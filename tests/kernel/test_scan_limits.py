"""What a scan reports if queues change while it runs, and if its time or memory runs out."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from memdiag_node.holders.registry import other_holders
from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.coverage import coverage_of
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.sockets.source import SocketSource
from memdiag_node.time_budget import Stop
from planted import traffic
from planted.sockets.planter import Planter
from support.sockets import holder_layout, holder_of, holders_of, owner_of, queue_of


class Clock:
    """A clock that the scan reads after every few runs of the walk; each time it calls `at_call`."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.at_call: Callable[[int], object] = lambda _: None

    def __call__(self) -> float:
        self.calls += 1
        self.at_call(self.calls)
        return self.seconds


@pytest.fixture(scope="module")
def scanner_and_clock(btf: Btf) -> Iterator[tuple[SocketScanner, Clock]]:
    clock = Clock()
    with SocketScanner(btf=btf, stop=Stop(clock=clock)) as scanner:
        yield scanner, clock


@pytest.fixture
def clock(scanner_and_clock: tuple[SocketScanner, Clock]) -> Iterator[Clock]:
    clock = scanner_and_clock[1]
    yield clock
    clock.seconds, clock.at_call = 0.0, lambda _: None


@pytest.fixture
def scanner(scanner_and_clock: tuple[SocketScanner, Clock]) -> SocketScanner:
    return scanner_and_clock[0]


FAMILIES = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK}

MOVING = [("udp_small", 3_000, 64), ("tcp_small_messages", 3_000, 17 * 64), ("unix_stream", 400, 30_000)]
"""A load walked in many pieces, and how much to read to remove a packet: TCP has merged up to 17 messages."""


@pytest.mark.parametrize("load", MOVING)
def test_a_queue_that_changes_during_every_walk_reports_what_is_missing(
    scanner: SocketScanner, clock: Clock, planter: Planter, load: tuple[str, int, int]
) -> None:
    name, amount, read_bytes = load
    truth = planter.plant(name, amount)
    inode = planter.inode(truth["fd"])
    whole = holder_of(scanner.scan(), inode)
    clock.at_call = lambda _: planter.plant("read_fd", truth["fd"], read_bytes)
    holder = holder_of(scanner.scan(), inode)
    assert holder.socket is not None
    queue = max(holder.socket.queues, key=lambda queue: queue.packets)  # UDP's reader has moved all to its own
    assert not queue.complete
    assert queue.missing.startswith("it changed during every walk")
    assert 0 < queue.packets <= whole.unread_packets
    assert holder.pinned_bytes <= whole.pinned_bytes


@pytest.mark.parametrize("load", MOVING)
def test_a_queue_that_changed_for_a_while_is_walked_again(
    scanner: SocketScanner, clock: Clock, planter: Planter, load: tuple[str, int, int]
) -> None:
    name, amount, read_bytes = load
    truth = planter.plant(name, amount)
    inode = planter.inode(truth["fd"])
    begin = clock.calls
    whole = holder_of(scanner.scan(), inode)
    undisturbed_calls = clock.calls - begin
    read: list[int] = []

    def disturb(call: int) -> None:
        if call <= last_call:
            read.append(planter.plant("read_fd", truth["fd"], read_bytes)["read_bytes"])

    clock.at_call = disturb
    for calls in range(3, 100, 3):  # longer each time, until it overlaps the walk of that queue, which is repeated
        begin, last_call = clock.calls, clock.calls + calls
        holder = holder_of(scanner.scan(), inode)
        if clock.calls - begin >= undisturbed_calls + 4:
            break
    else:
        pytest.fail("no walk was repeated")
    assert holder.socket is not None
    assert all(queue.complete for queue in holder.socket.queues)
    assert holder.unread_packets < whole.unread_packets
    assert holder.unread_bytes == whole.unread_bytes - (200 * len(read) if name == "udp_small" else sum(read))


def test_a_pipe_that_keeps_changing_is_reported(scanner: SocketScanner, clock: Clock, planter: Planter) -> None:
    truth = planter.plant("pipe", 256)
    scan = scanner.scan()
    assert not any("pipes" in note for note in other_holders(scanner, scan, owner_of, holder_layout())[1])
    clock.at_call = lambda _: planter.plant("read_fd", truth["fds"][0], 4_096)
    _, not_seen = other_holders(scanner, scan, owner_of, holder_layout())
    assert "1 pipes that kept changing" in coverage_of(scan, not_seen).not_seen


def test_under_heavy_traffic_no_figure_is_wrong(scanner: SocketScanner) -> None:
    """Connections come and go, datagrams of one size are read and sent as fast as possible, during the scans."""
    with subprocess.Popen([sys.executable, traffic.__file__, "moving"], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            said = child.stdout.readline().split()
            assert said[0] == "ready"
            inode, waiting, size = map(int, said[1:])
            for _ in range(30):
                scan = scanner.scan()
                assert set(scan.sockets["family"].tolist()) <= FAMILIES  # otherwise freed memory was taken for a socket
                described = holder_of(scan, inode).socket
                assert described is not None
                for queue in described.queues:
                    assert queue.packets <= waiting
                    assert queue.unread_bytes == queue.packets * size or not queue.complete
                    assert queue.complete or "packets seen" in queue.missing
                if all(queue.complete for queue in described.queues):
                    assert waiting - 1 <= sum(queue.packets for queue in described.queues) <= waiting
        finally:
            child.kill()


def test_an_invalid_address_hides_no_other_socket(btf: Btf, planter: Planter) -> None:
    """A walk in a race may find an empty pointer in place of a socket's."""
    inode = planter.inode(planter.plant("udp_small", 1)["fd"])
    with SocketSource(btf) as source:
        held = np.unique(np.concatenate([piece["socket"] for piece in source.held()]))
        (described,) = source.describe(np.concatenate([np.zeros(1, "<u8"), held]))
    assert inode in described["inode"]
    assert 0 not in described["socket"]


def test_when_time_runs_out_the_largest_queues_were_reached(
    scanner: SocketScanner, clock: Clock, planter: Planter
) -> None:
    small = [planter.inode(planter.plant("udp_small", 200)["fd"]) for _ in range(20)]
    large = planter.inode(planter.plant("udp_small", 20_000)["fd"])

    def run_out(call: int) -> None:
        clock.seconds = 1_000_000.0 * (call > last_call)

    clock.at_call = run_out
    for calls in range(10, 1_000, 10):  # more time each round, until it is enough for the first queue
        clock.seconds, last_call = 0.0, clock.calls + calls
        scan = scanner.scan()
        holding = {holder.socket.inode for holder in holders_of(scan) if holder.socket}
        if large in holding:
            break
    assert holding.isdisjoint(small)
    queue = queue_of(holder_of(scan, large), "receive")
    assert 0 < queue.packets < 20_000
    assert queue.missing.startswith("the scan's time ran out before its end")
    coverage = coverage_of(scan)
    assert coverage.incomplete_queues >= 1 + len(small)
    (note,) = [note for note in coverage.not_seen if "time did not reach" in note]
    assert int(note.split()[3]) >= 1 + len(small), note
    assert coverage.queues >= 1 + len(small)


def test_without_any_time_sockets_are_counted_and_everything_is_reported(btf: Btf, planter: Planter) -> None:
    planter.plant("many_udp", 6_000)
    with SocketScanner(btf=btf, budget_seconds=0) as scanner:
        scan = scanner.scan()
        _, not_seen = other_holders(scanner, scan, owner_of, holder_layout())
    coverage = coverage_of(scan, not_seen)
    (note,) = [note for note in coverage.not_seen if "sockets and" in note]
    words = note.split()
    assert coverage.sockets + int(words[0]) >= 6_000
    assert (coverage.sockets_not_reached, coverage.queues_not_reached) == (int(words[0]), int(words[3]))
    assert int(words[0]) >= 3_000
    assert int(words[3]) + coverage.packets >= coverage.sockets * 0.9
    assert "any sockets of other network namespaces that no fd and no listener leads to" in coverage.not_seen
    assert sum(holder.unread_packets for holder in holders_of(scan)) <= 1_024


def test_blocks_beyond_the_bound_are_counted_not_kept(btf: Btf, planter: Planter) -> None:
    inode = planter.inode(planter.plant("tcp_small_messages", 2_000)["fd"])
    with SocketScanner(btf=btf) as unbound, SocketScanner(btf=btf, max_blocks=500) as bound:
        whole = queue_of(holder_of(unbound.scan(), inode), "receive")
        scan = bound.scan()
    assert len(scan.blocks) <= 500
    assert any("blocks beyond the 500 that this scan may keep" in note for note in coverage_of(scan).not_seen)
    assert coverage_of(scan).blocks_not_kept >= 2_000 - 500
    queue = queue_of(holder_of(scan, inode), "receive")
    assert (queue.packets, queue.complete) == (whole.packets, False)
    assert "could not be read or kept" in queue.missing


def test_fds_beyond_the_bound_are_counted_not_kept(btf: Btf, planter: Planter) -> None:
    planter.plant("many_udp", 2_000)
    with SocketScanner(btf=btf, max_sightings=500) as scanner:
        scan = scanner.scan()
    assert len(scan.owners) + len(scan.files) <= 500
    coverage = coverage_of(scan)
    assert not coverage.lists_every_fd  # so nobody says that there is no leak
    assert any(note.startswith("what only ") and "fds lead to" in note for note in coverage.not_seen)
