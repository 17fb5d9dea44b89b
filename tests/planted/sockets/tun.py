"""Packets that wait in a tun fd, which nobody reads."""

import fcntl
import os
import socket
import struct
import subprocess

from planted.sockets.common import MIB, SO_SNDBUFFORCE, Truth, keep, kept

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000  # include/uapi/linux/if_tun.h
_HEADER_BYTES = 28  # IPv4 and UDP
_NAME = "planted0"


def tun_queue(packets: int, size: int) -> Truth:
    """`packets` datagrams of `size` bytes sent into a tun device; each is in the queue with its headers."""
    return _queue(packets, size)


def tun_queue_that_was_read(packets: int, size: int, read: int) -> Truth:
    """The same, of which `read` packets were then read."""
    truth = _queue(packets, size)
    for _ in range(read):
        truth["unread_bytes"] -= len(os.read(truth["fd"], MIB))
    truth["packets"] -= read
    return truth


def _queue(packets: int, size: int) -> Truth:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", _NAME.encode(), _IFF_TUN | _IFF_NO_PI))
    for command in (
        f"link set {_NAME} txqueuelen {packets} mtu 65000 addrgenmode none",
        f"addr add 192.0.2.1/24 dev {_NAME}",
        f"link set {_NAME} up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1024 * MIB)
    keep(fd, sender)
    return {"fd": fd, "device": _NAME, **send_to_tun(packets, size)}


def send_to_tun(packets: int, size: int) -> Truth:
    """As many more packets for the last tun device."""
    sender = kept[-1]
    assert isinstance(sender, socket.socket)
    for _ in range(packets):
        sender.sendto(b"t" * size, ("192.0.2.2", 9))
    return {"packets": packets, "unread_bytes": packets * (size + _HEADER_BYTES)}


def drain_tun(_: int) -> Truth:
    """Read everything out of the last tun fd; returns what was read."""
    fd = kept[-2]
    assert isinstance(fd, int)
    os.set_blocking(fd, False)
    sizes = []
    while True:
        try:
            sizes.append(len(os.read(fd, MIB)))
        except BlockingIOError:
            return {"packets": len(sizes), "unread_bytes": sum(sizes)}
