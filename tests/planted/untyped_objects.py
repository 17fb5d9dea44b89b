"""Objects of untyped caches, of known kinds and in known number, for the clues of the census."""

import ctypes
import os
import resource
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from support.bpf import create_array_map

_CLOCK_MONOTONIC = 1
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def _many(create: Callable[[], Sequence[int]], count: int) -> Iterator[None]:
    """Call `create` for fds, and close them all at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 256
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    try:
        with ExitStack() as fds:
            for _ in range(count):
                for fd in create():
                    fds.callback(os.close, fd)
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, wanted)))


def _filled_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    return reader, writer


def _armed_timer() -> tuple[int]:
    fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC)
    an_hour = struct.pack("qqqq", 0, 0, 3600, 0)
    if fd < 0 or _libc.timerfd_settime(fd, 0, an_hour, None):
        raise OSError(ctypes.get_errno(), "timerfd")
    return (fd,)


def _epoll() -> tuple[int]:
    fd = _libc.epoll_create1(os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "epoll_create1")
    return (fd,)


def pipes(count: int) -> AbstractContextManager[None]:
    """Pipes with one byte in each: an array of buffers whose first one has the operations of anonymous pipes."""
    return _many(_filled_pipe, count)


def timers(count: int) -> AbstractContextManager[None]:
    """Armed timerfds: each has a timer with a callback."""
    return _many(_armed_timer, count)


def array_maps(count: int) -> AbstractContextManager[None]:
    """BPF array maps: each starts with a pointer to the operations of its kind."""
    return _many(lambda: (create_array_map(),), count)


def epolls(count: int) -> AbstractContextManager[None]:
    """epoll instances: each points to its open file."""
    return _many(_epoll, count)
