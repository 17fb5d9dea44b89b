"""Page pools under traffic through a network driver: veth with an XDP program copies each packet into its pool."""

import os
import socket
import time

import pytest

from memdiag_api.evidence import LEAK_CHECKS, Check, Evidence, Holder, HolderKind
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.time_budget import Stop
from planted.memory import MIB
from planted.veth_xdp import INTERFACE, XdpReceiver
from support.machine_noise import Noise
from support.sockets import holder_of, other_holders_of

DATAGRAMS, STREAM_BYTES = 20_000, 20 * MIB
CACHED_BYTES = 2 * MIB  # veth: 256 pages in the pool's ring, 128 in its cache, and some still with the driver
SETTLE_SECONDS = 60.0
WINDOW_SECONDS = 3.0


def look(scanner: SocketScanner, child: XdpReceiver, fd: int) -> tuple[Holder, Holder]:
    """The socket behind an fd of the child, and the pool of its interface."""
    scan = scanner.scan()
    name = f" of {INTERFACE}, interface {child.interface_index} in network namespace {child.network_namespace}"
    (pool,) = [one for one in other_holders_of(scanner, scan) if name in one.description]
    return holder_of(scan, child.inode(fd)), pool


def free_deferred_packets() -> None:
    """Make each CPU free the packets that others have left to it, which it does when it receives something.

    A packet that was read on another CPU than it arrived on is handed back to that CPU (net/core/skbuff.c,
    skb_attempt_defer_free): until then it keeps its pages, up to 17 each. On a busy machine the reader changes CPUs.
    """
    allowed = os.sched_getaffinity(0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", 0))
            for cpu in allowed:
                os.sched_setaffinity(0, {cpu})
                sender.sendto(b"any", sender.getsockname())
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(("load", "amount"), [("datagrams", DATAGRAMS), ("stream", STREAM_BYTES)])
def test_what_waits_in_the_socket_is_the_sockets_and_the_rest_the_pools(
    scanner: SocketScanner, load: str, amount: int
) -> None:
    with XdpReceiver() as child:
        truth = child.receive(load, amount)
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:  # the last packets may still be in transit
            free_deferred_packets()
            held, pool = look(scanner, child, truth["fd"])
            settled = held.unread_bytes == truth["unread_bytes"] and pool.pinned_bytes <= CACHED_BYTES
            if settled or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    assert held.unread_bytes == truth["unread_bytes"]
    assert held.pinned_bytes >= held.unread_bytes
    assert pool.kind is HolderKind.PAGE_POOL
    assert pool.charge_bytes - pool.pinned_bytes == held.pinned_bytes
    assert pool.pinned_bytes <= CACHED_BYTES


def test_when_the_socket_is_read_the_pool_returns_its_pages(scanner: SocketScanner) -> None:
    with XdpReceiver() as child:
        fd = child.receive("stream", STREAM_BYTES)["fd"]
        _, full = look(scanner, child, fd)
        assert child.receive("drain", fd) == {"read_bytes": STREAM_BYTES}
        # An empty socket leads to no pool; one with a few more bytes does.
        child.receive("datagrams", 2)
        name = f" of {INTERFACE}, interface {child.interface_index} "
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            free_deferred_packets()
            found = other_holders_of(scanner, scanner.scan())
            (empty,) = [one for one in found if name in one.description]
            if empty.charge_bytes <= CACHED_BYTES or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    assert full.charge_bytes >= STREAM_BYTES
    assert empty.charge_bytes <= CACHED_BYTES


def window_with_fragments(checks: tuple[Check, ...]) -> Evidence:
    """The result of a window with packets that wait in no socket: fragments whose rest never arrives."""
    with XdpReceiver() as child:

        def receive_when_tracing(progress: str) -> None:
            if progress.startswith("tracing"):
                child.receive("fragments", 2 * DATAGRAMS)

        settings = Settings(run_id="pools", node_name="here", checks=checks, duration_seconds=WINDOW_SECONDS)
        return measure(settings, roots=HostRoots(), stop=Stop(), progress=receive_when_tracing)


@pytest.fixture(scope="module")
def evidence(noise_before: Noise) -> Evidence:
    """Without the census of packets, only the trace leads to them."""
    assert noise_before
    return window_with_fragments(LEAK_CHECKS)


def pool_of(evidence: Evidence) -> int:
    """The pool's index among the holders."""
    (index,) = [number for number, one in enumerate(evidence.holders) if f" of {INTERFACE}," in one.description]
    return index


def test_a_pool_that_only_the_trace_leads_to_is_found_and_named(evidence: Evidence) -> None:
    pool = evidence.holders[pool_of(evidence)]
    assert pool.kind is HolderKind.PAGE_POOL
    assert pool.pinned_bytes == pytest.approx(DATAGRAMS * 4096, rel=0.05)  # two packets share a page


def test_pages_that_a_pool_took_in_the_window_are_its_own_and_counted_once(evidence: Evidence, noise: Noise) -> None:
    """The stack's blocks are found in the pool, so the ledger does not also list them without a holder."""
    assert evidence.ledger is not None
    assert evidence.breakdown is not None
    stack = next(one for one in evidence.stacks if any("page_pool_alloc" in frame for frame in one.frames))
    assert stack.held_by[0].holder == pool_of(evidence)
    assert stack.held_by[0].share > 0.95
    pool = evidence.holders[pool_of(evidence)]
    assert evidence.stacks[pool.filled_by[0].stack] == stack
    assert pool.filled_by[0].share > 0.9
    lines = {line.name: line.size_bytes for line in evidence.ledger.lines}
    assert lines["PagePools"] >= pool.pinned_bytes
    tolerated_bytes = noise.tolerated_bytes(0.1 * pool.pinned_bytes)
    assert lines["TracedWithoutHolder"] <= tolerated_bytes, str(noise)
    growth_bytes = evidence.breakdown.alloc_page_change_bytes
    assert growth_bytes == pytest.approx(pool.pinned_bytes, abs=tolerated_bytes), str(noise)


def test_with_the_census_the_packets_are_named_and_have_the_pages() -> None:
    evidence = window_with_fragments(tuple(Check))
    named = [one for one in evidence.holders if INTERFACE in one.description]
    (waiting,) = [one for one in named if one.kind is HolderKind.PACKET_QUEUE]
    assert "in IP reassembly" in waiting.description
    assert waiting.pinned_bytes == pytest.approx(DATAGRAMS * 4096, rel=0.05)
    assert sum(one.pinned_bytes for one in named if one.kind is HolderKind.PAGE_POOL) <= CACHED_BYTES
