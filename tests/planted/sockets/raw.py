"""Sockets that see complete packets: raw ones and packet sockets, with their rings."""

import mmap
import socket
import struct
import time

from planted.sockets.common import MIB, SO_RCVBUFFORCE, Truth, drained, keep, udp_pair
from planted.sockets.network import ETHERNET_BYTES, IPV4_BYTES, UDP_BYTES, internet_checksum
from planted.sockets.tcp import tcp_bulk
from planted.sockets.udp import udp_small

_SOL_PACKET, _PACKET_RX_RING, _PACKET_TX_RING = 263, 5, 13


def raw_icmp(amount: int) -> Truth:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(amount):
        body = struct.pack(">BBHHH", 19, 0, 0, 1, number) + b"i" * 92  # a reserved type: nothing answers
        body = body[:2] + struct.pack(">H", internet_checksum(body)) + body[4:]
        sender.sendto(body, ("127.0.0.1", 0))
    keep(receiver, sender)
    return {"fd": receiver.fileno(), "unread_bytes": (20 + 100) * amount, "packets": amount}


def raw6_icmp(amount: int) -> Truth:
    """Without the IPv6 header, which a raw socket does not receive."""
    receiver = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
    sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(amount):
        sender.sendto(struct.pack(">BBHHH", 200, 0, 0, 1, number) + b"i" * 92, ("::1", 0))  # for experiments: no answer
    keep(receiver, sender)
    return {"fd": receiver.fileno(), "unread_bytes": 100 * amount, "packets": amount}


def raw_udp(amount: int) -> Truth:
    """A raw socket that sees the datagrams of others, with their headers."""
    tap = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
    truth = udp_small(amount)
    keep(tap)
    each = IPV4_BYTES + UDP_BYTES + 200
    return {"fd": tap.fileno(), "unread_bytes": amount * each, "packets": truth["packets"]}


def raw_tcp(amount: int) -> Truth:
    """Two raw sockets that see the segments of others; one is read to find out what the other has."""
    taps = [socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) for _ in range(2)]
    for tap in taps:
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
    tcp_bulk(amount)
    time.sleep(0.2)  # a delayed acknowledgement
    keep(*taps)
    return {"fd": taps[0].fileno(), **drained(taps[1])}


def packet_socket(amount: int) -> Truth:
    """A tap on IPv4 frames that arrive at the loopback, and datagrams of 32,000 bytes for it.

    Tap and receiver get clones of the same packet, so both keep the same blocks.
    """
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
    tap.bind(("lo", 0x0800))
    sender, receiver = udp_pair()
    for _ in range(amount):
        sender.send(b"t" * 32000)
    keep(tap)
    frame = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES + 32000
    return {"fd": tap.fileno(), "unread_bytes": amount * frame, "packets": amount, "udp_fd": receiver.fileno()}


def packet_ring(amount: int) -> Truth:
    """A receive ring of half of `amount` blocks of 64 KiB, and a transmit ring of the other half."""
    ring = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    for kind in (_PACKET_RX_RING, _PACKET_TX_RING):
        ring.setsockopt(_SOL_PACKET, kind, struct.pack("IIII", 65536, amount // 2, 2048, amount * 16))
    area = mmap.mmap(ring.fileno(), amount * 65536)
    keep(ring, area)
    return {"fd": ring.fileno(), "pinned_bytes": amount * 65536}
