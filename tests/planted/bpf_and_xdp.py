"""BPF maps that only a file system holds, and the rings of AF_XDP sockets."""

import contextlib
import ctypes
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from planted.child import Truth, held
from planted.held_by_fd import enter_own_mounts
from planted.netlink import enter_new_network
from planted.sockets.common import MIB, PAGE_BYTES, libc

_SYS_BPF = 321  # x86-64
_MAP_CREATE, _OBJECT_PIN, _ARRAY = 0, 6, 2

# include/uapi/linux/if_xdp.h
_AF_XDP, _SOL_XDP = 44, 283
_RX_RING, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 2, 3, 4, 5, 6
_DESCRIPTOR_BYTES, _ADDRESS_BYTES = 16, 8
_CHUNK_BYTES = 2_048
_RINGS = {
    _RX_RING: _DESCRIPTOR_BYTES,
    _TX_RING: _DESCRIPTOR_BYTES,
    _FILL_RING: _ADDRESS_BYTES,
    _COMPLETION_RING: _ADDRESS_BYTES,
}
"""The size of an entry of each ring."""


@dataclass(frozen=True, slots=True)
class PinnedMaps:
    """BPF arrays that no process has an fd of: files of a BPF file system keep them."""

    pid: int
    """A process in whose mount namespace the file system is."""
    mount_point: str
    map_ids: tuple[int, ...]
    value_bytes: int


@dataclass(frozen=True, slots=True)
class XdpRings:
    """AF_XDP sockets of one process, not bound to a device."""

    pid: int
    fds: tuple[int, ...]
    inodes: tuple[int, ...]
    network_namespace: int
    ring_bytes: int
    """The entries of all four rings of all sockets; each ring has less than a page more."""
    user_bytes: int
    """Memory of the process for the packets' data, which the kernel has locked."""


@contextlib.contextmanager
def pinned_maps(maps: int = 4, map_bytes: int = 50 * MIB) -> Iterator[PinnedMaps]:
    """BPF arrays, pinned and closed."""
    with held(_pinned_maps, maps, map_bytes) as child:
        ids = tuple(child.truth["map_ids"])
        yield PinnedMaps(child.pid, child.truth["mount_point"], ids, child.truth["value_bytes"])


@contextlib.contextmanager
def xdp_rings(sockets: int = 8, entries: int = 65_536) -> Iterator[XdpRings]:
    """Rings of so many entries (a power of two)."""
    with held(_xdp_rings, sockets, entries) as child:
        fds = tuple(child.truth["fds"])
        inodes = tuple(child.inode(fd) for fd in fds)
        counts = child.truth["ring_bytes"], child.truth["user_bytes"]
        yield XdpRings(child.pid, fds, inodes, child.network_namespace, *counts)


def _pinned_maps(kept: ExitStack, maps: int, map_bytes: int) -> Truth:
    folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="planted-"))
    enter_own_mounts()
    if libc.mount(b"bpf", folder.encode(), b"bpf", 0, None):
        raise OSError(ctypes.get_errno(), "mount bpf")
    kept.callback(libc.umount2, folder.encode(), 0)
    ids = []
    for number in range(maps):
        fd = bpf(_MAP_CREATE, struct.pack("IIII", _ARRAY, 4, PAGE_BYTES, map_bytes // PAGE_BYTES))
        path = ctypes.create_string_buffer(f"{folder}/map-{number}".encode())
        bpf(_OBJECT_PIN, struct.pack("QI", ctypes.addressof(path), fd))
        (line,) = [
            line for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if line.startswith("map_id:")
        ]
        ids.append(int(line.split()[1]))
        os.close(fd)
    return {"mount_point": folder, "map_ids": ids, "value_bytes": maps * (map_bytes // PAGE_BYTES) * PAGE_BYTES}


def _xdp_rings(kept: ExitStack, sockets: int, entries: int) -> Truth:
    enter_new_network()
    fds, ring_bytes = [], 0
    for _ in range(sockets):
        area = mmap.mmap(-1, PAGE_BYTES)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        xdp = kept.enter_context(socket.socket(_AF_XDP, socket.SOCK_RAW, 0))
        xdp.setsockopt(_SOL_XDP, _UMEM_REG, struct.pack("QQIII4x", start, PAGE_BYTES, _CHUNK_BYTES, 0, 0))
        for ring, entry_bytes in _RINGS.items():
            xdp.setsockopt(_SOL_XDP, ring, struct.pack("i", entries))
            ring_bytes += entries * entry_bytes
        fds.append(xdp.fileno())
    return {"fds": fds, "ring_bytes": ring_bytes, "user_bytes": sockets * PAGE_BYTES}


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2); returns what it returns, an fd in most cases."""
    result: int = libc.syscall(_SYS_BPF, command, ctypes.create_string_buffer(attributes.ljust(120, b"\0"), 120), 120)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return result
