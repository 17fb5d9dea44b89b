"""Kernel objects that a process of its own allocates at a steady rate and keeps, and a storm that keeps nothing.

with steady("eventfds", 5_000) as load:
    ...                      # look at the machine
    counted = load.count()   # what the process itself counted until now

    messages_64, messages_512
                messages of a System V queue that nobody receives, each an object of so many bytes
    eventfds    eventfds that stay open: each a counter, a file and a dentry
    files       empty files on a tmpfs of its own: each an inode and a dentry
    arrays      BPF arrays of ARRAY_BYTES
    percpu      BPF hash maps with PERCPU_VALUES values for each CPU
    datagrams   UNIX datagrams that are read at once: each a packet and its data. `count` says twice their number

Everything ends with the process: it is in namespaces of its own.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from planted.bpf_and_xdp import bpf
from planted.held_by_fd import enter_own_mounts
from planted.sockets.common import PAGE_BYTES, libc
from planted.sockets.network import enter_own_network

ARRAY_BYTES = 128 * PAGE_BYTES
PERCPU_VALUES, PERCPU_VALUE_BYTES = 64, 1024
OBJECTS_OF_DATAGRAM = 2

_TESTS = Path(__file__).parents[1]
_TICK_SECONDS = 0.01
_MOST_SECONDS = 300
"""After that time nothing more is allocated: the machine must keep room."""
_CLONE_NEWIPC, _IPC_PRIVATE, _IPC_NOWAIT = 0x08000000, 0, 0o4000
_MESSAGE_HEADER_BYTES = 48  # struct msg_msg
_MAP_CREATE, _ARRAY, _PERCPU_HASH = 0, 2, 5
_PR_SET_PDEATHSIG = 1
_DATAGRAM_BYTES = 100
_QUEUED_DATAGRAMS = 100  # which is within the usual send buffer

Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Counted:
    """What a process allocated until it was asked."""

    objects: int
    seconds: float
    """Since its first object."""

    @property
    def per_second(self) -> float:
        """Its rate."""
        return self.objects / self.seconds


class SteadyLoad:
    """A process that allocates."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self._child = child
        self.pid = child.pid
        self.comm = Path(f"/proc/{child.pid}/comm").read_text().rstrip("\n")

    def count(self) -> Counted:
        """Ask it. Raises RuntimeError if it has ended."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("count\n")
        self._child.stdin.flush()
        if not (line := self._child.stdout.readline()):
            raise RuntimeError(f"the load ended with {self._child.wait()}")
        return Counted(**json.loads(line))


@contextlib.contextmanager
def steady(kind: str, per_second: int) -> Iterator[SteadyLoad]:
    """Start to allocate `per_second` objects of a kind; all are freed at the end. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "planted.steady", kind, str(per_second)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_TESTS) as child:
        assert child.stdout is not None
        try:
            if not child.stdout.readline():
                raise RuntimeError(f"the load {kind} ended with {child.wait()}")
            yield SteadyLoad(child)
        finally:
            child.kill()


def _messages(object_bytes: int) -> Step:
    if libc.unshare(_CLONE_NEWIPC):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/sys/kernel/msgmnb").write_text(str((1 << 31) - 1))
    queue = libc.msgget(_IPC_PRIVATE, 0o600)
    text_bytes = ctypes.c_size_t(object_bytes - _MESSAGE_HEADER_BYTES)
    text = ctypes.create_string_buffer(struct.pack("l", 1) + b"s" * text_bytes.value)

    def send() -> None:
        if libc.msgsnd(queue, text, text_bytes, _IPC_NOWAIT):
            raise OSError(ctypes.get_errno(), "msgsnd")

    return send


def _eventfds() -> Step:
    """A process may have only so many, so it leaves them to children, which only keep them open."""
    limit = _raise_limit_of_files()
    opened: list[int] = []

    def open_one() -> None:
        opened.append(os.eventfd(0))
        if len(opened) >= limit * 3 // 4:
            _leave_to_a_child()
            os.closerange(opened[0], opened[-1] + 1)
            opened.clear()

    return open_one


def _leave_to_a_child() -> None:
    """Everything that is open stays open until this process ends."""
    parent = os.getpid()
    if os.fork():
        return
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for standard in (sys.stdin, sys.stdout):
        os.close(standard.fileno())  # the reader of this process's answers waits for its end
    while os.getppid() == parent:
        signal.pause()
    os._exit(0)


def _raise_limit_of_files() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit


def _files() -> Step:
    enter_own_mounts()
    if libc.mount(b"planted", b"/tmp", b"tmpfs", 0, b"nr_inodes=0"):
        raise OSError(ctypes.get_errno(), "mount")
    os.chdir("/tmp")
    numbers = iter(range(sys.maxsize))

    def make() -> None:
        os.mknod(f"{next(numbers)}", stat.S_IFREG | 0o600)

    return make


def _arrays() -> Step:
    return _maps(struct.pack("IIII", _ARRAY, 4, PAGE_BYTES, ARRAY_BYTES // PAGE_BYTES))


def _percpu() -> Step:
    return _maps(struct.pack("IIII", _PERCPU_HASH, 4, PERCPU_VALUE_BYTES, PERCPU_VALUES))


def _maps(attributes: bytes) -> Step:
    _raise_limit_of_files()

    def make() -> None:
        bpf(_MAP_CREATE, attributes)

    return make


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vectors_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_size_t),  # an int, and what aligns the end of struct msghdr
        ("length", ctypes.c_size_t),
    )


def _datagrams() -> Step:
    """A step is one datagram on average: every so many of them it sends as many at once, and receives them."""
    enter_own_network()
    Path("/proc/sys/net/unix/max_dgram_qlen").write_text(str(2 * _QUEUED_DATAGRAMS))
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    data = ctypes.create_string_buffer(_DATAGRAM_BYTES)
    vector = _Vector(ctypes.cast(data, ctypes.c_void_p), _DATAGRAM_BYTES)
    messages = (_Message * _QUEUED_DATAGRAMS)(
        *(_Message(vectors=ctypes.pointer(vector), vectors_length=1) for _ in range(_QUEUED_DATAGRAMS))
    )
    steps = iter(range(sys.maxsize))

    def exchange() -> None:
        if next(steps) % _QUEUED_DATAGRAMS:
            return
        for call, end, more in ((libc.sendmmsg, sender, ()), (libc.recvmmsg, receiver, (None,))):
            done = 0
            while done < _QUEUED_DATAGRAMS:
                rest = ctypes.byref(messages, done * ctypes.sizeof(_Message))
                moved = call(end.fileno(), rest, _QUEUED_DATAGRAMS - done, 0, *more)
                if moved < 0:
                    raise OSError(ctypes.get_errno(), "sendmmsg, recvmmsg")
                done += moved

    return exchange


_KINDS: dict[str, tuple[Callable[[], Step], int]] = {
    "messages_64": (lambda: _messages(64), 1),
    "messages_512": (lambda: _messages(512), 1),
    "eventfds": (_eventfds, 1),
    "files": (_files, 1),
    "arrays": (_arrays, 1),
    "percpu": (_percpu, 1),
    "datagrams": (_datagrams, OBJECTS_OF_DATAGRAM),
}
"""By name: what prepares the load and returns one step of it, and what a step counts."""


def _main(kind: str, per_second: int) -> None:
    prepare, objects_of_step = _KINDS[kind]
    step = prepare()
    print("ready", flush=True)
    steps, started = 0, time.monotonic()
    while (seconds := time.monotonic() - started) < _MOST_SECONDS:
        # A tick that came late is made up for: the rate holds over any longer time.
        due = round(seconds * per_second) - steps
        for _ in range(due):
            step()
        steps += due
        if select.select([sys.stdin], [], [], _TICK_SECONDS)[0]:
            if not sys.stdin.readline():
                return
            counted = Counted(steps * objects_of_step, time.monotonic() - started)
            print(json.dumps({"objects": counted.objects, "seconds": counted.seconds}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
