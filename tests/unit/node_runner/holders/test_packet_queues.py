"""Whose packets wait outside of socket queues."""

from dataclasses import replace

import numpy as np
import pytest

from memdiag_api.evidence import Owner
from memdiag_node.census.findings import ObjectFindings
from memdiag_node.census.networks.namespaces import NAMESPACE_DTYPE, Namespaces
from memdiag_node.census.networks.sockets import SOCKET_DTYPE, CensusSockets
from memdiag_node.census.packets.group import PacketGroup
from memdiag_node.census.packets.holdings import GroupOwners
from memdiag_node.census.packets.place import PROTOCOL_PLACES, Place
from memdiag_node.census.packets.verdict_queues import LISTENER_DTYPE, VerdictQueues
from memdiag_node.census.slab_caches.slab_caches import SlabFigures
from memdiag_node.holders.packet_queues import PacketOwners
from memdiag_node.holding import PINNED_DTYPE
from memdiag_node.procfs.meminfo import MemInfo
from memdiag_node.procfs.nfnetlink_queue import VerdictQueue
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.sightings import OWNER_DTYPE
from support.socket_scans import process, scan_of

HOST, POD, EMPTY, UNKNOWN = 1, 2, 3, 4
NETWORK = {HOST: 0x1000, POD: 0x2000, EMPTY: 0x3000}
FIRST_PID, PROCESSES = 70, 5
LISTENER, SECOND, OTHER, SENDER, CLOSED = 0x100, 0x200, 0x300, 0x400, 0x500
FDS = [(LISTENER, 71, 3), (SECOND, 72, 4), (OTHER, 73, 5), (SENDER, 74, 6), (SENDER, 75, 9)]
VERDICTS = VerdictQueues(
    {POD: [VerdictQueue(7, 71, 200), VerdictQueue(8, 72, 0)]},
    np.array(
        [(LISTENER, NETWORK[POD], 71), (SECOND, NETWORK[POD], 72), (OTHER, NETWORK[HOST], 71)],
        LISTENER_DTYPE,
    ),
    is_whole=True,
)


def scan() -> SocketScan:
    return replace(scan_of({}, []), owners=np.array(FDS, OWNER_DTYPE))


def findings(verdicts: VerdictQueues | None = VERDICTS) -> ObjectFindings:
    table = np.zeros(3, NAMESPACE_DTYPE)
    table["inode"], table["network"] = list(NETWORK), list(NETWORK.values())
    table["is_initial"] = [1, 0, 0]
    table["processes"], table["first_pid"] = [90, PROCESSES, 0], [1, FIRST_PID, 0]
    sockets = CensusSockets(np.empty(0, SOCKET_DTYPE), {}, {}, is_whole=True)
    namespaces = Namespaces(table, [[], [], []], sockets, sampled_share=1)
    meminfo, slab = MemInfo.__new__(MemInfo), SlabFigures.__new__(SlabFigures)  # neither is read here
    return ObjectFindings(meminfo=meminfo, slab=slab, namespaces=namespaces, verdict_queues=verdicts)


def group(place: Place, network_namespace: int, socket: int = 0) -> PacketGroup:
    return PacketGroup(
        place, 200, 200, 0, np.empty(0, PINNED_DTYPE), 0, network_namespace=network_namespace, socket=socket
    )


def owners(one: PacketGroup, verdicts: VerdictQueues | None = VERDICTS, seen: SocketScan | None = None) -> GroupOwners:
    return PacketOwners(seen or scan(), findings(verdicts), process).of(one)


def fds(found: GroupOwners) -> list[tuple[int, list[int]]]:
    return [(one.pid, one.fds) for one in found.processes]


def test_the_listener_of_the_queue_with_packets_owns_them() -> None:
    found = owners(group(Place.NETFILTER, POD))
    assert (fds(found), found.total, found.queues) == ([(71, [3])], 1, (7,))


def test_a_port_id_is_that_of_its_own_namespace() -> None:
    verdicts = replace(VERDICTS, queues={HOST: [VerdictQueue(9, 71, 1)]})
    found = owners(group(Place.NETFILTER, HOST), verdicts)
    assert (fds(found), found.queues) == ([(73, [5])], (9,))


def test_without_the_queues_the_only_process_with_a_socket_of_netfilter_owns_them() -> None:
    verdicts = replace(VERDICTS, queues={})
    found = owners(group(Place.NETFILTER, HOST), verdicts)
    assert (fds(found), found.queues) == ([(73, [5])], ())
    one_of_two = owners(group(Place.NETFILTER, POD), verdicts)
    assert (fds(one_of_two), one_of_two.total) == ([(FIRST_PID, [])], PROCESSES)


@pytest.mark.parametrize("is_whole", [False, True])
def test_in_a_sample_the_only_process_is_not_certain(is_whole: bool) -> None:
    verdicts = replace(VERDICTS, queues={}, is_whole=is_whole)
    seen = replace(scan(), lists_every_fd=not is_whole)
    found = owners(group(Place.NETFILTER, HOST), verdicts, seen)
    assert found.total == 0
    assert "listener of the queue was not found" in found.unowned_reason


def test_a_listener_without_an_fd_leaves_the_processes_of_the_namespace() -> None:
    found = owners(group(Place.NETFILTER, POD), seen=replace(scan(), owners=np.empty(0, OWNER_DTYPE)))
    assert (fds(found), found.total, found.queues) == ([(FIRST_PID, [])], PROCESSES, (7,))
    assert owners(group(Place.NETFILTER, POD), None).total == PROCESSES


@pytest.mark.parametrize("place", [Place.QDISC, Place.NEIGHBOUR])
def test_of_the_hosts_packets_the_processes_with_the_senders_socket_are_owners(place: Place) -> None:
    found = owners(group(place, HOST, SENDER))
    assert (fds(found), found.total) == ([(74, [6]), (75, [9])], 2)


@pytest.mark.parametrize("socket", [CLOSED, 0])
def test_of_the_hosts_packets_without_an_open_socket_nobody_is_owner(socket: int) -> None:
    found = owners(group(Place.QDISC, HOST, socket))
    assert (found.processes, found.total) == ([], 0)
    assert "no open socket sent most of them" in found.unowned_reason


def test_the_hosts_fragments_are_the_kernels() -> None:
    assert owners(group(Place.REASSEMBLY, HOST, SENDER)) == GroupOwners(unowned_reason="kernel")


def test_elsewhere_the_processes_of_the_namespace_are_owners() -> None:
    found = owners(group(Place.QDISC, POD, SENDER))
    assert (fds(found), found.total) == ([(FIRST_PID, [])], PROCESSES)


def test_a_namespace_without_processes_and_an_unknown_one() -> None:
    assert owners(group(Place.QDISC, EMPTY)) == GroupOwners(unowned_reason="no process is in this network namespace")
    assert owners(group(Place.QDISC, UNKNOWN)) == GroupOwners(unowned_reason="kernel")


def test_a_process_that_has_exited_meanwhile_is_counted_but_not_named() -> None:
    def exited(_: int) -> Owner | None:
        return None

    found = PacketOwners(scan(), findings(), exited).of(group(Place.NETFILTER, POD))
    assert (found.processes, found.total, found.queues) == ([], 1, (7,))


@pytest.mark.parametrize("place", PROTOCOL_PLACES)
def test_packets_of_a_protocol_belong_to_the_processes_of_their_socket(place: Place) -> None:
    found = owners(group(place, POD, SENDER))
    assert (fds(found), found.total) == ([(74, [6]), (75, [9])], 2)
    closed = owners(group(place, POD, CLOSED))
    assert (closed.total, closed.unowned_reason) == (0, "no process has an fd of its socket")
    many = owners(group(place, POD))
    assert (fds(many), many.total) == ([(FIRST_PID, [])], PROCESSES)
