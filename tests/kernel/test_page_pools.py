"""Page pools: pages that wait in a socket, and the devices whose lists of pools are read."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.holders.page_pools import network_devices, pools_of
from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.common import PAGE_BYTES
from planted.sockets.planter import Planter
from support.bpf import XDP_PASS, receive
from support.sockets import holder_layout, holder_of, other_holders_of

PACKETS = 300
POOL_PAGES = 64  # the number of pages that a pool of that kind keeps: the packets received at once
GIVING_BACK_SECONDS = 10.0
ETHERTYPE = 0x88B5  # IEEE 802, for local experiments: nothing else takes these packets
PACKET = bytes(12) + ETHERTYPE.to_bytes(2, "big") + b"x" * 1000
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h


@pytest.fixture(scope="module")
def scanner() -> Iterator[SocketScanner]:
    # The search for the namespaces starts at any process's socket: on an idle machine there may be no other.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM), SocketScanner(btf=Btf.load()) as scanner:
        yield scanner


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        receiver.bind(("lo", ETHERTYPE))
        receiver.settimeout(10)
        yield receiver


def pools(scanner: SocketScanner) -> list[Holder]:
    return [holder for holder in other_holders_of(scanner, scanner.scan()) if holder.kind is HolderKind.PAGE_POOL]


def in_others(pool: Holder) -> int:
    """Bytes of a pool in other holders."""
    return pool.charge_bytes - pool.pinned_bytes


def test_pages_in_a_socket_lead_to_their_pool_and_count_once(scanner: SocketScanner, receiver: socket.socket) -> None:
    """The pool of the planted packets has as many pages out as packets wait, and all of them are the socket's."""
    before = len(pools(scanner))
    receive(PACKET, PACKETS, XDP_PASS)
    held = holder_of(scanner.scan(), os.fstat(receiver.fileno()).st_ino)
    assert (held.unread_packets, held.pinned_bytes) == (PACKETS, PACKETS * PAGE_BYTES)
    found = pools(scanner)
    assert len(found) == before + 1
    (pool,) = [one for one in found if in_others(one) == PACKETS * PAGE_BYTES]
    assert (pool.charge_bytes, pool.pinned_bytes, pool.owners) == (PACKETS * PAGE_BYTES, 0, [])


def test_a_page_that_was_read_is_the_pools_until_it_returns_it(scanner: SocketScanner, receiver: socket.socket) -> None:
    """The pool here is being shut down: the kernel returns its pages, once each second.

    Of the 100 pages that were read it kept as many as it may; the others were returned immediately.
    """
    receive(PACKET, PACKETS, XDP_PASS)
    for _ in range(PACKETS // 3):
        assert receiver.recv(2 * len(PACKET)) == PACKET
    queued_bytes = (PACKETS - PACKETS // 3) * PAGE_BYTES
    deadline = time.monotonic() + GIVING_BACK_SECONDS
    while True:
        (pool,) = [one for one in pools(scanner) if in_others(one) == queued_bytes]
        assert pool.pinned_bytes in {0, POOL_PAGES * PAGE_BYTES}
        if not pool.pinned_bytes or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert pool.pinned_bytes == 0


def test_devices_of_every_network_namespace_are_found(scanner: SocketScanner) -> None:
    with Planter() as planter:
        commands = ["nsenter", f"--net=/proc/{planter.pid}/ns/net", "ip"]
        subprocess.run([*commands, "link", "add", "pool-a", "type", "veth", "peer", "name", "pool-b"], check=True)
        memory, at = scanner.source.memory, holder_layout()
        devices = network_devices(memory, at, scanner.scan())
        indices = memory.peek(devices + np.uint64(at["DEVICE_INDEX"])) & np.uint64(0xFFFFFFFF)
        words = memory.peek(devices + np.uint64(at["DEVICE_NAME"]))
    names = {word.tobytes().split(b"\0")[0].decode() for word in words}
    assert {"pool-a", "pool-b"} <= names
    here = {int((path / "ifindex").read_text()) for path in Path("/sys/class/net").iterdir() if path.is_dir()}
    assert here <= set(indices.tolist())


def test_what_cannot_be_read_is_zero_and_hides_nothing_after_it(scanner: SocketScanner) -> None:
    memory = scanner.source.memory
    readable = scanner.scan().owners["socket"][:1] + np.uint64(holder_layout()["SOCK_NET"])
    (net,) = memory.peek(readable)
    assert net != 0
    nowhere = np.array([0, 1, 0xDEAD_0000_0000_0000, 2**64 - 4], "<u8")
    addresses = np.tile(np.concatenate([nowhere, readable]), 300)  # more than fit into one run
    assert memory.peek(addresses).tolist() == [0, 0, 0, 0, net] * 300


def test_where_pages_are_not_signed_only_a_listed_pool_counts(scanner: SocketScanner, receiver: socket.socket) -> None:
    receive(PACKET, PACKETS, XDP_PASS)
    memory, at = scanner.source.memory, holder_layout()
    pages, none = np.unique(scanner.scan().blocks["page"]), np.empty(0, "<u8")
    signed = pools_of(memory, at, pages, none)
    assert np.count_nonzero(signed) >= PACKETS
    unsigned = {name: value for name, value in at.items() if name != "HAS_PAGE_SIGNATURE"}
    assert pools_of(memory, unsigned, pages, np.unique(signed[signed != 0])).tolist() == signed.tolist()
    assert not pools_of(memory, unsigned, pages, none).any()
