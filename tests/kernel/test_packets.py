"""Every packet of this machine: where planted ones are, how many, and that healthy traffic is never lost."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.census.packets import PacketPlace
from memdiag_node.census.packet_queues import Place
from memdiag_node.census.packets import PacketGroup, PacketsReading, UnlinkedPackets, fields, read_packets
from memdiag_node.census.packets_record import is_lost, packets_record
from memdiag_node.holding import unique_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.kernel.symbols import SymbolReader, function_name
from memdiag_node.render.packets import packets_lines
from planted import held_by_fd, nfqueue, packets
from planted.sockets.common import PAGE_BYTES
from planted.sockets.planter import Planter
from support.slab_census import opened_memory, take_slab_census

_PACKETS = 4_000
_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; Python has no name for it
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


@pytest.fixture(scope="module")
def reader(memory: KernelMemory, btf: Btf, at: dict[str, int]) -> Reader:
    return Reader(memory, btf, at)


def in_namespace(reading: PacketsReading, inode: int, place: Place) -> PacketGroup:
    """The only group in that network namespace and place."""
    (group,) = [one for one in reading.groups if one.network_namespace == inode and one.place == place]
    return group


def socket_packets(reading: PacketsReading, kind: str) -> tuple[int, int]:
    """Packets and charge of all queues of sockets of a protocol."""
    groups = [one for one in reading.groups if one.place == Place.SOCKET and one.socket_kind == kind]
    return sum(one.packets for one in groups), sum(one.charge_bytes for one in groups)


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
    """The node's free memory moves by what the group keeps."""
    with held_by_fd.tun_queue(_PACKETS) as planted:
        group = in_namespace(reader.read(), planted.network_namespace, Place.TUN)
        before = _free_bytes()
    kept_bytes = unique_bytes([group.blocks], page_bytes=PAGE_BYTES)
    end = time.monotonic() + 20
    while _free_bytes() - before < 0.9 * kept_bytes and time.monotonic() < end:
        time.sleep(0.1)
    assert _free_bytes() - before > 0.9 * kept_bytes


def _free_bytes() -> int:
    (line,) = [one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemFree:")]
    return int(line.split()[1]) << 10


def test_packets_in_a_qdisc_of_a_zombie_namespace_are_found(reader: Reader) -> None:
    with packets.qdisc_backlog() as planted, SymbolReader() as symbols:
        reading = reader.read()
        group = in_namespace(reading, planted.network_namespace, Place.QDISC)
        assert group.packets == planted.packets
        assert (group.device, group.device_kind, group.socket_kind) == (planted.device, "veth", "UDP")
        assert group.charge_bytes >= planted.packet_bytes
        (text,) = symbols.lines([group.destructor + 1])
        assert function_name(text) == "sock_wfree"


def test_packets_for_a_silent_neighbour_are_found(reader: Reader) -> None:
    with packets.neighbour_queue() as planted:
        group = in_namespace(reader.read(), planted.network_namespace, Place.NEIGHBOUR)
        assert (group.packets, group.device) == (planted.packets, planted.device)
        assert group.charge_bytes >= planted.packet_bytes


def test_first_fragments_in_ip_reassembly_are_found(reader: Reader) -> None:
    with packets.first_fragments() as planted:
        group = in_namespace(reader.read(), planted.network_namespace, Place.REASSEMBLY)
        assert group.packets == planted.packets
        assert group.charge_bytes >= planted.packet_bytes


def test_packets_without_a_verdict_are_found(reader: Reader) -> None:
    with nfqueue.nfqueue() as planted:
        group = in_namespace(reader.read(), planted.network_namespace, Place.NETFILTER)
        assert group.packets == planted.packets
        assert group.charge_bytes >= planted.packet_bytes


def test_packets_in_unix_and_udp_sockets_are_counted_exactly(reader: Reader, planter: Planter) -> None:
    before = reader.read()
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with sender, receiver, held_by_fd.slab_heads(_PACKETS):
        sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
        sender.setblocking(False)
        for _ in range(_PACKETS):
            sender.send(b"x" * 100)
        after = reader.read()
    for kind in ("UNIX-STREAM", "UDP"):
        counts = [socket_packets(reading, kind)[0] for reading in (before, after)]
        assert counts[1] - counts[0] == pytest.approx(_PACKETS, abs=16), kind


@pytest.mark.parametrize("load", ["tcp_small_messages", "tcp_unsent"])
def test_packets_in_tcp_sockets_are_charged_as_ss_shows(reader: Reader, planter: Planter, load: str) -> None:
    before = socket_packets(reader.read(), "TCP")
    planter.plant(load, _PACKETS)
    after = socket_packets(reader.read(), "TCP")
    charged = _charge_by_ss(planter.pid)
    assert after[1] - before[1] == pytest.approx(charged, rel=0.02, abs=1 << 18)
    assert after[0] > before[0]


def _charge_by_ss(pid: int) -> int:
    """What ss shows as charged to the TCP sockets of a process's network: received, and to send."""
    entered = ["nsenter", f"--target={pid}", "--net", "ss", "--tcp", "--memory", "--no-header"]
    lines = subprocess.run(entered, check=True, capture_output=True, text=True).stdout
    values = [part.split("skmem:(")[1].split(")")[0].split(",") for part in lines.splitlines() if "skmem:(" in part]
    return sum(int(one[1:]) for value in values for one in value if one[0] == "r" and one[1] != "b")  + sum(
        int(one[1:]) for value in values for one in value if one[0] == "w"
    )  # fmt: skip


def test_healthy_traffic_is_never_lost(reader: Reader) -> None:
    """A connection and datagrams that go back and forth while packets are read."""
    with subprocess.Popen(["python3", "-c", _TRAFFIC], stdin=subprocess.PIPE) as traffic:
        try:
            earlier = None
            for _ in range(_HEALTHY_READINGS):
                reading = reader.read(earlier)
                assert [one for one in reading.groups if is_lost(one, reading)] == []
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
