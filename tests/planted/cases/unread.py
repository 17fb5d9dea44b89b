"""Sockets that nobody reads, or that are read too slowly, or whose peers do not read."""

import contextlib
import dataclasses
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from planted import held_by_fd
from planted.cases.case import Answer, Case, PlantedTruth, UnavailableError, of_child
from planted.child import Truth, held
from planted.sockets.common import LOOPBACK, MIB, SO_RCVBUFFORCE, SO_SNDBUFFORCE, libc, tcp_pair
from planted.sockets.tcp import tcp_small_messages

_SO_MEMINFO = 55
_RECEIVED, _SENT, _UNSENT, _MEMINFO_WORDS = 0, 2, 5, 9  # include/uapi/linux/sock_diag.h: SK_MEMINFO_*
_NETLINK_USERSOCK = 2
_PR_SET_PDEATHSIG = 1
_BLOCK_BYTES = 32_768  # what a small TCP message pins: SKB_FRAG_PAGE_ORDER in net/core/sock.c
_GIB = 1 << 30
_POOL_DATAGRAMS = 100_000
_STUCK = ("UnreadSocket",)
_PAGES_AND_HEADS = ("AllocPage", "SUnreclaim")


def _meminfo(one: socket.socket, word: int) -> int:
    """What the kernel itself counts as the socket's memory."""
    words = one.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
    return int(struct.unpack_from("I", words, 4 * word)[0])


@contextlib.contextmanager
def _unread_tcp() -> Iterator[PlantedTruth]:
    with held(_small_messages, 10_000) as child:
        yield of_child(child, Answer.LEAK, _STUCK, *_PAGES_AND_HEADS)


@contextlib.contextmanager
def _unread_in_container() -> Iterator[PlantedTruth]:
    from support.memory_cgroup import container_cgroup  # it needs pytest, which a container lacks

    with container_cgroup() as container, held(_small_messages, 8_000, str(container.path)) as child:
        truth = of_child(child, Answer.LEAK, _STUCK, *_PAGES_AND_HEADS)
        yield dataclasses.replace(truth, container_id=container.container_id)


@contextlib.contextmanager
def _slow_reader() -> Iterator[PlantedTruth]:
    with held(_read_slowly, 7_000) as child:
        yield of_child(child, Answer.LEAK, ("SlowReader", *_STUCK), *_PAGES_AND_HEADS)


@contextlib.contextmanager
def _unread_unix() -> Iterator[PlantedTruth]:
    with held(unix_datagrams, 5_000, 60_000) as child:
        yield of_child(child, Answer.LEAK, _STUCK, *_PAGES_AND_HEADS)


@contextlib.contextmanager
def _unread_netlink() -> Iterator[PlantedTruth]:
    with held(_netlink_messages, 80_000, 3_000) as child:
        yield of_child(child, Answer.LEAK, _STUCK, "SUnreclaim")


@contextlib.contextmanager
def _slab_heads() -> Iterator[PlantedTruth]:
    with held(_small_datagrams, 500_000, 300) as child:
        yield of_child(child, Answer.LEAK, _STUCK, "SUnreclaim")


@contextlib.contextmanager
def _write_queue() -> Iterator[PlantedTruth]:
    with held(_unsent_data, 20, 20 * MIB) as child:
        yield of_child(child, Answer.LEAK, ("UnsentData",), *_PAGES_AND_HEADS)


@contextlib.contextmanager
def _many_workers() -> Iterator[PlantedTruth]:
    with held(_workers, 60, 12 * MIB) as child:
        truth = of_child(child, Answer.LEAK, _STUCK, *_PAGES_AND_HEADS)
        yield dataclasses.replace(truth, pids=(), processes=len(truth.pids))


@contextlib.contextmanager
def _container_workers() -> Iterator[PlantedTruth]:
    from support.memory_cgroup import container_cgroup  # it needs pytest, which a container lacks

    with container_cgroup() as container, held(_workers, 40, 12 * MIB, str(container.path)) as child:
        truth = of_child(child, Answer.LEAK, _STUCK, *_PAGES_AND_HEADS)
        yield dataclasses.replace(truth, pids=(), container_id=container.container_id)


@contextlib.contextmanager
def _page_pool() -> Iterator[PlantedTruth]:
    from planted.veth_xdp import INTERFACE, XdpReceiver  # it loads BPF by what is in `support`

    with ExitStack() as stack:
        try:
            receiver = stack.enter_context(XdpReceiver())
        except (OSError, RuntimeError) as error:
            raise UnavailableError("no XDP program can be attached to a veth device") from error
        found = receiver.receive("datagrams", _POOL_DATAGRAMS)
        yield PlantedTruth(
            Answer.LEAK,
            (*_STUCK, "LargeHolder"),
            ("AllocPage",),
            _unread_udp(receiver.pid),
            pids=(receiver.pid,),
            fds=(found["fd"],),
            names=(INTERFACE,),
            other_classes=("SUnreclaim",),
        )


def _unread_udp(pid: int) -> int:
    """What the kernel counts as memory of what waits in the UDP sockets of a process's network namespace."""
    lines = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    return sum(int(line.split()[4].partition(":")[2], 16) for line in lines)  # tx_queue:rx_queue


def enter_cgroup(path: str) -> None:
    """Move this process into a cgroup; further allocations are charged to it."""
    if path:
        Path(path, "cgroup.procs").write_text(str(os.getpid()))


def _small_messages(kept: ExitStack, messages: int, cgroup: str = "") -> Truth:
    enter_cgroup(cgroup)
    fd, size_bytes = _messages_in_blocks(messages)
    return {"fds": [fd], "size_bytes": size_bytes}


def _read_slowly(kept: ExitStack, messages: int) -> Truth:
    """As an application that takes 64 bytes a second."""
    fd, size_bytes = _messages_in_blocks(messages)
    receiver = kept.enter_context(socket.socket(fileno=os.dup(fd)))
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(1):
            receiver.recv(64)

    reader = threading.Thread(target=read)
    reader.start()
    kept.callback(reader.join)
    kept.callback(ended.set)
    return {"fds": [fd, receiver.fileno()], "size_bytes": size_bytes}


def _messages_in_blocks(messages: int) -> tuple[int, int]:
    """Returns the fd, and the blocks' size with that of the packets themselves, which are slab objects."""
    found = tcp_small_messages(messages)
    with socket.socket(fileno=os.dup(found["fd"])) as receiver:
        packet_bytes = _meminfo(receiver, _RECEIVED) - found["unread_bytes"]
    return found["fd"], messages * _BLOCK_BYTES + packet_bytes


def unix_datagrams(kept: ExitStack, datagrams: int, size: int) -> Truth:
    """So many datagrams of that many bytes that nobody reads."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kept.callback(sender.close)
    kept.callback(receiver.close)
    sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _GIB)
    for _ in range(datagrams):
        sender.send(b"u" * size)
    return {"fds": [receiver.fileno()], "size_bytes": _meminfo(sender, _SENT)}


def _netlink_messages(kept: ExitStack, messages: int, size: int) -> Truth:
    receiver, sender = (
        kept.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_USERSOCK)) for _ in range(2)
    )
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _GIB)
    receiver.bind((0, 0))
    for _ in range(messages):
        sender.sendto(b"n" * size, receiver.getsockname())
    return {"fds": [receiver.fileno()], "size_bytes": _meminfo(receiver, _RECEIVED)}


def _small_datagrams(kept: ExitStack, datagrams: int, size: int) -> Truth:
    """Nearly all that they keep are heads of packets, in slab."""
    found = held_by_fd._slab_heads(kept, datagrams, size)
    with socket.socket(fileno=os.dup(found["fd"])) as receiver:
        return {"fds": [found["fd"]], "size_bytes": _meminfo(receiver, _RECEIVED)}


def _unsent_data(kept: ExitStack, connections: int, each_bytes: int) -> Truth:
    """Connections whose peer takes a few KiB and then reads nothing: the rest waits in the sender's queue."""
    listener = kept.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    listener.bind((LOOPBACK[socket.AF_INET], 0))
    listener.listen(connections)
    fds, size_bytes = [], 0
    for _ in range(connections):
        sender = kept.enter_context(socket.socket())
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * each_bytes)
        sender.connect(listener.getsockname())
        kept.enter_context(listener.accept()[0])
        sender.setblocking(False)
        sent_bytes = 0
        with contextlib.suppress(BlockingIOError):
            while sent_bytes < each_bytes:
                sent_bytes += sender.send(b"w" * 65_536)
        fds.append(sender.fileno())
        size_bytes += _meminfo(sender, _UNSENT)
    return {"fds": fds, "size_bytes": size_bytes}


def _workers(kept: ExitStack, processes: int, each_bytes: int, cgroup: str = "") -> Truth:
    """Processes that each have one connection that they do not read; none of them is large."""
    enter_cgroup(cgroup)
    pids: list[int] = []
    senders: list[socket.socket] = []
    size_bytes = 0
    for _ in range(processes):
        sender, receiver = tcp_pair()
        sender.sendall(b"m" * each_bytes)
        size_bytes += _meminfo(receiver, _RECEIVED)
        pid = os.fork()
        if pid == 0:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for other in (*senders, sender):
                other.close()
            signal.pause()
        receiver.close()
        senders.append(sender)
        pids.append(pid)
        kept.callback(os.waitpid, pid, 0)
        kept.callback(os.kill, pid, signal.SIGKILL)
    return {"pids": pids, "size_bytes": size_bytes}


CASES = (
    Case("unread_tcp", "64-byte messages that nobody reads, each in a block of 32 KiB", _unread_tcp),
    Case("unread_in_container", "the same in a container of a pod", _unread_in_container),
    Case("slow_reader", "the same, read at 64 bytes per second", _slow_reader),
    Case("unread_unix", "UNIX datagrams of 60,000 bytes that nobody reads", _unread_unix),
    Case("unread_netlink", "netlink messages of 3,000 bytes that nobody reads", _unread_netlink),
    Case("slab_heads", "UDP datagrams of 300 bytes that nobody reads: nearly all of it is slab", _slab_heads),
    Case("write_queue", "20 connections whose peer does not read", _write_queue),
    Case("many_workers", "60 processes with 12 MiB each that they do not read", _many_workers),
    Case("container_workers", "40 such processes in one container", _container_workers),
    Case("page_pool", "UDP datagrams of 1,200 bytes in the page pool of a veth device that nobody reads", _page_pool),
)
