"""Kernel page allocations of known size, allocated and freed step by step by a child process.

with Allocator() as child:
    planted_bytes = child.do("fill_pipes", 16 * MIB)   # what the child itself counted
    child.do("empty_pipes")
"""

import ctypes
import mmap
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

PAGE_BYTES = mmap.PAGESIZE
MIB = 1 << 20
_PIPE_BYTES = 65536
_SYS_BPF, _SYS_PERF_EVENT_OPEN = 321, 298  # x86-64
_BPF_MAP_CREATE, _BPF_MAP_TYPE_ARRAY, _BPF_MAP_TYPE_RINGBUF = 0, 2, 27
_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_DUMMY = 1, 9

_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[object] = []
_pipes: list[tuple[int, int]] = []


class Allocator:
    """A child process that runs steps on request. Everything that it holds is freed when the context ends."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()

    @property
    def pid(self) -> int:
        return self._child.pid

    def do(self, step: str, amount: int = 0) -> int:
        """Make the child do a step; returns what it counted."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{step} {amount}\n")
        return self._answer()

    def _answer(self) -> int:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.startswith("done "):
            raise RuntimeError(f"the planting child said {line!r} and ended with {self._child.poll()}")
        return int(line.split()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()


def fill_pipes(size_bytes: int) -> int:
    for _ in range(size_bytes // _PIPE_BYTES):
        reader, writer = os.pipe()
        os.write(writer, b"x" * _PIPE_BYTES)
        _pipes.append((reader, writer))
    return size_bytes // _PIPE_BYTES * _PIPE_BYTES


def empty_pipes(_: int) -> int:
    for reader, writer in _pipes:
        os.close(writer)
        os.close(reader)
    emptied = len(_pipes) * _PIPE_BYTES
    _pipes.clear()
    return emptied


def churn_pipes(rounds: int) -> int:
    """Write and read the same pipe repeatedly: many allocations, nothing kept."""
    reader, writer = os.pipe()
    for _ in range(rounds):
        os.write(writer, b"x" * _PIPE_BYTES)
        os.read(reader, _PIPE_BYTES)
    os.close(reader)
    os.close(writer)
    return 0


def fill_pipes_and_exit(size_bytes: int) -> int:
    """Let another process fill pipes and exit; the pipes stay open here. Returns its pid."""
    pairs = [os.pipe() for _ in range(size_bytes // _PIPE_BYTES)]
    pid = os.fork()
    if pid == 0:
        Path("/proc/self/comm").write_text("short-lived")
        for _, writer in pairs:
            os.write(writer, b"x" * _PIPE_BYTES)
        os._exit(0)
    os.waitpid(pid, 0)
    _pipes.extend(pairs)
    return pid


def perf_buffers(size_bytes: int) -> int:
    """Perf ring buffers: pages of kernel memory that user space maps."""
    data_pages = 256
    attributes = struct.pack("IIQQQQQ", _PERF_TYPE_SOFTWARE, 112, _PERF_COUNT_SW_DUMMY, 0, 0, 0, 1).ljust(112, b"\0")
    buffers = size_bytes // (data_pages * PAGE_BYTES)
    for _ in range(buffers):
        fd = _libc.syscall(_SYS_PERF_EVENT_OPEN, attributes, 0, -1, -1, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "perf_event_open")
        buffer = mmap.mmap(fd, (data_pages + 1) * PAGE_BYTES)
        buffer[::PAGE_BYTES]  # map every page
        _kept.append(buffer)
    return buffers * (data_pages + 1) * PAGE_BYTES


def bpf_map(size_bytes: int) -> int:
    attributes = struct.pack("IIII", _BPF_MAP_TYPE_ARRAY, 4, 4096, size_bytes // 4096).ljust(72, b"\0")
    fd = _libc.syscall(_SYS_BPF, _BPF_MAP_CREATE, attributes, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    _kept.append(fd)
    return size_bytes


def bpf_ring_buffer(size_bytes: int) -> int:
    """A BPF ring buffer; returns its fd."""
    attributes = struct.pack("IIII", _BPF_MAP_TYPE_RINGBUF, 0, 0, size_bytes).ljust(72, b"\0")
    fd: int = _libc.syscall(_SYS_BPF, _BPF_MAP_CREATE, attributes, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    _kept.append(fd)
    return fd


def slab(count: int) -> int:
    """Sockets: each takes kilobytes of slab memory."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, count + 64))
    _kept.extend(socket.socket(socket.AF_INET6, socket.SOCK_STREAM) for _ in range(count))
    return count


STEPS: dict[str, Callable[[int], int]] = {
    step.__name__: step
    for step in (
        fill_pipes,
        empty_pipes,
        churn_pipes,
        fill_pipes_and_exit,
        perf_buffers,
        bpf_map,
        bpf_ring_buffer,
        slab,
    )
}


def _main() -> None:
    print("done 0", flush=True)
    for line in sys.stdin:
        step, amount = line.split()
        print("done", STEPS[step](int(amount)), flush=True)


if __name__ == "__main__":
    _main()
