"""Sockets that the census of slabs finds, in private network namespaces, against the kernel's own tables."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.census.networks.sockets import fields, read_sockets, referred_to
from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.coverage import coverage_of
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.sockets.source import HAS_FILE
from planted.sockets.planter import Planter
from support.network_namespaces import connections_without_inode, sockets_in_tables, sockets_of_fds
from support.slab_census import take_slab_census
from support.sockets import fds_of, holder_at, holder_of, is_kept

NAMESPACES = 3
LOADS = (
    *("tcp_bulk", "tcp6_bulk", "tcp_finished", "mptcp_partly_read", "udp_small", "udp6_large", "udp_lite", "udp6_lite"),
    *("unix_stream", "unix_seqpacket", "unix_datagram", "raw_icmp", "raw6_icmp", "raw_udp", "raw_tcp"),
    *("netlink_messages", "packet_socket", "tcp_unaccepted", "unix_unaccepted", "vsock"),
)
FAMILIES = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK}
INET = (socket.AF_INET, socket.AF_INET6)
WITHOUT_FD = "that no fd and no listener leads to"


@pytest.fixture(scope="module")
def at(btf: Btf) -> dict[str, int]:
    return fields(btf)


@pytest.fixture
def planters() -> Iterator[list[Planter]]:
    with ExitStack() as kept:
        yield [kept.enter_context(Planter()) for _ in range(NAMESPACES)]


def addresses(scanner: SocketScanner, btf: Btf, at: dict[str, int]) -> npt.NDArray[np.uint64]:
    return referred_to(read_sockets(take_slab_census(scanner.source.memory, btf), at))


def test_every_socket_of_every_namespace_is_found_once(
    scanner: SocketScanner, btf: Btf, at: dict[str, int], planters: list[Planter]
) -> None:
    """What is found beyond the tables and fds belongs to the kernel: it has no file."""
    for planter in planters:
        for load in LOADS:
            planter.plant(load, 5)
    found = addresses(scanner, btf, at)
    assert len(np.unique(found)) == len(found)
    described = np.concatenate(list(scanner.source.describe(found)))
    for planter in planters:
        mine = described[described["netns"] == planter.network_namespace()]
        # A connection of MPTCP and those of TCP below it share a struct socket.
        times = Counter(zip(mine["inode"].tolist(), mine["protocol"].tolist(), strict=True))
        listed = {*sockets_in_tables(planter.pid), *sockets_of_fds(planter.pid)}
        assert not listed - {inode for inode, _ in times}
        assert {count for (inode, _), count in times.items() if inode in listed} == {1}
        assert set(mine["inode"][mine["flags"] & HAS_FILE != 0].tolist()) <= listed
        assert len(listed) >= len(LOADS)
        is_tcp = (
            np.isin(mine["family"], INET)
            & (mine["protocol"] == socket.IPPROTO_TCP)
            & (mine["type"] == socket.SOCK_STREAM)
        )
        unaccepted = connections_without_inode(planter.pid)
        assert int((is_tcp & (mine["inode"] == 0)).sum()) == unaccepted > 0


@pytest.mark.parametrize("load", ["udp_lite", "udp6_lite", "raw_icmp", "raw6_icmp", "netlink_messages", "vsock"])
def test_what_no_fd_and_no_table_leads_to_is_found_with_the_census(
    scanner: SocketScanner, btf: Btf, at: dict[str, int], planter: Planter, load: str
) -> None:
    """Registered with io_uring, a socket is open without an fd."""
    truth = planter.plant(load, 5)
    inode = planter.plant("register_fd", truth["fd"])["inode"]
    found = addresses(scanner, btf, at)
    described = np.concatenate(list(scanner.source.describe(found)))
    assert described["inode"].tolist().count(inode) == 1
    if not truth["unread_bytes"]:
        return  # a vsock socket on a kernel without a transport within the machine: a scan does not keep it
    assert not is_kept(scanner.scan(), inode)
    holder = holder_of(scanner.scan(found, extra_is_whole=True), inode)
    assert (holder.unread_bytes, holder.owners) == (truth["unread_bytes"], [])
    assert holder.unowned_reason.startswith("open, but not as an fd of a visible process")


def test_the_owner_of_a_socket_is_the_same_with_the_census(
    scanner: SocketScanner, btf: Btf, at: dict[str, int], planter: Planter
) -> None:
    plain, flying, waiting = (planter.plant(load, 5) for load in ("udp_small", "unix_in_flight", "tcp_unaccepted"))
    scan = scanner.scan(addresses(scanner, btf, at), extra_is_whole=True)
    assert fds_of(holder_of(scan, planter.inode(plain["fd"]))) == {planter.pid: [plain["fd"]]}
    in_flight = holder_of(scan, flying["inode"])
    assert in_flight.unowned_reason.startswith("in flight")
    assert fds_of(in_flight) == {planter.pid: [flying["carrier_fd"]]}
    unaccepted = holder_at(scan, waiting["port"], waiting["remote_port"])
    assert unaccepted.unowned_reason.startswith("not accepted yet")
    assert fds_of(unaccepted) == {planter.pid: [waiting["fd"]]}


def test_an_orphan_is_reported_once(scanner: SocketScanner, btf: Btf, at: dict[str, int], planter: Planter) -> None:
    truth = planter.plant("tcp_orphan", 500_000)
    holder = holder_at(scanner.scan(addresses(scanner, btf, at)), truth["port"])
    assert holder.unowned_reason.startswith("orphaned: closed by its process, kept by the kernel until the connection")
    assert holder.owners == []


def test_the_coverage_shrinks_to_what_is_unseen(scanner: SocketScanner, btf: Btf, at: dict[str, int]) -> None:
    found = addresses(scanner, btf, at)
    for scan, expected in (
        (scanner.scan(), True),
        (scanner.scan(found), True),  # of a sample of the slabs
        (scanner.scan(found, extra_is_whole=True), False),
    ):
        assert any(WITHOUT_FD in note for note in coverage_of(scan).not_seen) == expected


def test_an_address_of_something_else_is_skipped(scanner: SocketScanner, btf: Btf, planter: Planter) -> None:
    inode = planter.inode(planter.plant("udp_small", 5)["fd"])
    census = take_slab_census(scanner.source.memory, btf)
    files = census.objects(census.named("filp")[0])
    others = np.concatenate([np.array([0, 1, scanner.source.memory.own_net], "<u8"), files])
    before, with_others = scanner.scan(), scanner.scan(others)
    assert holder_of(with_others, inode).unread_packets == 5
    assert set(with_others.sockets["family"].tolist()) <= set(before.sockets["family"].tolist()) | FAMILIES
    assert not set(with_others.sockets["socket"].tolist()) & set(others.tolist())
