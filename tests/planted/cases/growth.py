"""Memory that grows while it is diagnosed, and stops well before the machine has no more."""

import contextlib
import ctypes
import dataclasses
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from planted.bpf_and_xdp import bpf
from planted.cases.buffers import add_full_pipe, add_packet_ring
from planted.cases.case import Answer, Case, PlantedTruth
from planted.child import Truth, held
from planted.sockets.common import MIB, PAGE_BYTES, SO_RCVBUFFORCE, libc

_MOST_BYTES = 1_200 * MIB
_DATAGRAM_BYTES, _MESSAGE_BYTES = 60_000, 4_000
_CLONE_NEWIPC, _IPC_PRIVATE, _IPC_NOWAIT = 0x08000000, 0, 0o4000
_MAP_CREATE, _ARRAY, _PERCPU_HASH = 0, 2, 5


def _growing(
    step: str, step_bytes: int, pause_seconds: float, truth: PlantedTruth
) -> Callable[[], contextlib.AbstractContextManager[PlantedTruth]]:
    @contextlib.contextmanager
    def plant() -> Iterator[PlantedTruth]:
        with held(_grow, step, step_bytes, pause_seconds) as child:
            rate = round(step_bytes / pause_seconds)
            yield dataclasses.replace(truth, bytes_per_second=rate, pids=(child.pid,))

    return plant


def _grow(kept: ExitStack, step: str, step_bytes: int, pause_seconds: float) -> Truth:
    """Add `step_bytes` every `pause_seconds`."""
    grown = kept.enter_context(ExitStack())  # what the thread adds is closed after it has ended
    ended = threading.Event()

    def add() -> None:
        for _ in range(_MOST_BYTES // step_bytes):
            _STEPS[step](grown, step_bytes)
            if ended.wait(pause_seconds):
                return
        ended.wait()  # what was added may be part of this thread's namespaces

    grower = threading.Thread(target=add)
    grower.start()
    kept.callback(grower.join)
    kept.callback(ended.set)
    return {}


def _add_pipes(kept: ExitStack, size_bytes: int) -> None:
    for _ in range(size_bytes // MIB):
        add_full_pipe(kept)


def _add_datagrams(kept: ExitStack, size_bytes: int) -> None:
    """To one UDP socket that nobody reads; what they keep is a little more than they contain."""
    if not _sockets:
        receiver, sender = (kept.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 30)
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
        _sockets.append(sender)
    for _ in range(size_bytes // _DATAGRAM_BYTES):
        _sockets[0].send(b"g" * _DATAGRAM_BYTES)


def _add_messages(kept: ExitStack, size_bytes: int) -> None:
    """To a System V queue: each message is one object of a page."""
    if not _queues:
        if libc.unshare(_CLONE_NEWIPC):
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/sys/kernel/msgmnb").write_text(str((1 << 31) - 1))
        _queues.append(libc.msgget(_IPC_PRIVATE, 0o600))
    text = ctypes.create_string_buffer(struct.pack("l", 1) + b"g" * _MESSAGE_BYTES)
    for _ in range(size_bytes // PAGE_BYTES):
        if libc.msgsnd(_queues[0], text, ctypes.c_size_t(_MESSAGE_BYTES), _IPC_NOWAIT):
            raise OSError(ctypes.get_errno(), "msgsnd")


def _add_map(kept: ExitStack, size_bytes: int) -> None:
    kept.callback(os.close, bpf(_MAP_CREATE, struct.pack("IIII", _ARRAY, 4, PAGE_BYTES, size_bytes // PAGE_BYTES)))


def _add_percpu_map(kept: ExitStack, size_bytes: int) -> None:
    """A hash map whose values are in per-CPU memory: `size_bytes` on all CPUs together."""
    values = size_bytes // (PAGE_BYTES * _possible_cpus())
    kept.callback(os.close, bpf(_MAP_CREATE, struct.pack("IIII", _PERCPU_HASH, 4, PAGE_BYTES, values)))


def _possible_cpus() -> int:
    return int(Path("/sys/devices/system/cpu/possible").read_text().split("-")[-1]) + 1


def _add_memory(kept: ExitStack, size_bytes: int) -> None:
    area = kept.enter_context(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    for offset in range(0, size_bytes, PAGE_BYTES):
        area[offset] = 1


_sockets: list[socket.socket] = []
_queues: list[int] = []
_STEPS: dict[str, Callable[[ExitStack, int], object]] = {
    "pipes": _add_pipes,
    "packet_rings": add_packet_ring,
    "datagrams": _add_datagrams,
    "messages": _add_messages,
    "maps": _add_map,
    "percpu_maps": _add_percpu_map,
    "memory": _add_memory,
}

_PAGES = PlantedTruth(Answer.LEAK, ("GrowingAllocation", "LargeHolder"), ("AllocPage",))
_UNREAD = PlantedTruth(Answer.LEAK, ("UnreadSocket", "GrowingAllocation"), ("AllocPage",))
_OBJECTS = PlantedTruth(
    Answer.LEAK,
    ("GrowingClass", "GrowingAllocation"),
    ("SUnreclaim",),
    names=("msg_msg-4k", "kmalloc-cg-4k", "kmalloc-4k"),
)
_MAPS = PlantedTruth(Answer.LEAK, ("GrowingAllocation", "GrowingClass", "LargeHolder"), ("Vmalloc",))
_PERCPU = PlantedTruth(Answer.LEAK, ("GrowingAllocation", "GrowingClass", "LargeHolder"), ("Percpu",))
_USER = PlantedTruth(Answer.OPEN, ("ProcessMemory", "GrowingClass"), ("AnonPages",))

CASES = (
    Case("growing_pipes", "full pipes, 16 MiB per second more", _growing("pipes", 2 * MIB, 0.125, _PAGES)),
    Case("growing_packet_rings", "rings, 16 MiB per second more", _growing("packet_rings", 8 * MIB, 0.5, _PAGES)),
    Case("burst", "full pipes, 96 MiB more every 6 seconds", _growing("pipes", 96 * MIB, 6, _PAGES)),
    Case("growing_unread", "unread datagrams, 12 MiB per second more", _growing("datagrams", 6 * MIB, 0.5, _UNREAD)),
    Case("growing_slab", "messages in a queue, 12 MiB per second more", _growing("messages", 6 * MIB, 0.5, _OBJECTS)),
    Case("growing_bpf_maps", "BPF arrays, 16 MiB per second more", _growing("maps", 8 * MIB, 0.5, _MAPS)),
    Case(
        "growing_percpu_maps",
        "BPF maps with values for each CPU, 16 MiB per second more",
        _growing("percpu_maps", 8 * MIB, 0.5, _PERCPU),
    ),
    Case("growing_process", "a process, 16 MiB per second more", _growing("memory", 8 * MIB, 0.5, _USER)),
)
