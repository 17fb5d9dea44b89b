"""Loads of known size, each held by a child process until the test releases it.

with PlantedMemory("pipes", 64 * MIB) as load:   # the child has started, nothing is planted yet
    before = ...
    planted_bytes = load.plant()                 # what the child itself counted
    ...
    load.release()                               # the load is gone, the child is still there
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Self

MIB = 1 << 20
_PAGE_BYTES = mmap.PAGESIZE
_STACK_BYTES = 16384  # THREAD_SIZE of x86-64 and arm64 with 4 KiB pages
_HUGE_PAGE_BYTES = 2 * MIB  # what one page of page table maps, with 4 KiB pages
_PR_SET_PDEATHSIG = 1
_SOL_PACKET, _PACKET_RX_RING = 263, 5
_IPC_PRIVATE, _IPC_RMID, _SHM_LOCK = 0, 0, 11
_planted = contextlib.ExitStack()  # in the child: how to release each piece of the load


class PlantedMemory:
    """A child process that holds one load. The process and its load end with the context."""

    def __init__(self, kind: str, size_bytes: int) -> None:
        self._child = subprocess.Popen(
            [sys.executable, __file__, kind, str(size_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._expect("started")

    @property
    def pid(self) -> int:
        """The pid of the child."""
        return self._child.pid

    def plant(self) -> int:
        """Make the child plant its load; returns the bytes that it counted."""
        assert self._child.stdin is not None
        self._child.stdin.write("plant\n")
        return int(self._expect("planted"))

    def release(self) -> None:
        """Make the child release its load."""
        assert self._child.stdin is not None
        self._child.stdin.write("release\n")
        self._expect("released")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def _expect(self, word: str) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        said, _, value = line.strip().partition(" ")
        if said != word:
            raise RuntimeError(
                f"the planting child said {line!r} instead of {word}, and ended with {self._child.poll()}"
            )
        return value


def _anon(size_bytes: int) -> int:
    _touched_anon(size_bytes, mmap.MADV_NOHUGEPAGE)
    return size_bytes


def _forked_anon(size_bytes: int) -> int:
    """Anonymous memory that a fork shares: both count it, and it exists once."""
    _touched_anon(size_bytes, mmap.MADV_NOHUGEPAGE)
    pid = os.fork()
    if not pid:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pause()
        os._exit(0)
    _planted.callback(os.waitpid, pid, 0)
    _planted.callback(os.kill, pid, signal.SIGKILL)
    return size_bytes


def _huge_anon(size_bytes: int) -> int:
    _touched_anon(size_bytes, mmap.MADV_HUGEPAGE)
    return size_bytes


def _locked_anon(size_bytes: int) -> int:
    area = _touched_anon(size_bytes, mmap.MADV_NOHUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes)):
        raise OSError(ctypes.get_errno(), "mlock")
    return size_bytes


def _touched_anon(size_bytes: int, advice: int) -> mmap.mmap:
    area = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(advice)
    for offset in range(0, size_bytes, _PAGE_BYTES):
        area[offset] = 1
    _planted.callback(area.close)
    return area


def _file(size_bytes: int) -> int:
    file = _planted.enter_context(tempfile.TemporaryFile(dir="."))  # noqa: SIM115 - the ExitStack closes it
    _fill(file.fileno(), size_bytes)
    return size_bytes


def _shmem(size_bytes: int) -> int:
    memory = os.memfd_create("planted")
    _planted.callback(os.close, memory)
    _fill(memory, size_bytes)
    return size_bytes


def _locked_shmem(size_bytes: int) -> int:
    """A System V segment under SHM_LOCK: on the unevictable list, but not part of Mlocked. It ends with its child."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(_IPC_PRIVATE, ctypes.c_size_t(size_bytes), 0o600)
    address = libc.shmat(segment, None, 0)
    if segment < 0 or libc.shmctl(segment, _IPC_RMID, None) or libc.shmctl(segment, _SHM_LOCK, None):
        raise OSError(ctypes.get_errno(), "shmget, shmctl")
    ctypes.memset(address, 1, size_bytes)
    _planted.callback(libc.shmdt, ctypes.c_void_p(address))
    return size_bytes


def _fill(fd: int, size_bytes: int) -> None:
    for _ in range(size_bytes // MIB):
        os.write(fd, b"x" * MIB)


def _pipes(size_bytes: int) -> int:
    written_bytes = 0
    while written_bytes < size_bytes:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, MIB)
        written_bytes += os.write(writer, b"x" * MIB)
        _planted.callback(os.close, reader)
        _planted.callback(os.close, writer)
    return written_bytes


def _packet_ring(size_bytes: int) -> int:
    block_bytes, frame_bytes = 65536, 2048
    blocks = size_bytes // block_bytes
    ring = _planted.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    ring.setsockopt(
        _SOL_PACKET,
        _PACKET_RX_RING,
        struct.pack("IIII", block_bytes, blocks, frame_bytes, size_bytes // frame_bytes),
    )
    return blocks * block_bytes


def _tcp_queues(size_bytes: int) -> int:
    """Bulk data that nobody reads: it fills its page fragments, so pinned bytes and payload are nearly the same."""
    listener = _planted.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
    sent_bytes = 0
    while sent_bytes < size_bytes:
        sender = _planted.enter_context(socket.create_connection(listener.getsockname()))
        _planted.enter_context(listener.accept()[0])
        sender.settimeout(0.05)
        try:
            while sent_bytes < size_bytes:
                sent_bytes += sender.send(b"x" * 65536)
        except TimeoutError:
            continue
    return sent_bytes


def _small_datagrams(size_bytes: int) -> int:
    """Datagrams small enough to be in slab memory; returns their payload."""
    sent_bytes, message = 0, b"x" * 1000
    while sent_bytes < size_bytes:
        receiver = _planted.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver.setsockopt(socket.SOL_SOCKET, 33, 32 * MIB)  # SO_RCVBUFFORCE
        receiver.bind(("127.0.0.1", 0))
        sender = _planted.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for _ in range(8000):
            sent_bytes += sender.sendto(message, receiver.getsockname())
    return sent_bytes


def _page_tables(size_bytes: int) -> int:
    """Read one page of every 2 MiB of a huge empty mapping: each takes a page of page table, and the zero page."""
    tables = size_bytes // _PAGE_BYTES
    area = mmap.mmap(
        -1,
        tables * _HUGE_PAGE_BYTES,
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        prot=mmap.PROT_READ,
    )
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for table in range(tables):
        area[table * _HUGE_PAGE_BYTES]
    _planted.callback(area.close)
    return tables * _PAGE_BYTES


def _thread_stacks(size_bytes: int) -> int:
    threading.stack_size(65536)
    enough = threading.Event()
    threads = [threading.Thread(target=enough.wait, daemon=True) for _ in range(size_bytes // _STACK_BYTES)]
    for thread in threads:
        thread.start()
        _planted.callback(thread.join)
    _planted.callback(enough.set)
    return len(threads) * _STACK_BYTES


KINDS: dict[str, Callable[[int], int]] = {
    "anon": _anon,
    "forked_anon": _forked_anon,
    "huge_anon": _huge_anon,
    "locked_anon": _locked_anon,
    "file": _file,
    "shmem": _shmem,
    "locked_shmem": _locked_shmem,
    "pipes": _pipes,
    "packet_ring": _packet_ring,
    "tcp_queues": _tcp_queues,
    "small_datagrams": _small_datagrams,
    "page_tables": _page_tables,
    "thread_stacks": _thread_stacks,
}


def _main() -> None:
    kind, size_bytes = sys.argv[1], int(sys.argv[2])
    print("started", flush=True)
    if sys.stdin.readline():
        print("planted", KINDS[kind](size_bytes), flush=True)
    if sys.stdin.readline():
        _planted.close()
        print("released", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    _main()
