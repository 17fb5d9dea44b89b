"""The rules about sockets on real ones: who is named, who is not, and what comes back when the process ends."""

import statistics
import time

import pytest

from memdiag_api.findings import FindingKind
from memdiag_node.breakdown.classes import breakdown
from memdiag_node.breakdown.reading import take_readings
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.freed import exclusive_bytes
from memdiag_node.findings.slow_reader import slow_readers
from memdiag_node.findings.unsent_data import unsent_data
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.sockets.holders import socket_holdings
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.common import MIB
from planted.sockets.planter import Planter
from support.holdings import GIB, situation_of
from support.machine_noise import change_by, too_busy
from support.sockets import owner_of

WINDOW_SECONDS = 3
FREED_TOLERANCE = 0.1
QUIET_ROUNDS, ROUNDS = 3, 20


def drafts_of(scanner: SocketScanner, pid: int) -> list[Draft]:
    """The findings about the sockets of one process, on a node of 16 GiB."""
    first = scanner.watch(scanner.scan())
    time.sleep(WINDOW_SECONDS)
    holdings = socket_holdings(first, scanner.scan(), owner_of)
    situation = situation_of(*holdings, mem_total_bytes=16 * GIB)
    left = {index for index, one in enumerate(holdings) if (one.holder.stuck_seconds or 0) < 1}
    drafts = [*slow_readers(situation, left), *unsent_data(situation, left)]
    return [one for one in drafts if one.owner and one.owner.pid == pid]


@pytest.mark.parametrize(("load", "amount"), [("tcp_slow_reader", 1_000), ("udp_slow_reader", 60_000)])
def test_a_slow_reader_is_named(planter: Planter, scanner: SocketScanner, load: str, amount: int) -> None:
    truth = planter.plant(load, amount, 60)
    (draft,) = drafts_of(scanner, planter.pid)
    assert draft.kind is FindingKind.SLOW_READER
    assert draft.owner is not None
    assert draft.owner.fds == [truth["fd"]]
    assert "B/s, with" in draft.sentence
    assert draft.freed_by is not None
    assert draft.freed_by.size_bytes is not None
    assert draft.freed_by.size_bytes > 20 * MIB


def test_a_sender_whose_peer_does_not_read_is_named_with_the_peer(planter: Planter, scanner: SocketScanner) -> None:
    truth = planter.plant("tcp_write_queue", 32 * MIB)
    (draft,) = drafts_of(scanner, planter.pid)
    assert draft.kind is FindingKind.UNSENT_DATA
    assert draft.owner is not None
    assert draft.owner.fds == [truth["fd"]]
    assert "the peers do not read: 127.0.0.1:" in draft.sentence
    assert any(f"[{planter.pid}] fd {truth['receiver_fd']} has" in reason for reason in draft.reasons)


@pytest.mark.parametrize(
    ("load", "amount"),
    [("tcp_transfer", 64 * MIB), ("tcp_steady_reader", 10_000_000), ("tcp_keepalive", 600)],
)
def test_healthy_connections_are_not_named(planter: Planter, scanner: SocketScanner, load: str, amount: int) -> None:
    planter.plant(load, amount)
    time.sleep(1)
    assert drafts_of(scanner, planter.pid) == []


def kernel_bytes() -> int:
    """Allocpage and slab memory: what is freed with a socket, and is independent of the machine's processes."""
    found = breakdown(take_readings(HostRoots()))
    return sum(line.size_bytes for line in found.classes if line.name in ("AllocPage", "SUnreclaim"))


@pytest.mark.parametrize(
    ("load", "amount"),
    [("tcp_small_messages", 4_000), ("udp_small", 150_000), ("udp6_large", 3_000), ("tcp_write_queue", 32 * MIB)],
)
def test_what_comes_back_when_the_process_ends(scanner: SocketScanner, load: str, amount: int) -> None:
    """Order-3 blocks, heads in slab, and blocks that two queues share: within a tenth of what the node gets back.

    Rounds in which kernel memory changes by itself are not used; the median of the others is judged, once.
    """
    errors: list[float] = []
    for _ in range(ROUNDS):
        with Planter() as planter:
            planter.plant(load, amount)
            holdings = socket_holdings(None, scanner.scan(), owner_of, limit=64)
            group = [
                index
                for index, one in enumerate(holdings)
                if any(owner.pid == planter.pid for owner in one.holder.owners)
            ]
            expected_bytes = exclusive_bytes(group, holdings, page_bytes=4096)
            quiet_bytes = FREED_TOLERANCE / 4 * expected_bytes
            change_bytes = change_by(planter.kill, kernel_bytes, quiet_bytes=quiet_bytes)
        errors += [] if change_bytes is None else [-change_bytes / expected_bytes - 1]
        if len(errors) == QUIET_ROUNDS:
            break
    else:
        raise too_busy(f"kernel memory moved too much in most of {ROUNDS} rounds")
    assert abs(statistics.median(errors)) <= FREED_TOLERANCE, errors
