"""Buffers that a process has asked the kernel for: rings, pipes, BPF maps, the kernel's trace buffer."""

import contextlib
import ctypes
import dataclasses
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

from planted import allocations, bpf_and_xdp, held_by_fd
from planted.cases.case import Answer, Case, PlantedTruth, of_child
from planted.child import Truth, held
from planted.sockets.common import F_SETPIPE_SZ, MIB, PAGE_BYTES

_SOL_PACKET, _PACKET_RX_RING = 263, 5
_AF_XDP, _SOL_XDP, _XDP_UMEM_REG = 44, 283, 4
_RING_BLOCK_BYTES, _RING_FRAME_BYTES = 65_536, 2_048
_HOLDER = ("LargeHolder",)


@contextlib.contextmanager
def _packet_ring() -> Iterator[PlantedTruth]:
    with held(_packet_rings, 1, 192 * MIB) as child:
        yield of_child(child, Answer.HARMLESS, _HOLDER, "AllocPage")


@contextlib.contextmanager
def _full_pipes() -> Iterator[PlantedTruth]:
    with held(_pipes, 200) as child:
        yield of_child(child, Answer.LEAK, _HOLDER, "AllocPage")


@contextlib.contextmanager
def _perf_buffers() -> Iterator[PlantedTruth]:
    with held(_perf, 200 * MIB) as child:
        yield of_child(child, Answer.HARMLESS, _HOLDER, "AllocPage")


@contextlib.contextmanager
def _io_uring_rings() -> Iterator[PlantedTruth]:
    with held_by_fd.io_uring_rings() as load:
        yield PlantedTruth(Answer.HARMLESS, _HOLDER, ("AllocPage",), load.ring_bytes, pids=(load.pid,), fds=load.fds)


@contextlib.contextmanager
def _ftrace_buffer() -> Iterator[PlantedTruth]:
    with held_by_fd.ftrace_buffer() as load:
        names = ("ftrace", load.instance)
        yield PlantedTruth(Answer.HARMLESS, _HOLDER, ("AllocPage",), load.buffer_bytes, names=names)


@contextlib.contextmanager
def _bpf_maps() -> Iterator[PlantedTruth]:
    with held_by_fd.bpf_maps() as load:
        yield PlantedTruth(Answer.HARMLESS, _HOLDER, ("Vmalloc",), load.value_bytes, pids=(load.pid,), fds=load.fds)


@contextlib.contextmanager
def _pinned_maps() -> Iterator[PlantedTruth]:
    with bpf_and_xdp.pinned_maps() as load:
        names = ("BPF", "bpf", load.mount_point)
        yield PlantedTruth(Answer.HARMLESS, _HOLDER, ("Vmalloc",), load.value_bytes, names=names)


@contextlib.contextmanager
def _xdp_rings() -> Iterator[PlantedTruth]:
    with bpf_and_xdp.xdp_rings(sockets=4, entries=1 << 20) as load:
        yield PlantedTruth(Answer.HARMLESS, _HOLDER, ("Vmalloc",), load.ring_bytes, pids=(load.pid,), fds=load.fds)


@contextlib.contextmanager
def _xdp_umem() -> Iterator[PlantedTruth]:
    with held(_umem, 400 * MIB) as child:
        yield of_child(child, Answer.HARMLESS, ("ProcessMemory", "LargeHolder"), "AnonPages")


@contextlib.contextmanager
def _unmapped_umem() -> Iterator[PlantedTruth]:
    with held(_unmap_umem, 300 * MIB) as child:
        truth = of_child(child, Answer.OPEN, _HOLDER, "AllocPage")
        yield dataclasses.replace(truth, memory_classes=("AllocPage", "AnonPages"))


def add_packet_ring(kept: ExitStack, size_bytes: int) -> int:
    """An AF_PACKET socket with a ring that receives nothing; returns its fd."""
    ring = kept.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    blocks, frames = size_bytes // _RING_BLOCK_BYTES, size_bytes // _RING_FRAME_BYTES
    ring.setsockopt(
        _SOL_PACKET, _PACKET_RX_RING, struct.pack("IIII", _RING_BLOCK_BYTES, blocks, _RING_FRAME_BYTES, frames)
    )
    kept.enter_context(mmap.mmap(ring.fileno(), size_bytes))
    return ring.fileno()


def add_full_pipe(kept: ExitStack) -> tuple[int, int]:
    """A pipe of 1 MiB that is full; returns its reader's fd and its writer's."""
    reader, writer = os.pipe()
    kept.callback(os.close, reader)
    kept.callback(os.close, writer)
    fcntl.fcntl(writer, F_SETPIPE_SZ, MIB)
    os.write(writer, b"p" * MIB)
    return reader, writer


def _packet_rings(kept: ExitStack, rings: int, size_bytes: int) -> Truth:
    fds = [add_packet_ring(kept, size_bytes) for _ in range(rings)]
    return {"fds": fds, "size_bytes": rings * size_bytes}


def _pipes(kept: ExitStack, pipes: int) -> Truth:
    fds = [fd for _ in range(pipes) for fd in add_full_pipe(kept)]
    return {"fds": fds, "size_bytes": pipes * MIB}


def _perf(kept: ExitStack, size_bytes: int) -> Truth:
    return {"size_bytes": allocations.perf_buffers(size_bytes)}


def _unmap_umem(kept: ExitStack, size_bytes: int) -> Truth:
    """The process gives the memory back, and the kernel keeps it for the socket."""
    with ExitStack() as mapped:
        fd = os.dup(_umem(mapped, size_bytes)["fds"][0])
    kept.callback(os.close, fd)
    return {"fds": [fd], "size_bytes": size_bytes}


def _umem(kept: ExitStack, size_bytes: int) -> Truth:
    """Memory of the process for packets, which the kernel takes and locks."""
    memory = kept.enter_context(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    xdp = kept.enter_context(socket.socket(_AF_XDP, socket.SOCK_RAW, 0))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    xdp.setsockopt(_SOL_XDP, _XDP_UMEM_REG, struct.pack("QQIII4x", start, size_bytes, PAGE_BYTES, 0, 0))
    return {"fds": [xdp.fileno()], "size_bytes": size_bytes}


CASES = (
    Case("packet_ring", "an AF_PACKET ring of 192 MiB", _packet_ring),
    Case("full_pipes", "200 pipes of 1 MiB that nobody reads", _full_pipes),
    Case("perf_buffers", "ring buffers of perf events", _perf_buffers),
    Case("io_uring_rings", "60 io_uring instances of 32,768 entries", _io_uring_rings),
    Case("ftrace_buffer", "a trace instance with 64 MiB for each CPU", _ftrace_buffer),
    Case("bpf_maps", "four BPF arrays of 50 MiB", _bpf_maps),
    Case("pinned_bpf_maps", "the same, kept by files of a BPF file system only", _pinned_maps),
    Case("xdp_rings", "four AF_XDP sockets with rings of a million entries", _xdp_rings),
    Case("xdp_umem", "an AF_XDP socket's 400 MiB for packets", _xdp_umem),
    Case("unmapped_umem", "the same, 300 MiB, after the process has unmapped it", _unmapped_umem),
)
