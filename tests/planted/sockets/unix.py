"""UNIX sockets, and the sockets in flight in them."""

import os
import socket
import subprocess

from planted.sockets.common import MIB, SO_SNDBUFFORCE, Truth, keep, lone, udp_pair


def _unix(kind: int, amount: int) -> Truth:
    sender, receiver = socket.socketpair(socket.AF_UNIX, kind)
    sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 256 * MIB)
    sender.setblocking(False)
    sent = sum(sender.send(b"z" * 30000) for _ in range(amount))
    keep(sender, receiver)
    return {"fd": receiver.fileno(), "unread_bytes": sent, "sender_fd": sender.fileno()}


def unix_stream(amount: int) -> Truth:
    return _unix(socket.SOCK_STREAM, amount)


def unix_seqpacket(amount: int) -> Truth:
    return _unix(socket.SOCK_SEQPACKET, amount)


def unix_datagram(amount: int) -> Truth:
    """Datagrams to a bound socket from `amount` connected senders (a single one may queue only a few)."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind("\0memdiag planted datagrams")
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for _ in range(amount):
        sender.sendto(b"d" * 3000, "\0memdiag planted datagrams")
    keep(receiver, sender)
    return {"fd": receiver.fileno(), "unread_bytes": 3000 * amount, "packets": amount}


def unix_lone(size: int) -> Truth:
    return lone(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), size)


def unix_lone_seqpacket(size: int) -> Truth:
    return lone(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), size)


def unix_partly_read(amount: int) -> Truth:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sender.send(b"z" * amount)
    receiver.recv(amount // 3)
    keep(sender, receiver)
    return {"fd": receiver.fileno(), "unread_bytes": amount - amount // 3}


def unix_unaccepted(amount: int) -> Truth:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0memdiag planted listener")
    listener.listen(5)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect("\0memdiag planted listener")
    client.sendall(b"u" * amount)
    keep(listener, client)
    return {"fd": listener.fileno(), "unread_bytes": amount}


def unix_in_flight(amount: int) -> Truth:
    """A UDP socket with unread datagrams, sent over a UNIX socket, with its fds closed."""
    _, receiver = udp_pair()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(amount):
        sender.sendto(b"y" * 32000, receiver.getsockname())
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    port, inode = receiver.getsockname()[1], os.fstat(receiver.fileno()).st_ino
    socket.send_fds(a, [b"!"], [receiver.fileno()])
    receiver.close()
    keep(a, b, sender)
    return {"carrier_fd": b.fileno(), "unread_bytes": 32000 * amount, "port": port, "inode": inode}


def shared_socket(amount: int) -> Truth:
    """One UNIX socket with three fds, two of them in this process, one in a child process."""
    truth = _unix(socket.SOCK_STREAM, amount)
    again = os.dup(truth["fd"])
    child = subprocess.Popen(["sleep", "infinity"], pass_fds=[again])
    keep(child)
    return truth | {"fds": sorted([truth["fd"], again]), "child_pid": child.pid, "child_fd": again}
