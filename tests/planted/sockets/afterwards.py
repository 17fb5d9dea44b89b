"""Actions on a planted socket: read it, give it away; and on the process that planted it."""

import ctypes
import os
import select
import socket

from planted.sockets.common import MIB, Truth, kept, libc

_IORING_REGISTER_FILES = 2


def read_and_refill(fd: int, sender_fd: int, size: int) -> Truth:
    """Read the only packet, then send another like it."""
    read = os.read(fd, size)
    os.write(sender_fd, b"1" * size)
    return {"read_bytes": len(read)}


def read_nothing(fd: int) -> Truth:
    """Peek at the only packet, and try to read from an empty socket."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return {"peeked_bytes": len(sock.recv(MIB, socket.MSG_PEEK))}


def read_fd(fd: int, size: int) -> Truth:
    """Read once; from a datagram socket the first datagram, and nothing if it is empty."""
    ready, _, _ = select.select([fd], [], [], 0)
    return {"read_bytes": len(os.read(fd, size)) if ready else 0}


def register_fd(fd: int) -> Truth:
    """Register a planted socket with io_uring and close its fd: it stays open, without an fd in any process."""
    ring = libc.syscall(425, 1, ctypes.create_string_buffer(120))  # io_uring_setup, struct io_uring_params
    if ring < 0 or libc.syscall(427, ring, _IORING_REGISTER_FILES, ctypes.byref(ctypes.c_int(fd)), 1):
        raise OSError(ctypes.get_errno(), "io_uring")
    inode = os.fstat(fd).st_ino
    next(thing for thing in kept if isinstance(thing, socket.socket) and thing.fileno() == fd).close()
    return {"inode": inode}


def become_user(uid: int) -> Truth:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    return {}
