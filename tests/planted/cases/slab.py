"""Kernel objects: messages without a reader in a cache for any purpose, and objects in caches of their own."""

import contextlib
import os
import resource
import select
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from planted import held_by_fd, network_namespaces
from planted.cases.case import Answer, Case, PlantedTruth, UnavailableError
from planted.child import Truth, held
from planted.sockets.common import PAGE_BYTES

_MESSAGES = 100_000
_IPV6_DEVICES = Path("/proc/net/if_inet6")
_ROUTES = 600_000
_EPOLLS, _WATCHED = 400, 3_000
_ITEM_BYTES, _WAIT_BYTES = 128, 72  # sizes of eventpoll_epi and eventpoll_pwq on x86-64


@contextlib.contextmanager
def _slab_leak() -> Iterator[PlantedTruth]:
    with held_by_fd.slab_leak(_MESSAGES) as load:
        caches = ("msg_msg-4k", "kmalloc-cg-4k", "kmalloc-4k")  # since Linux 6.11, and before
        yield PlantedTruth(
            Answer.LEAK,
            ("LargeClass", "LargeHolder"),
            ("SUnreclaim",),
            load.messages * load.object_bytes,
            names=caches,
        )


@contextlib.contextmanager
def _watched_files() -> Iterator[PlantedTruth]:
    with held(_watch, _EPOLLS, _WATCHED) as child:
        yield PlantedTruth(
            Answer.OPEN,
            ("LargeClass", "LargeHolder"),
            ("SUnreclaim",),
            child.truth["size_bytes"],
            pids=(child.pid,),
            names=("eventpoll_epi", "eventpoll_pwq"),
        )


@contextlib.contextmanager
def _route_entries() -> Iterator[PlantedTruth]:
    if not _IPV6_DEVICES.exists():
        raise UnavailableError("the kernel has no IPv6")
    with held(network_namespaces.routes, _ROUTES) as child:
        by_cache = child.truth["slab_bytes"]
        yield PlantedTruth(
            Answer.LEAK,
            ("LargeClass", "LargeHolder"),
            ("SUnreclaim",),
            sum(by_cache.values()),
            names=tuple(by_cache),
        )


def _watch(kept: ExitStack, epolls: int, files: int) -> Truth:
    """Each epoll instance watches each file: one object for each pair in two caches of their own."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (epolls + files + 256,) * 2)
    fds = [os.eventfd(0) for _ in range(files)]
    for fd in fds:
        kept.callback(os.close, fd)
    for _ in range(epolls):
        epoll = kept.enter_context(select.epoll())
        for fd in fds:
            epoll.register(fd, select.EPOLLIN)
    pairs = epolls * files
    slabs = [-(-pairs // (PAGE_BYTES // size)) for size in (_ITEM_BYTES, _WAIT_BYTES)]
    return {"size_bytes": sum(slabs) * PAGE_BYTES}


CASES = (
    Case("slab_leak", "100,000 messages of a System V queue, in kmalloc objects of 4 KiB", _slab_leak),
    Case("watched_files", "1.2 million files watched by epoll, in named slab caches", _watched_files),
    Case("route_entries", "600,000 IPv6 routes of one network namespace", _route_entries),
)
