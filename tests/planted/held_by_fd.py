"""Kernel memory that hangs on a file descriptor, a queue's number or a trace instance: public cases of lost memory.

Each is a context manager that yields a record of what was planted, as its own process counted it.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from planted.child import Truth, held
from planted.netlink import bring_up, enter_new_network, set_mtu
from planted.sockets.common import MIB, PAGE_BYTES, SO_RCVBUFFORCE, SO_SNDBUFFORCE, libc

_SYS_BPF, _SYS_IO_URING_SETUP = 321, 425  # x86-64
_BPF_MAP_CREATE, _BPF_MAP_TYPE_ARRAY = 0, 2
_CLONE_NEWNS, _CLONE_NEWIPC = 0x00020000, 0x08000000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_IPC_PRIVATE, _IPC_NOWAIT = 0, 0o4000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_TUN = "planted-tun"
_SQE_BYTES, _SQ_INDEX_BYTES = 64, 4  # struct io_uring_sqe; an entry of the submission queue's array
_TRACE_HEADER_BYTES = 16  # of each page: struct buffer_data_page
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class UnreadDatagrams:
    """Datagrams in one UDP socket."""

    pid: int
    fd: int
    inode: int
    datagrams: int
    unread_bytes: int


@dataclass(frozen=True, slots=True)
class TunQueue:
    """Packets that the kernel has sent to a tun device, and that its process does not read."""

    pid: int
    fd: int
    device: str
    network_namespace: int
    packets: int
    packet_bytes: int
    """Of all packets, with their IP and UDP headers."""


@dataclass(frozen=True, slots=True)
class SysvMessages:
    """Messages in a System V queue, in an IPC namespace of its own. Each is one object of kmalloc."""

    pid: int
    queue: int
    messages: int
    object_bytes: int
    """The size of the slab object of each message: the cache's name differs between kernels."""


@dataclass(frozen=True, slots=True)
class IoUringRings:
    """io_uring instances of one process."""

    pid: int
    fds: tuple[int, ...]
    ring_bytes: int
    """Of all rings, as asked for in pages. Kernels that take each ring as one block round it up to a power of two."""


@dataclass(frozen=True, slots=True)
class FtraceBuffer:
    """The ring buffers of a trace instance, one for each CPU."""

    pid: int
    """The process that made it, in whose mount namespace tracefs is. It holds no fd of it."""
    instance: str
    buffer_bytes: int
    """Whole pages, with their headers."""


@dataclass(frozen=True, slots=True)
class BpfMaps:
    """BPF arrays of one process, not pinned."""

    pid: int
    fds: tuple[int, ...]
    value_bytes: int
    """Of all values of all maps."""


@contextlib.contextmanager
def slab_heads(datagrams: int = 500_000, datagram_bytes: int = 300) -> Iterator[UnreadDatagrams]:
    """Small datagrams in one UDP queue: nearly all that they keep is slab."""
    with held(_slab_heads, datagrams, datagram_bytes) as child:
        fd = child.truth["fd"]
        yield UnreadDatagrams(child.pid, fd, child.inode(fd), datagrams, child.truth["unread_bytes"])


@contextlib.contextmanager
def tun_queue(packets: int = 4_000, payload_bytes: int = 60_000) -> Iterator[TunQueue]:
    """Large packets in the ring of a tun device in a network namespace of its own."""
    with held(_tun_queue, packets, payload_bytes) as child:
        truth = child.truth
        yield TunQueue(child.pid, truth["fd"], _TUN, child.network_namespace, packets, truth["packet_bytes"])


@contextlib.contextmanager
def slab_leak(messages: int = 100_000) -> Iterator[SysvMessages]:
    """System V messages of 4,000 bytes, which fill slab objects of one page."""
    with held(_slab_leak, messages) as child:
        yield SysvMessages(child.pid, child.truth["queue"], messages, PAGE_BYTES)


@contextlib.contextmanager
def io_uring_rings(rings: int = 60, entries: int = 32_768) -> Iterator[IoUringRings]:
    """Empty rings of many entries."""
    with held(_io_uring_rings, rings, entries) as child:
        yield IoUringRings(child.pid, tuple(child.truth["fds"]), child.truth["ring_bytes"])


@contextlib.contextmanager
def ftrace_buffer(bytes_per_cpu: int = 64 * MIB) -> Iterator[FtraceBuffer]:
    """The buffers of an instance of its own; tracefs is mounted only for the child, and the instance is removed."""
    with held(_ftrace_buffer, bytes_per_cpu) as child:
        yield FtraceBuffer(child.pid, child.truth["instance"], child.truth["buffer_bytes"])


@contextlib.contextmanager
def bpf_maps(maps: int = 4, map_bytes: int = 50 * MIB) -> Iterator[BpfMaps]:
    """BPF arrays, which are vmalloc memory."""
    with held(_bpf_maps, maps, map_bytes) as child:
        yield BpfMaps(child.pid, tuple(child.truth["fds"]), child.truth["value_bytes"])


def enter_own_mounts() -> None:
    """A mount namespace in which mounts stay private: they end with the process."""
    if libc.unshare(_CLONE_NEWNS) or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "unshare, mount")


def _slab_heads(kept: ExitStack, datagrams: int, datagram_bytes: int) -> Truth:
    enter_new_network()
    bring_up("lo")
    receiver = kept.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _GIB)
    receiver.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(receiver.getsockname())
        sent = b"s" * datagram_bytes
        unread_bytes = sum(sender.send(sent) for _ in range(datagrams))
    return {"fd": receiver.fileno(), "unread_bytes": unread_bytes}


def _tun_queue(kept: ExitStack, packets: int, payload_bytes: int) -> Truth:
    enter_new_network()
    tun = os.open("/dev/net/tun", os.O_RDWR)
    kept.callback(os.close, tun)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH14x", _TUN.encode(), _IFF_TUN | _IFF_NO_PI))
    set_mtu(_TUN, 65_000)
    bring_up(_TUN, "10.99.9.1", queue_packets=max(packets, 500))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _GIB)
        for _ in range(packets):
            sender.sendto(b"t" * payload_bytes, ("10.99.9.2", 9))
    return {"fd": tun, "packet_bytes": packets * (payload_bytes + 28)}


def _slab_leak(kept: ExitStack, messages: int) -> Truth:
    if libc.unshare(_CLONE_NEWIPC):  # the limits are this namespace's, and the queue ends with it
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/sys/kernel/msgmnb").write_text(str(_GIB))
    queue, text_bytes = libc.msgget(_IPC_PRIVATE, 0o600), 4_000
    text = ctypes.create_string_buffer(struct.pack("l", 1) + b"m" * text_bytes)
    for _ in range(messages):
        if libc.msgsnd(queue, text, ctypes.c_size_t(text_bytes), _IPC_NOWAIT):
            raise OSError(ctypes.get_errno(), "msgsnd")
    return {"queue": queue}


def _io_uring_rings(kept: ExitStack, rings: int, entries: int) -> Truth:
    fds, ring_bytes = [], 0
    for _ in range(rings):
        parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
        fd = libc.syscall(_SYS_IO_URING_SETUP, entries, parameters)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        kept.callback(os.close, fd)
        fds.append(fd)
        (array_offset,) = struct.unpack_from("I", parameters, 40 + 24)  # sq_off.array: the last part of the ring
        for part_bytes in (array_offset + entries * _SQ_INDEX_BYTES, entries * _SQE_BYTES):
            ring_bytes += -(-part_bytes // PAGE_BYTES) * PAGE_BYTES
    return {"fds": fds, "ring_bytes": ring_bytes}


def _ftrace_buffer(kept: ExitStack, bytes_per_cpu: int) -> Truth:
    enter_own_mounts()
    folder = kept.enter_context(tempfile.TemporaryDirectory())
    if libc.mount(b"tracefs", folder.encode(), b"tracefs", 0, None):
        raise OSError(ctypes.get_errno(), "mount tracefs")
    kept.callback(libc.umount2, folder.encode(), 0)
    instance = Path(folder) / "instances" / f"planted-{os.getpid()}"
    instance.mkdir()
    kept.callback(instance.rmdir)
    (instance / "buffer_size_kb").write_text(str(bytes_per_cpu >> 10))
    cpus = len(list((instance / "per_cpu").iterdir()))
    # kernel/trace/ring_buffer.c: room for so many bytes of data, and the page that a reader swaps for a full one.
    pages = -(-bytes_per_cpu // (PAGE_BYTES - _TRACE_HEADER_BYTES)) + 1
    return {"instance": instance.name, "buffer_bytes": cpus * pages * PAGE_BYTES}


def _bpf_maps(kept: ExitStack, maps: int, map_bytes: int) -> Truth:
    fds = []
    attributes = struct.pack("IIII", _BPF_MAP_TYPE_ARRAY, 4, PAGE_BYTES, map_bytes // PAGE_BYTES).ljust(72, b"\0")
    for _ in range(maps):
        fd = libc.syscall(_SYS_BPF, _BPF_MAP_CREATE, attributes, len(attributes))
        if fd < 0:
            raise OSError(ctypes.get_errno(), "bpf")
        kept.callback(os.close, fd)
        fds.append(fd)
    return {"fds": fds, "value_bytes": maps * (map_bytes // PAGE_BYTES) * PAGE_BYTES}
