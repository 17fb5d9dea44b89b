"""Connections on which data moves while they are watched: read slowly, steadily, as fast as possible, or sent to a
peer that reads slowly. Each `fd` is the end that reads.
"""

import socket
import threading
import time
from collections.abc import Callable

from planted.sockets.common import MIB, Truth, keep, tcp_pair, udp_pair
from planted.sockets.tcp import tcp_small_messages

_STEPS_PER_SECOND = 10
_read_bytes: dict[int, int] = {}
"""By the fd of the reader."""


def tcp_slow_reader(amount: int, bytes_per_second: int) -> Truth:
    """`amount` messages of 64 bytes that pin 32 KiB each, and a process that reads a few bytes of them a second."""
    truth = tcp_small_messages(amount)
    _read_in_background(truth["fd"], bytes_per_second)
    return truth


def tcp_steady_reader(bytes_per_second: int) -> Truth:
    """A sender that always has more, and a reader that sets the pace: both queues are always full."""
    return _transfer(bytes_per_second, receive_bytes=4 * MIB)


def tcp_transfer(receive_bytes: int) -> Truth:
    """As fast as possible."""
    return _transfer(0, receive_bytes=receive_bytes)


def tcp_keepalive(amount: int) -> Truth:
    """`amount` idle connections, all of which was sent on them was read."""
    fds = []
    for _ in range(amount):
        sender, receiver = tcp_pair(receive_bytes=MIB, send_bytes=MIB)
        sender.sendall(b"k" * 100)
        receiver.recv(100, socket.MSG_WAITALL)
        fds.append(receiver.fileno())
    return {"fd": fds[0], "fds": fds}


def udp_slow_reader(amount: int, bytes_per_second: int) -> Truth:
    """`amount` datagrams of 200 bytes."""
    sender, receiver = udp_pair()
    for _ in range(amount):
        sender.send(b"y" * 200)
    _read_in_background(receiver.fileno(), bytes_per_second)
    return {"fd": receiver.fileno(), "unread_bytes": 200 * amount}


def read_so_far(fd: int) -> Truth:
    """What the reader has read."""
    return {"read_bytes": _read_bytes[fd]}


def _transfer(bytes_per_second: int, *, receive_bytes: int) -> Truth:
    sender, receiver = tcp_pair(receive_bytes=receive_bytes, send_bytes=MIB)

    def send() -> None:
        while True:
            sender.sendall(b"t" * 65536)

    _in_background(send)
    _read_in_background(receiver.fileno(), bytes_per_second)
    return {"fd": receiver.fileno(), "sender_fd": sender.fileno()}


def _read_in_background(fd: int, bytes_per_second: int) -> None:
    """Read so much in each tenth of a second; 0: without a limit."""
    reader = socket.socket(fileno=fd)
    keep(reader)
    _read_bytes[fd] = 0

    def read() -> None:
        while True:
            left = bytes_per_second // _STEPS_PER_SECOND or MIB
            while left > 0:
                taken = len(reader.recv(left))
                _read_bytes[fd] += taken
                left -= taken
            if bytes_per_second:
                time.sleep(1 / _STEPS_PER_SECOND)

    _in_background(read)


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()
