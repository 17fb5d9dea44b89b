"""Shared by the loads of every family: pairs of connected sockets, the data in them, and what keeps them open."""

import contextlib
import ctypes
import fcntl
import mmap
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

PAGE_BYTES = mmap.PAGESIZE
MIB = 1 << 20
TCP_HEADER_BYTES = 32  # with timestamps
LOOPBACK: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
# socket(7), fcntl(2); Python has no names for them
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
F_SETPIPE_SZ = 1031

_SIOCINQ, _SIOCOUTQ = 0x541B, 0x5411

Truth = dict[str, Any]
"""The counts of a load: fds, bytes, packets, by name."""
libc = ctypes.CDLL(None, use_errno=True)
kept: list[object] = []
"""Everything that must not be closed before the process exits, in the order in which it was planted."""


def keep(*things: Any) -> None:
    kept.extend(things)


def inq(sock: socket.socket) -> int:
    """The bytes that the kernel reports as readable: for TCP and UNIX streams all, for datagrams the first."""
    return int(struct.unpack("i", fcntl.ioctl(sock, _SIOCINQ, b"\0" * 4))[0])


def outq(sock: socket.socket) -> int:
    """Bytes of a TCP socket that the peer has not acknowledged."""
    return int(struct.unpack("i", fcntl.ioctl(sock, _SIOCOUTQ, b"\0" * 4))[0])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not happen in {seconds} s")
        time.sleep(0.01)


def tcp_pair(
    family: int = socket.AF_INET, *, receive_bytes: int = 256 * MIB, send_bytes: int = 64 * MIB
) -> tuple[socket.socket, socket.socket]:
    """A connection: the sender's end and the receiver's end."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
    listener.bind((LOOPBACK[family], 0))
    listener.listen(5)
    sender = socket.socket(family, socket.SOCK_STREAM)
    sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, send_bytes)
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    listener.close()
    keep(sender, receiver)
    return sender, receiver


def udp_pair(family: int = socket.AF_INET, protocol: int = 0) -> tuple[socket.socket, socket.socket]:
    receiver = socket.socket(family, socket.SOCK_DGRAM, protocol)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 512 * MIB)
    receiver.bind((LOOPBACK[family], 0))
    sender = socket.socket(family, socket.SOCK_DGRAM, protocol)
    sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 * MIB)
    sender.connect(receiver.getsockname())
    keep(sender, receiver)
    return sender, receiver


def lone(pair: tuple[socket.socket, socket.socket], size: int) -> Truth:
    sender, receiver = pair
    sender.send(b"1" * size)
    keep(sender, receiver)
    return {"fd": receiver.fileno(), "sender_fd": sender.fileno(), "unread_bytes": size}


def drained(sock: socket.socket) -> Truth:
    """The amount of data in a socket of packets, counted by reading all of it."""
    sizes = []
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sizes.append(len(sock.recv(MIB)))
    return {"unread_bytes": sum(sizes), "packets": len(sizes)}
