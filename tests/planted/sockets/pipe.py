"""Pipes, which hold pages like sockets do, and can take pages over from sockets."""

import ctypes
import fcntl
import os
import socket

from planted.sockets.common import F_SETPIPE_SZ, MIB, PAGE_BYTES, Truth, kept, libc


def pipe(amount: int) -> Truth:
    """`amount` pages written into a pipe."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, F_SETPIPE_SZ, max(65536, amount * PAGE_BYTES))
    written = os.write(write_end, b"p" * (amount * PAGE_BYTES))
    return {"fds": [read_end, write_end], "unread_bytes": written, "pinned_bytes": amount * PAGE_BYTES}


def pipe_from_last_socket(amount: int) -> Truth:
    """Splice up to `amount` bytes out of the last connection's receiver into a pipe."""
    receiver = kept[-1]
    assert isinstance(receiver, socket.socket)
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, F_SETPIPE_SZ, MIB)
    moved = 0
    while moved < amount:
        part = libc.splice(receiver.fileno(), None, write_end, None, ctypes.c_size_t(amount - moved), 2)
        if part <= 0:
            break
        moved += part
    return {"fds": [read_end, write_end], "unread_bytes": moved}
