"""TCP and MPTCP: every queue of a connection, on either side, open or closed."""

import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
import time

from planted.sockets.common import (
    LOOPBACK,
    MIB,
    PAGE_BYTES,
    Truth,
    inq,
    keep,
    kept,
    libc,
    outq,
    tcp_pair,
    wait_for,
)
from planted.sockets.network import internet_checksum, set_loopback

_MPTCP = 262
_SO_ZEROCOPY, _MSG_ZEROCOPY = 60, 0x4000000
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_TCP_RECV_QUEUE, _TCP_SEND_QUEUE = 1, 2


def _tcp(family: int, amount: int) -> Truth:
    sender, receiver = tcp_pair(family)
    sender.sendall(b"x" * amount)
    wait_for(lambda: inq(receiver) == amount, "the bytes' arrival")
    host, port = receiver.getsockname()[:2]
    remote = receiver.getpeername()[1]
    return {
        "fd": receiver.fileno(),
        "unread_bytes": amount,
        "port": port,
        "remote_port": remote,
        "host": host,
    }


def tcp_bulk(amount: int) -> Truth:
    return _tcp(socket.AF_INET, amount)


def tcp6_bulk(amount: int) -> Truth:
    return _tcp(socket.AF_INET6, amount)


def tcp_small_messages(amount: int) -> Truth:
    """Messages of 64 bytes, each followed by bulk on another connection that is read at once.

    Both are cut from the sending task's page fragment, so each message is in a 32 KiB block that only it keeps.
    """
    sender, receiver = tcp_pair()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    healthy_sender, healthy_receiver = tcp_pair()
    bulk = b"b" * 32768
    for _ in range(amount):
        sender.send(b"a" * 64)
        healthy_sender.sendall(bulk)
        left = len(bulk)
        while left:
            left -= len(healthy_receiver.recv(left))
    wait_for(lambda: inq(receiver) == 64 * amount, "the messages' arrival")
    return {
        "fd": receiver.fileno(),
        "unread_bytes": 64 * amount,
        "pinned_bytes": 32768 * amount,
        "healthy_fd": healthy_receiver.fileno(),
    }


def tcp_partly_read(amount: int) -> Truth:
    sender, receiver = tcp_pair()
    sender.sendall(b"x" * amount)
    wait_for(lambda: inq(receiver) == amount, "the bytes' arrival")
    taken = len(receiver.recv(amount // 3, socket.MSG_WAITALL))
    return {"fd": receiver.fileno(), "unread_bytes": amount - taken}


def mptcp_partly_read(amount: int) -> Truth:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP)
    listener.bind((LOOPBACK[socket.AF_INET], 0))
    listener.listen(5)
    sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP)
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    sender.sendall(b"x" * amount)
    wait_for(lambda: len(receiver.recv(amount, socket.MSG_PEEK)) == amount, "the bytes' arrival")
    taken = len(receiver.recv(amount // 3, socket.MSG_WAITALL))
    keep(sender, receiver)
    return {"fd": receiver.fileno(), "unread_bytes": amount - taken}


def tcp_finished(amount: int) -> Truth:
    """The peer has sent everything and closed: its FIN is not a readable byte."""
    sender, receiver = tcp_pair()
    sender.sendall(b"x" * amount)
    sender.shutdown(socket.SHUT_WR)
    wait_for(lambda: inq(receiver) == amount, "the bytes' arrival")
    time.sleep(0.05)
    return {"fd": receiver.fileno(), "unread_bytes": amount}


def tcp_read_on(amount: int) -> Truth:
    """Read `amount` bytes of the last connection."""
    receiver = kept[-1]
    assert isinstance(receiver, socket.socket)
    return {"fd": receiver.fileno(), "read_bytes": len(receiver.recv(amount))}


def tcp_unaccepted(amount: int) -> Truth:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    client = socket.create_connection(listener.getsockname())
    client.sendall(b"q" * amount)
    wait_for(lambda: outq(client) == 0, "the acknowledgement")
    keep(listener, client)
    return {"fd": listener.fileno(), "port": client.getpeername()[1], "remote_port": client.getsockname()[1]}


def tcp_write_queue(amount: int) -> Truth:
    return _tcp_write_queue(socket.AF_INET, amount)


def tcp6_write_queue(amount: int) -> Truth:
    return _tcp_write_queue(socket.AF_INET6, amount)


def _tcp_write_queue(family: int, amount: int) -> Truth:
    """More than the receiver accepts: the rest waits at the sender."""
    sender, receiver = tcp_pair(family, receive_bytes=16384, send_bytes=64 * MIB)
    sender.setblocking(False)
    sent = 0
    while sent < amount:
        sent += sender.send(b"w" * min(65536, amount - sent))
    time.sleep(0.2)
    return {"fd": sender.fileno(), "unsent_bytes": outq(sender), "receiver_fd": receiver.fileno()}


def tcp_retransmit(amount: int) -> Truth:
    """The route to the receiver is gone: the sent data waits to be retransmitted."""
    sender, _ = tcp_pair()
    set_loopback(up=False)
    sender.setblocking(False)
    sent = sender.send(b"r" * amount)
    return {"fd": sender.fileno(), "unsent_bytes": sent}


def tcp_zerocopy(amount: int) -> Truth:
    """`amount` pages of this process that are sent without a copy, and the route to the receiver is gone."""
    sender, _ = tcp_pair()
    sender.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    pages = mmap.mmap(-1, amount * PAGE_BYTES)
    for page in range(amount):
        pages[page * PAGE_BYTES] = 1
    set_loopback(up=False)
    sent = sender.send(pages, _MSG_ZEROCOPY)
    keep(pages)
    return {"fd": sender.fileno(), "unsent_bytes": sent, "user_bytes": amount * PAGE_BYTES}


def tcp_zerocopy_done(amount: int) -> Truth:
    """`amount` completed sends without a copy: the kernel's notice that the pages are free waits to be read."""
    sender, receiver = tcp_pair()
    sender.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    for _ in range(amount):
        sender.send(bytes(PAGE_BYTES), _MSG_ZEROCOPY)
        receiver.recv(PAGE_BYTES, socket.MSG_WAITALL)
    wait_for(lambda: outq(sender) == 0, "the acknowledgement")
    return {"fd": sender.fileno()}


def tcp_orphan(amount: int) -> Truth:
    """Closed with data that the peer never received: no process holds it any more."""
    sender, receiver = tcp_pair(receive_bytes=16384)
    sender.setblocking(False)
    sent = sender.send(b"o" * amount)
    time.sleep(0.2)
    waiting, inode = outq(sender), os.fstat(sender.fileno()).st_ino
    port = sender.getsockname()[1]
    sender.close()
    return {"sent_bytes": sent, "unsent_bytes": waiting, "inode": inode, "port": port, "receiver_fd": receiver.fileno()}


def _sequence(sock: socket.socket, queue: int) -> int:
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
    number: int = sock.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, -1)  # TCP_REPAIR_OFF_NO_WP: without a window probe
    return number & 0xFFFFFFFF


def tcp_out_of_order(amount: int) -> Truth:
    """`amount` hand-made segments of 100 bytes, none adjacent to another."""
    sender, receiver = tcp_pair()
    sender.sendall(b"h" * 100)
    wait_for(lambda: inq(receiver) == 100, "the bytes' arrival")
    expected, acknowledged = _sequence(receiver, _TCP_RECV_QUEUE), _sequence(receiver, _TCP_SEND_QUEUE)
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    here = socket.inet_aton("127.0.0.1")
    ports = sender.getsockname()[1], receiver.getsockname()[1]
    payload = b"o" * 100
    for number in range(amount):
        sequence = (expected + 1000 + number * 200) & 0xFFFFFFFF
        header = struct.pack(">HHIIBBHHH", *ports, sequence, acknowledged, 0x50, 0x10, 512, 0, 0)
        pseudo = here * 2 + struct.pack(">HH", 6, len(header) + len(payload))
        checksum = struct.pack(">H", internet_checksum(pseudo + header + payload))
        segment = header[:16] + checksum + header[18:] + payload
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), number, 0, 64, 6, 0, here, here)
        raw.sendto(ip + segment, ("127.0.0.1", 0))
    keep(raw)
    return {"fd": receiver.fileno(), "unread_bytes": 100, "out_of_order_packets": amount}


class _UffdApi(ctypes.Structure):
    _fields_ = (("api", ctypes.c_uint64), ("features", ctypes.c_uint64), ("ioctls", ctypes.c_uint64))


class _UffdRegister(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("ioctls", ctypes.c_uint64),
    )


def tcp_backlog(amount: int) -> Truth:
    """`amount` packets for a receiver whose thread sleeps in a page fault, holding the socket's lock."""
    sender, receiver = tcp_pair()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sender.sendall(b"h" * 100)
    wait_for(lambda: inq(receiver) == 100, "the bytes' arrival")
    userfault = libc.syscall(323, os.O_CLOEXEC)  # x86-64
    if userfault < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(userfault, 0xC018AA3F, _UffdApi(0xAA, 0, 0))
    area = mmap.mmap(-1, PAGE_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    fcntl.ioctl(userfault, 0xC020AA00, _UffdRegister(address, PAGE_BYTES, 1, 0))
    thread = threading.Thread(target=libc.recv, args=(receiver.fileno(), ctypes.c_void_p(address), 100, 0), daemon=True)
    thread.start()
    select.select([userfault], [], [], 10)  # the fault has happened: the thread goes to sleep with the lock
    time.sleep(0.2)
    for _ in range(amount):
        sender.send(b"b" * 1000)
    keep(area, thread)
    return {"fd": receiver.fileno(), "backlog_packets": amount}
