"""AF_XDP sockets that are not bound to a device."""

import ctypes
import mmap
import socket
import struct

from planted.sockets.common import Truth, keep

_AF_XDP, _SOL_XDP = 44, 283
_RX_RING, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 2, 3, 4, 5, 6  # include/uapi/linux/if_xdp.h
_CHUNK_BYTES = 4096


def xdp_unmapped_umem(size_bytes: int, flags: int) -> Truth:
    """One whose memory for packets the process has unmapped. `flags` are those of mmap(2)."""
    one = socket.socket(_AF_XDP, socket.SOCK_RAW, 0)
    with mmap.mmap(-1, size_bytes, flags=flags | mmap.MAP_ANONYMOUS) as memory:
        start = ctypes.c_char.from_buffer(memory)
        umem = struct.pack("QQIIII", ctypes.addressof(start), size_bytes, _CHUNK_BYTES, 0, 0, 0)
        one.setsockopt(_SOL_XDP, _UMEM_REG, umem)
        del start
    keep(one)
    return {"fd": one.fileno()}


def xdp_socket(entries: int, chunks: int) -> Truth:
    """One with all four rings of `entries` entries: descriptors of 16 bytes, or addresses of 8."""
    one = socket.socket(_AF_XDP, socket.SOCK_RAW, 0)
    memory = mmap.mmap(-1, chunks * _CHUNK_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    one.setsockopt(_SOL_XDP, _UMEM_REG, struct.pack("QQIIII", address, len(memory), _CHUNK_BYTES, 0, 0, 0))
    for ring in (_RX_RING, _TX_RING, _FILL_RING, _COMPLETION_RING):
        one.setsockopt(_SOL_XDP, ring, struct.pack("I", entries))
    keep(one, memory)
    return {"fd": one.fileno(), "ring_bytes": entries * (16 + 16 + 8 + 8), "user_bytes": len(memory)}
