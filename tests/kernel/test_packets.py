"""Every packet of this machine: where planted ones are, how many, and that healthy traffic is never lost."""

import re
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest

from memdiag_api.census.packets import PacketPlace
from memdiag_node.census.networks.network_objects import protocol_names, read_networks
from memdiag_node.census.packets.group import PacketGroup
from memdiag_node.census.packets.packets import PacketsReading, UnlinkedPackets, fields, read_packets
from memdiag_node.census.packets.place import Place
from memdiag_node.census.packets.places import PlacedPackets
from memdiag_node.census.packets.record import is_lost, packets_record
from memdiag_node.census.packets.table import read_packet_table
from memdiag_node.holding import unique_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.kernel.symbols import SymbolReader, function_name
from memdiag_node.render.packets import packets_lines
from planted import held_by_fd, nfqueue, packets
from planted.sockets.common import PAGE_BYTES
from planted.sockets.planter import Planter
from support.machine_noise import alloc_page_bytes
from support.slab_census import opened_memory, take_slab_census

_PACKETS = 4_000
_CHARGE = re.compile(r"(?:r|w|bl)(\d+)")
_HEALTHY_READINGS = 4


@pytest.fixture(scope="module")
def memory(btf: Btf) -> Iterator[KernelMemory]:
    with opened_memory(btf) as opened:
        yield opened


@pytest.fixture(scope="module")
def at(btf: Btf) -> dict[str, int]:
    return fields(btf)


class Reader:
    """Takes a census and reads its packets."""

    def __init__(self, memory: KernelMemory, btf: Btf, at: dict[str, int]) -> None:
        self._memory, self._btf, self._at = memory, btf, at

    def read(self, earlier: UnlinkedPackets | None = None) -> PacketsReading:
        reading = read_packets(take_slab_census(self._memory, self._btf), self._at, earlier=earlier)
        assert reading is not None
        assert reading.packets == sum(group.packets for group in reading.groups)
        return reading

    def in_sockets(self, network_namespace: int) -> tuple[dict[str, int], dict[str, int]]:
        """By protocol: the packets in the queues of the sockets of a network namespace, and their charge."""
        census = take_slab_census(self._memory, self._btf)
        networks = read_networks(census, self._at)
        placed = PlacedPackets(census, self._at, networks, read_packet_table(census, self._at))
        own = np.flatnonzero(placed.is_alive & ~placed.is_member & (placed.place == Place.SOCKET))
        owners = placed.queues_of(own)["owner"]
        nets = self._memory.peek(owners + np.uint64(self._at["SOCK_NET"]))
        is_here = networks.inode_of(nets) == network_namespace
        own, owners = own[is_here], owners[is_here]
        names, kinds = protocol_names(self._memory, self._at, owners)
        charges = placed.table.truesize[own].astype(np.int64)
        packets_of = {name: int((kinds == kind).sum()) for kind, name in enumerate(names)}
        return packets_of, {name: int(charges[kinds == kind].sum()) for kind, name in enumerate(names)}


@pytest.fixture(scope="module")
def reader(memory: KernelMemory, btf: Btf, at: dict[str, int]) -> Reader:
    return Reader(memory, btf, at)


def in_namespace(reading: PacketsReading, inode: int, place: Place) -> PacketGroup:
    """The only group in that network namespace and place."""
    (group,) = [one for one in reading.groups if one.network_namespace == inode and one.place == place]
    return group


def test_packets_in_a_tun_queue_are_named_with_their_device_and_their_blocks(reader: Reader) -> None:
    with held_by_fd.tun_queue(_PACKETS) as planted:
        reading = reader.read()
        group = in_namespace(reading, planted.network_namespace, Place.TUN)
        assert group.packets == planted.packets
        assert (group.device, group.device_kind) == (planted.device, "tun")
        kept_bytes = unique_bytes([group.blocks], page_bytes=PAGE_BYTES) + group.head_bytes
        assert kept_bytes == pytest.approx(group.charge_bytes, rel=0.06)
        assert kept_bytes >= planted.packet_bytes
        record = packets_record(reading, str)
        (shown,) = [one for one in record.groups if one.network_namespace == planted.network_namespace]
        assert shown.place is PacketPlace.TUN
        assert any(planted.device in line for line in packets_lines(record))


def test_the_blocks_of_a_tun_queue_are_free_when_it_is(reader: Reader) -> None:
    """The node's allocpage moves by what the group keeps."""
    with held_by_fd.tun_queue(_PACKETS) as planted:
        group = in_namespace(reader.read(), planted.network_namespace, Place.TUN)
        before = alloc_page_bytes()
    kept_bytes = unique_bytes([group.blocks], page_bytes=PAGE_BYTES)
    end = time.monotonic() + 20
    while before - alloc_page_bytes() < 0.9 * kept_bytes and time.monotonic() < end:
        time.sleep(0.1)
    assert before - alloc_page_bytes() > 0.9 * kept_bytes


def test_packets_in_a_qdisc_of_a_zombie_namespace_are_found(reader: Reader) -> None:
    with packets.qdisc_backlog() as planted, SymbolReader() as symbols:
        reading = reader.read()
        group = in_namespace(reading, planted.network_namespace, Place.QDISC)
        assert group.packets == planted.packets
        assert (group.device, group.device_kind, group.socket_kind) == (planted.device, "veth", "UDP")
        assert group.charge_bytes >= planted.packet_bytes
        (text,) = symbols.lines([group.destructor + 1])  # a return address is in the function before it
        assert function_name(text) == "sock_wfree"


def test_packets_for_a_silent_neighbour_are_found(reader: Reader) -> None:
    with packets.neighbour_queue() as planted:
        group = in_namespace(reader.read(), planted.network_namespace, Place.NEIGHBOUR)
        assert group.packets == planted.packets
        assert group.device == planted.device
        assert group.charge_bytes >= planted.packet_bytes


def test_first_fragments_in_ip_reassembly_are_found(reader: Reader) -> None:
    with packets.first_fragments() as planted:
        group = in_namespace(reader.read(), planted.network_namespace, Place.REASSEMBLY)
        assert group.packets == planted.packets
        assert group.device == planted.device
        assert group.charge_bytes >= planted.packet_bytes


def test_packets_without_a_verdict_are_found(reader: Reader) -> None:
    with nfqueue.nfqueue() as planted:
        group = in_namespace(reader.read(), planted.network_namespace, Place.NETFILTER)
        assert group.packets == planted.packets
        assert group.charge_bytes >= planted.packet_bytes


def test_packets_in_unix_and_udp_sockets_are_counted_exactly(reader: Reader, planter: Planter) -> None:
    planter.plant("udp_small", _PACKETS)
    planter.plant("unix_stream", _PACKETS)
    packets_of, _ = reader.in_sockets(planter.network_namespace())
    assert packets_of == {"UDP": _PACKETS, "UNIX-STREAM": _PACKETS}


def test_packets_of_tcp_that_are_out_of_order_are_counted_exactly(reader: Reader, planter: Planter) -> None:
    truth = planter.plant("tcp_out_of_order", _PACKETS)
    packets_of, _ = reader.in_sockets(planter.network_namespace())
    assert packets_of["TCP"] == truth["out_of_order_packets"] + 1  # and one in the receive queue


@pytest.mark.parametrize("load", ["tcp_bulk", "tcp_write_queue", "tcp_retransmit", "tcp_backlog"])
def test_packets_in_tcp_sockets_are_charged_as_ss_shows(reader: Reader, planter: Planter, load: str) -> None:
    planter.plant(load, 200 if load == "tcp_backlog" else 8 << 20)
    _, charge_bytes_of = reader.in_sockets(planter.network_namespace())
    assert charge_bytes_of["TCP"] == _charge_by_ss(planter.pid)


def _charge_by_ss(pid: int) -> int:
    """What ss shows as charged to the TCP sockets of a process's network: received, to send, and in backlogs."""
    entered = ["nsenter", f"--target={pid}", "--net", "ss", "--tcp", "--memory", "--no-header"]
    lines = subprocess.run(entered, check=True, capture_output=True, text=True).stdout
    values = [part.split("skmem:(")[1].split(")")[0].split(",") for part in lines.splitlines() if "skmem:(" in part]
    charges = [_CHARGE.fullmatch(part) for value in values for part in value]
    return sum(int(match[1]) for match in charges if match)


def test_healthy_traffic_is_never_lost(reader: Reader) -> None:
    """A connection and datagrams that go back and forth while packets are read."""
    with subprocess.Popen(["python3", "-c", _TRAFFIC], stdin=subprocess.PIPE) as traffic:
        try:
            earlier = None
            for _ in range(_HEALTHY_READINGS):
                reading = reader.read(earlier)
                assert [one for one in reading.groups if is_lost(one, reading)] == []
                assert [one for one in reading.groups if one.is_unchanged and one.socket_kind in ("TCP", "UNIX")] == []
                earlier = reading.unlinked
        finally:
            assert traffic.stdin is not None
            traffic.stdin.close()
            traffic.kill()


_TRAFFIC = """
import socket, threading
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
def echo(one):
    while data := one.recv(1 << 16):
        one.send(data)
for one in (far, server):
    threading.Thread(target=echo, args=(one,), daemon=True).start()
while True:
    near.send(b"d" * 1000); near.recv(1 << 16)
    client.send(b"t" * 1000); client.recv(1 << 16)
"""


def test_packets_on_the_move_are_not_taken_for_others_in_a_second_reading(reader: Reader) -> None:
    """What has moved into a queue since the first reading is not among those that are still unlinked."""
    first = reader.read()
    second = reader.read(first.unlinked)
    assert second.unchanged_seconds > 0
    for group in second.groups:
        assert group.place == Place.UNLINKED or not group.is_unchanged
