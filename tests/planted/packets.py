"""Packets that wait in no socket's receive queue: in a qdisc, in IP reassembly, for a neighbour's address.

Each is planted in a network namespace of its own, and yields a record of what was planted. Nothing of it is left when
the context ends, or when the process that planted it is killed. A closed socket keeps its namespace as long as a packet
of it waits, so packets that keep their socket wait in a device that ends with the namespace of its other end.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from planted.child import Truth, held
from planted.netlink import (
    add_token_bucket,
    add_veth,
    bring_up,
    enter_new_network,
    set_sysctl,
    transmitted_packets,
)
from planted.sockets.common import SO_SNDBUFFORCE, wait_for
from planted.sockets.network import ETHERNET_BYTES, IPV4_BYTES, UDP_BYTES, ipv4

_GIB = 1 << 30
_MTU_BYTES = 65_000
_DEVICE, _PEER = "planted-veth", "planted-peer"
_HERE, _THERE = "10.99.8.1", "10.99.8.2"
_FRAGMENT_SECONDS = 3_600


@dataclass(frozen=True, slots=True)
class WaitingPackets:
    """Packets of one network namespace."""

    pid: int
    """A process that keeps them: without it they are freed. It is in the namespace, unless `is_zombie`."""
    device: str
    network_namespace: int
    """The inode of the namespace."""
    packets: int
    packet_bytes: int
    """Of all packets, as the queue counts them: with an Ethernet header in a qdisc, from the IP header on elsewhere."""
    is_zombie: bool = False
    """Whether no process, fd or mount refers to the namespace."""
    fd: int = -1
    """Of the socket that sent the packets, in the process `pid`; -1 if it is closed."""


@contextlib.contextmanager
def qdisc_backlog(
    packets: int = 3_000, payload_bytes: int = 60_000, *, sender_exits: bool = True
) -> Iterator[WaitingPackets]:
    """Packets behind a rate limit of 1 byte per second; with `sender_exits` in a zombie network namespace.

    Each packet keeps its socket, and each socket its namespace, when their process has exited. The other end of the
    device is in the namespace of the process that is left. With that process this end is removed, and with it the
    device, its qdisc and its packets: then nothing keeps the zombie namespace.
    """
    with held(_qdisc_backlog, packets, payload_bytes, sender_exits) as child:
        yield WaitingPackets(child.truth.pop("pid", child.pid), _DEVICE, is_zombie=sender_exits, **child.truth)


@contextlib.contextmanager
def first_fragments(packets: int = 2_000, payload_bytes: int = 60_000) -> Iterator[WaitingPackets]:
    """First fragments of datagrams whose rest never arrives: they wait in IP reassembly. At most 65,535."""
    with held(_first_fragments, packets, payload_bytes) as child:
        yield WaitingPackets(child.pid, "lo", child.network_namespace, packets, child.truth["packet_bytes"])


@contextlib.contextmanager
def neighbour_queue(packets: int = 2_000, payload_bytes: int = 60_000) -> Iterator[WaitingPackets]:
    """Packets for a neighbour that does not answer: they wait until its address is known.

    The other end of the device is in the namespace of another process, as that of `qdisc_backlog`. Else the packets
    would keep their closed socket, that its namespace, and that the device with the packets, when the processes end.
    """
    with held(_neighbour_queue, packets, payload_bytes) as child:
        yield WaitingPackets(device=_DEVICE, **child.truth)


def _qdisc_backlog(kept: ExitStack, packets: int, payload_bytes: int, sender_exits: bool) -> Truth:
    return _behind_a_veth(kept, lambda: _fill_qdisc(packets, payload_bytes), sender_exits=sender_exits)


def _behind_a_veth(
    kept: ExitStack, fill: Callable[[], tuple[socket.socket, int, int]], *, sender_exits: bool = False
) -> Truth:
    """Let another process fill a queue of a veth device in a namespace of its own.

    `fill` returns its socket, and the packets that wait and their bytes. The peer of the device is here.
    """
    enter_new_network()
    holder, sender = socket.socketpair()
    sender_pid = os.fork()
    if sender_pid == 0:
        holder.close()
        sender.send(str(enter_new_network()).encode())
        sender.recv(64)
        own, waiting, waiting_bytes = fill()
        sender.send(f"{waiting} {waiting_bytes} {own.fileno()}".encode())
        if not sender_exits:
            sender.recv(1)
        os._exit(0)
    sender.close()
    namespace = int(holder.recv(64))
    add_veth(_PEER, _DEVICE, peer_pid=sender_pid, mtu_bytes=_MTU_BYTES)
    bring_up(_PEER)
    holder.send(b"connected")
    waiting, waiting_bytes, fd = map(int, holder.recv(64).split())
    truth = {"network_namespace": namespace, "packets": waiting, "packet_bytes": waiting_bytes}
    if sender_exits:
        os.waitpid(sender_pid, 0)
        return truth
    kept.callback(os.waitpid, sender_pid, 0)
    kept.callback(holder.close)
    return truth | {"pid": sender_pid, "fd": fd}


def _fill_qdisc(packets: int, payload_bytes: int) -> tuple[socket.socket, int, int]:
    """Let exactly one packet through, then queue the others."""
    packet_bytes = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES + payload_bytes
    add_token_bucket(_DEVICE, bytes_per_second=1, burst_bytes=packet_bytes, limit_bytes=_GIB)
    bring_up(_DEVICE, _HERE)
    # Until the device has noticed its carrier, it drops what it is sent.
    wait_for(lambda: bool(_send(1, payload_bytes) and transmitted_packets(_DEVICE)), "the first packet's way out")
    sender = _send(packets, payload_bytes)
    waiting = packets - (transmitted_packets(_DEVICE) - 1)
    return sender, waiting, waiting * packet_bytes


def _first_fragments(kept: ExitStack, packets: int, payload_bytes: int) -> Truth:
    enter_new_network()
    for name, value in {"time": _FRAGMENT_SECONDS, "high_thresh": _GIB, "max_dist": 0}.items():
        set_sysctl(f"ipv4/ipfrag_{name}", value)
    bring_up("lo")
    payload = b"f" * (payload_bytes // 8 * 8)  # offsets of fragments count in units of 8 bytes
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _GIB)
        for number in range(1, packets + 1):  # instead of 0 the kernel takes another, which may be one of the others
            sender.sendto(ipv4("127.0.0.1", "127.0.0.2", payload, number=number, more=True), ("127.0.0.2", 0))
    return {"packet_bytes": packets * (IPV4_BYTES + len(payload))}


def _neighbour_queue(kept: ExitStack, packets: int, payload_bytes: int) -> Truth:
    return _behind_a_veth(kept, lambda: _fill_neighbour(packets, payload_bytes))


def _fill_neighbour(packets: int, payload_bytes: int) -> tuple[socket.socket, int, int]:
    bring_up(_DEVICE, _HERE, arp=True)
    # It asks twice in a minute, for longer than any test.
    for name, value in {"unres_qlen_bytes": _GIB, "retrans_time_ms": 30_000, "mcast_solicit": 1_000}.items():
        set_sysctl(f"ipv4/neigh/{_DEVICE}/{name}", value)
    return _send(packets, payload_bytes), packets, packets * (IPV4_BYTES + UDP_BYTES + payload_bytes)


def _send(packets: int, payload_bytes: int) -> socket.socket:
    """Send datagrams to the other address; returns their socket."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _GIB)
    sender.connect((_THERE, 9))
    for _ in range(packets):
        sender.send(b"p" * payload_bytes)
    return sender
