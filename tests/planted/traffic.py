"""Loads that keep running while they are watched, each a separate program: `python traffic.py KIND`.

    healthy   40 connections that are sent to, and read, as fast as possible
    stuck     64-byte messages to a connection that nobody reads, with a 32 KiB block that is read between them
    spread    400 connections with 80 KiB each that nobody reads
    growing   a new pipe of 1 MiB, filled and never read, 20 times a second
    moving    a socket whose datagrams are read and sent again without end, and connections that come and go
    noise     pipes, anonymous memory and a loopback connection, filled and released without end: a busy neighbour

Each prints `ready` and the fd of interest, if any, and continues until it is killed.
"""

import fcntl
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

MIB = 1 << 20
CONNECTIONS = 40
MESSAGE, BLOCK = b"m" * 64, b"b" * 32_768
RECEIVE_BUFFER_BYTES = 4 * MIB
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # socket(7); Python has no name for them
PIPES_PER_SECOND = 20
SPREAD_CONNECTIONS, SPREAD_BYTES = 400, 80 * 1024
DATAGRAMS, DATAGRAM_BYTES = 2_000, 1_000
NOISE_BYTES = 64 * MIB  # all pipes of one user may have that much, unless it is root (pipe-user-pages-soft)


def _connected() -> tuple[socket.socket, socket.socket]:
    """A sender and a receiver on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sender, receiver


def _drain(receiver: socket.socket) -> None:
    while receiver.recv(MIB):
        pass


def _healthy() -> None:
    pairs = [_connected() for _ in range(CONNECTIONS)]
    for _, receiver in pairs:
        threading.Thread(target=_drain, args=(receiver,), daemon=True).start()
    print("ready", flush=True)
    while True:
        for sender, _ in pairs:
            sender.sendall(BLOCK)


def _stuck() -> None:
    slow, unread = _connected()
    unread.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    healthy, read = _connected()
    threading.Thread(target=_drain, args=(read,), daemon=True).start()
    for _ in range(2000):
        slow.send(MESSAGE)
        healthy.sendall(BLOCK)
    print("ready", unread.fileno(), flush=True)
    time.sleep(10**6)


def _spread() -> None:
    kept = []
    for _ in range(SPREAD_CONNECTIONS):
        sender, receiver = socket.socketpair()
        sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 * SPREAD_BYTES)
        sender.sendall(b"s" * SPREAD_BYTES)
        kept.append((sender, receiver))
    print("ready", SPREAD_CONNECTIONS, SPREAD_BYTES, flush=True)
    time.sleep(10**6)


def _growing() -> None:
    print("ready", flush=True)
    kept = []
    while True:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, MIB)
        os.write(writer, b"x" * MIB)
        kept.append((reader, writer))
        time.sleep(1 / PIPES_PER_SECOND)


def _exchange(sock: socket.socket) -> None:
    while True:
        sock.recv(DATAGRAM_BYTES)
        sock.send(b"d" * DATAGRAM_BYTES)


def _come_and_go(server: socket.socket) -> None:
    while True:
        with suppress(OSError), socket.socket(server.family) as client:
            client.connect(server.getsockname())
            client.send(MESSAGE)


def _take(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves no TIME-WAIT
        connection.close()


def _die_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


def _moving() -> None:
    moving = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    moving.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    moving.bind(("127.0.0.1", 0))
    moving.connect(moving.getsockname())
    for _ in range(DATAGRAMS):
        moving.send(b"d" * DATAGRAM_BYTES)
    unix, tcp = socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))
    unix.bind("")  # the kernel chooses an abstract name
    unix.listen(64)
    for server in (unix, tcp):
        if not os.fork():
            for action in (_take, _come_and_go, _come_and_go):
                threading.Thread(target=action, args=(server,), daemon=True).start()
            _die_with_parent()
    print("ready", os.fstat(moving.fileno()).st_ino, DATAGRAMS, DATAGRAM_BYTES, flush=True)
    _exchange(moving)


def _noise() -> None:
    """Moves up to NOISE_BYTES each of kernel and user memory, at random, and 64 KiB to 4 MiB of a TCP queue."""
    sender, receiver = _connected()
    sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 8 * MIB)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 * MIB)
    print("ready", flush=True)
    choose = random.Random(os.getpid())
    while True:
        pipes = []
        for _ in range(choose.randrange(NOISE_BYTES // MIB)):
            reader, writer = os.pipe()
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, MIB)
            os.write(writer, b"x" * MIB)
            pipes += [reader, writer]
        memory = b"x" * choose.randrange(NOISE_BYTES)
        queued_bytes = choose.randrange(1, 64) * 65_536
        sender.sendall(b"x" * queued_bytes)
        time.sleep(choose.random() / 2)
        while queued_bytes > 0:
            queued_bytes -= len(receiver.recv(MIB))
        del memory
        for fd in pipes:
            os.close(fd)


KINDS: dict[str, Callable[[], None]] = {
    "healthy": _healthy,
    "stuck": _stuck,
    "spread": _spread,
    "growing": _growing,
    "moving": _moving,
    "noise": _noise,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]]()
