"""Whose packets wait outside of socket queues: real packets, sockets and processes of this machine."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.capabilities import RUNNER_CAPABILITIES
from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.census.findings import ObjectFindings
from memdiag_node.census.networks import namespaces, sockets
from memdiag_node.census.packets import verdict_queues
from memdiag_node.census.packets.packets import fields, read_packets
from memdiag_node.census.slab_caches.slab_caches import SlabFigures
from memdiag_node.holders.packet_queues import packet_queues
from memdiag_node.kernel.btf import Btf
from memdiag_node.processes import read_owner
from memdiag_node.procfs.meminfo import MemInfo
from memdiag_node.procfs.nfnetlink_queue import parse_nfnetlink_queue
from memdiag_node.sockets.scanner import SocketScanner
from planted import nfqueue, packets, psock
from support.capabilities import only
from support.slab_census import take_slab_census

_PROC = Path("/proc")
_FEW = 500


class Holders:
    """Reads the packets outside of socket queues, as a run does."""

    def __init__(self, scanner: SocketScanner, btf: Btf) -> None:
        self._scanner, self._btf = scanner, btf
        self._at = sockets.fields(btf) | namespaces.fields(btf) | fields(btf) | verdict_queues.fields(btf)

    def find(self, namespace: int, *, proc: Path = _PROC, is_hosts: bool = False) -> list[Holder]:
        """The holders in a network namespace. `is_hosts`: as if it were the host's."""
        census = take_slab_census(self._scanner.source.memory, self._btf)
        first, found = read_packets(census, self._at), namespaces.read_namespaces(census, self._at)
        assert first is not None
        reading = read_packets(census, self._at, earlier=first.unlinked)
        assert reading is not None
        assert found is not None
        found.table["is_initial"] |= is_hosts & (found.table["inode"] == namespace)
        objects = ObjectFindings(
            meminfo=MemInfo.__new__(MemInfo),  # neither is read here
            slab=SlabFigures.__new__(SlabFigures),
            namespaces=found,
            packets=reading,
            verdict_queues=verdict_queues.read_verdict_queues(census, self._at, proc, reading, found),
        )
        scan = self._scanner.scan()
        holdings = packet_queues(scan, [], objects, lambda pid: read_owner(_PROC, pid))
        return [one.holder for one in holdings if f"namespace {namespace}" in one.holder.description]


@pytest.fixture(scope="module")
def holders(scanner: SocketScanner, btf: Btf) -> Holders:
    return Holders(scanner, btf)


def fds(holder: Holder) -> list[tuple[int, list[int]]]:
    return [(owner.pid, owner.fds) for owner in holder.owners]


@pytest.fixture(scope="module")
def queued() -> Iterator[nfqueue.QueuedPackets]:
    with nfqueue.nfqueue(_FEW) as planted:
        yield planted


def test_packets_without_a_verdict_belong_to_the_listener_of_their_queue(
    holders: Holders, queued: nfqueue.QueuedPackets
) -> None:
    (holder,) = holders.find(queued.network_namespace)
    assert holder.kind is HolderKind.PACKET_QUEUE
    assert holder.description.startswith(f"{_FEW} packets wait for a verdict in netfilter queue {queued.queue} ")
    assert (fds(holder), holder.owners_total, holder.unowned_reason) == ([(queued.pid, [queued.fd])], 1, "")
    assert holder.pinned_bytes + holder.head_bytes >= queued.packet_bytes


def test_the_listener_is_found_without_the_list_of_queues_too(
    holders: Holders, queued: nfqueue.QueuedPackets, tmp_path: Path
) -> None:
    """As on a host that lets nobody read the list: it is the only process with a netlink socket of netfilter."""
    (holder,) = holders.find(queued.network_namespace, proc=tmp_path)
    assert holder.description.startswith(f"{_FEW} packets wait for a verdict in a netfilter queue ")
    assert (fds(holder), holder.owners_total) == ([(queued.pid, [queued.fd])], 1)


def test_the_list_of_queues_can_be_read_with_the_capabilities_of_a_runner(queued: nfqueue.QueuedPackets) -> None:
    path = f"/proc/{queued.pid}/net/netfilter/nfnetlink_queue"
    text = subprocess.run([*only(RUNNER_CAPABILITIES), "cat", path], check=True, capture_output=True).stdout
    (queue,) = parse_nfnetlink_queue(text)
    assert (queue.number, queue.waiting_packets) == (queued.queue, queued.packets)


@pytest.mark.parametrize("is_hosts", [False, True])
def test_packets_for_a_neighbour_belong_to_their_sender_or_their_namespace(holders: Holders, is_hosts: bool) -> None:
    with packets.neighbour_queue(_FEW) as planted:
        (holder,) = holders.find(planted.network_namespace, is_hosts=is_hosts)
    assert holder.description.startswith(f"{_FEW} packets wait for the address of a neighbour of {planted.device}")
    assert (fds(holder), holder.owners_total) == ([(planted.pid, [planted.fd] if is_hosts else [])], 1)


def test_packets_in_a_qdisc_belong_to_their_sender_as_long_as_its_socket_is_open(holders: Holders) -> None:
    with packets.qdisc_backlog(_FEW, sender_exits=False) as planted:
        (holder,) = holders.find(planted.network_namespace, is_hosts=True)
    assert (fds(holder), holder.owners_total) == ([(planted.pid, [planted.fd])], 1)
    with packets.qdisc_backlog(_FEW) as planted:
        (holder,) = holders.find(planted.network_namespace)
        (as_hosts,) = holders.find(planted.network_namespace, is_hosts=True)
    assert (holder.owners_total, holder.unowned_reason) == (0, "no process is in this network namespace")
    assert as_hosts.owners_total == 0
    assert "no open socket sent most of them" in as_hosts.unowned_reason


def test_what_a_socket_map_took_from_a_socket_belongs_to_its_process(holders: Holders, scanner: SocketScanner) -> None:
    messages, message_bytes = 500, 4_000
    with psock.sockmap_backlog(messages, message_bytes) as planted:
        (holder,) = holders.find(planted.network_namespace)
        scan = scanner.scan()
    assert holder.kind is HolderKind.SOCKET
    assert (fds(holder), holder.owners_total) == ([(planted.pid, [planted.fd])], 1)
    assert (holder.unread_packets, holder.unread_bytes) == (messages, planted.unread_bytes)
    assert planted.unread_bytes <= holder.pinned_bytes + holder.head_bytes <= 1.02 * holder.charge_bytes
    assert holder.stuck_seconds is not None
    assert planted.inode not in scan.sockets["inode"]  # none of the queues that the scan walks has them
