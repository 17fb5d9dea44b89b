"""io_urings that nobody uses, with what is registered with them."""

import ctypes
import errno
import mmap
import os
import struct

from planted.sockets.common import Truth, keep, libc

_IO_URING_SETUP, _IO_URING_REGISTER = 425, 427
_REGISTER_BUFFERS, _REGISTER_BUFFER_RING = 0, 22  # include/uapi/linux/io_uring.h
_KERNEL_ALLOCATES = 1  # IOU_PBUF_RING_MMAP


def io_urings(amount: int, entries: int) -> Truth:
    fds = [_call(_IO_URING_SETUP, entries, ctypes.create_string_buffer(120)) for _ in range(amount)]
    keep(*fds)
    return {"fds": fds}


def io_uring_with_buffers(entries: int, size: int) -> Truth:
    """One with a registered buffer of `size` bytes and a ring of `entries` provided buffers."""
    (fd,) = io_urings(1, 8)["fds"]
    memory = mmap.mmap(-1, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _call(_IO_URING_REGISTER, fd, _REGISTER_BUFFERS, struct.pack("QQ", address, size), 1)
    for group in (3, 700):
        ring = struct.pack("QIHH3Q", 0, entries, group, _KERNEL_ALLOCATES, 0, 0, 0)
        _call(_IO_URING_REGISTER, fd, _REGISTER_BUFFER_RING, ring, 1)
    keep(memory)
    return {"fd": fd, "ring_bytes": 2 * entries * 16, "user_bytes": size}


def io_uring_unmapped_buffer(size_bytes: int) -> Truth:
    """One with a registered buffer that the process has unmapped."""
    (fd,) = io_urings(1, 8)["fds"]
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        start = ctypes.c_char.from_buffer(memory)
        _call(_IO_URING_REGISTER, fd, _REGISTER_BUFFERS, struct.pack("QQ", ctypes.addressof(start), size_bytes), 1)
        del start
    return {"fd": fd}


def _call(*arguments: object) -> int:
    result: int = libc.syscall(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"io_uring: {errno.errorcode.get(code)}, {os.strerror(code)}")
    return result
