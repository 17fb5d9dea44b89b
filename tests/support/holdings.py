"""Hand-made holders with blocks, and situations of a node that has only them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from memdiag_api.evidence import Breakdown, Census, Check, Holder, HolderKind, MemoryClass, Owner, Queue, Socket
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.holding import PINNED_DTYPE, Holding
from support.measurements import PAGE_BYTES, host_of, window_of

MIB, GIB = 1 << 20, 1 << 30
_BLOCK_ORDER = 8
BLOCK_BYTES = PAGE_BYTES << _BLOCK_ORDER


def blocks_at(*pages: int) -> np.ndarray[Any, Any]:
    """Blocks of 1 MiB."""
    return np.array([(page, _BLOCK_ORDER, False) for page in pages], PINNED_DTYPE)


def owner(pid: int = 77, *, container: str = "", pod: str = "", fd: int = 5) -> Owner:
    return Owner(pid=pid, comm="python3", fds=[fd], container_id=container, pod_uid=pod)


def held(holder: Holder, *, first_page: int | None = None, pages: Sequence[int] | None = None) -> Holding:
    """A holder with a block of its own for each MiB that it pins, or with the blocks at these pages."""
    if pages is None:
        start = id(holder) if first_page is None else first_page
        pages = range(start, start + holder.pinned_bytes // BLOCK_BYTES)
    return Holding(holder, blocks_at(*pages))


def socket_holder(
    *, of: Owner | None, pinned_bytes: int, queue: str = "receive", payload_bytes: int = 0, **socket: Any
) -> Holder:
    """A TCP connection with one queue. `socket`: fields of its Socket."""
    waiting = Queue(
        name=queue,
        packets=10,
        unread_bytes=payload_bytes,
        charge_bytes=payload_bytes,
        pinned_bytes=pinned_bytes,
    )
    addresses = {"local_address": "10.0.0.1:4000", "remote_address": "10.0.0.2:80"}
    return Holder(
        kind=HolderKind.SOCKET,
        owners=[of] if of else [],
        owners_total=1 if of else 0,
        unowned_reason="" if of else "orphaned",
        unread_bytes=payload_bytes if queue == "receive" else 0,
        unread_packets=10 if queue == "receive" else 0,
        pinned_bytes=pinned_bytes,
        kept_throughout_bytes=pinned_bytes,
        socket=Socket(family="IPv4", protocol="TCP", queues=[waiting], **(addresses | socket)),
    )


def situation_of(*holdings: Holding, census: Census | None = None, mem_total_bytes: int = 16 * GIB) -> Situation:
    """An idle node on which these are the only holders."""
    sizes = {"AllocPage": 4 * GIB, "SUnreclaim": GIB, "MemFree": 8 * GIB}
    classes = [MemoryClass(name=name, group="Kernel", size_bytes=size) for name, size in sizes.items()]
    measured = Measurements(
        host=host_of(mem_total_bytes),
        window=window_of(60),
        checks=tuple(Check),
        needs=(),
        breakdown=Breakdown(
            mem_total_bytes=mem_total_bytes, classes=classes, alloc_page_bytes=4 * GIB, alloc_page_error_bytes=0
        ),
        holdings=holdings,
        census=census,
    )
    return Situation(measured, Thresholds())
