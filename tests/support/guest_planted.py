"""In a guest: plant loads, and return what was planted beside what the kernel's own accounts say of it.

A guest has no ss, ip or tc: only /proc and /sys. tests/vm/test_planted.py compares the two.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planted import files, held_by_fd, nfqueue, packets, protocols, psock
from planted.leaking_modules import leaked_objects, lost_packets
from planted.sockets.common import MIB, PAGE_BYTES
from support.foreign_fds import read_all
from support.guest_calls import BUILT

LEAKED_OBJECTS, LOST_PACKETS = 200_000, 20_000
SLAB_PACKETS = 20_000
"""Many more than the free objects that slabinfo counts as active: up to a few hundred on lists of CPUs."""
_SETTLE_SECONDS, _QUIET_SECONDS = 20, 4

Seen = dict[str, Any]


def leak(objects: int = LEAKED_OBJECTS) -> Seen:
    """Objects of kmalloc-64 with a callback of a module."""
    before = _objects_of_size(64)
    with leaked_objects(BUILT, objects) as planted:
        symbols = [line.split() for line in Path("/proc/kallsyms").read_text().splitlines() if planted.function in line]
        named = [symbol[2:] for symbol in symbols if symbol[2] == planted.function]
        seen = {"objects": _objects_of_size(64) - before, "symbols": named}
    return {"planted": asdict(planted), "seen": seen, "left": Path(f"/sys/module/{planted.module}").exists()}


def lost(packets: int = LOST_PACKETS) -> Seen:
    """Packets in no queue, with blocks of two pages."""
    before = _active("skbuff_head_cache")
    return _look(lost_packets(BUILT, packets, order=1), lambda _: {"packets": _active("skbuff_head_cache") - before})


def queued_for_verdict() -> Seen:
    """Packets in a netfilter queue."""

    def look(planted: nfqueue.QueuedPackets) -> Seen:
        row = _net(planted.pid, "netfilter/nfnetlink_queue")[0]
        return {"packets": int(row[2]), "dropped": int(row[5]) + int(row[6])}

    return _look(nfqueue.nfqueue(packets=500), look)


def unread_sctp() -> Seen:
    """Messages of an SCTP association."""

    def look(planted: protocols.UnreadMessages) -> Seen:
        rows = [row for row in _net(planted.pid, "sctp/assocs")[1:] if int(row[10]) == planted.inode]
        return {"receive_bytes": [int(row[8]) for row in rows]}

    return _look(protocols.sctp_backlog(), look)


def unread_ktls() -> Seen:
    """Records of a TLS connection."""

    def look(planted: protocols.UnreadMessages) -> Seen:
        statistics = {row[0]: int(row[1]) for row in _net(planted.pid, "tls_stat")}
        return {"statistics": statistics, "read_bytes": read_all(planted.pid, planted.fd)}

    return _look(protocols.ktls_backlog(), look)


def fragments() -> Seen:
    """First fragments in IP reassembly."""

    def look(planted: packets.WaitingPackets) -> Seen:
        (row,) = [row for row in _net(planted.pid, "sockstat") if row[0] == "FRAG:"]
        return {"packets": int(row[2]), "memory_bytes": int(row[4])}

    return _look(packets.first_fragments(packets=500), look)


def zombie() -> Seen:
    """Packets in a qdisc of a network namespace without processes."""
    before = _active("skbuff_head_cache")

    def look(planted: packets.WaitingPackets) -> Seen:
        namespaces = {link.stat().st_ino for link in Path("/proc").glob("[0-9]*/ns/net")}
        return {"packets": _active("skbuff_head_cache") - before, "namespaces": sorted(namespaces)}

    return _look(packets.qdisc_backlog(packets=SLAB_PACKETS, payload_bytes=1_000), look)


def neighbour() -> Seen:
    """Packets for a neighbour without an address."""
    return _look(packets.neighbour_queue(packets=500), lambda planted: {"udp_bytes": _udp(planted.pid)[0][0]})


def slab_heads() -> Seen:
    """Small datagrams in one queue."""
    return _look(held_by_fd.slab_heads(datagrams=20_000), lambda planted: {"udp_bytes": _udp(planted.pid)[0][1]})


def tun() -> Seen:
    """Packets in a tun device's ring. The process that looks cannot read them without ptrace, so it counts slab."""
    before = _active("skbuff_head_cache")
    return _look(
        held_by_fd.tun_queue(packets=SLAB_PACKETS, payload_bytes=1_000),
        lambda _: {"packets": _active("skbuff_head_cache") - before},
    )


def sockmap() -> Seen:
    """Data of a socket map's connection."""
    return _look(psock.sockmap_backlog(), lambda planted: {"read_bytes": read_all(planted.pid, planted.fd)})


def system_v_messages() -> Seen:
    """Messages of a page each."""
    before = _objects_of_size(PAGE_BYTES)
    return _look(held_by_fd.slab_leak(messages=20_000), lambda _: {"objects": _objects_of_size(PAGE_BYTES) - before})


def trace_buffer() -> Seen:
    """A trace instance's buffers."""

    def look(planted: held_by_fd.FtraceBuffer) -> Seen:
        mounts = [line.split() for line in Path(f"/proc/{planted.pid}/mounts").read_text().splitlines()]
        (folder,) = [mount[1] for mount in mounts if mount[2] == "tracefs"]
        size = Path(f"/proc/{planted.pid}/root{folder}/instances/{planted.instance}/buffer_total_size_kb")
        return {"bytes": int(size.read_text()) << 10}

    return _look(held_by_fd.ftrace_buffer(32 * MIB), look)


def io_uring() -> Seen:
    """Rings of one process."""
    before = _settled_free_bytes()
    return _look(held_by_fd.io_uring_rings(rings=20), lambda _: {"bytes": before - _settled_free_bytes()})


def maps() -> Seen:
    """BPF arrays."""

    def look(planted: held_by_fd.BpfMaps) -> Seen:
        texts = [Path(f"/proc/{planted.pid}/fdinfo/{fd}").read_text().splitlines() for fd in planted.fds]
        return {"bytes": sum(int(line.split()[1]) for text in texts for line in text if line.startswith("memlock:"))}

    return _look(held_by_fd.bpf_maps(), look)


def file_in_memory() -> Seen:
    """A memfd."""
    return _look(
        files.memfd(100 * MIB),
        lambda planted: {"bytes": Path(f"/proc/{planted.pid}/fd/{planted.fd}").stat().st_blocks * 512},
    )


def deleted_file() -> Seen:
    """A deleted file's page cache."""
    before = _meminfo("Cached")
    return _look(files.cached_file(100 * MIB, deleted=True), lambda _: {"cached_bytes": _meminfo("Cached") - before})


def _look(context: AbstractContextManager[Any], look: Callable[[Any], Seen]) -> Seen:
    with context as planted:
        seen = look(planted)
    return {"planted": asdict(planted), "seen": seen}


def _net(pid: int, name: str) -> list[list[str]]:
    return [line.split() for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]


def _udp(pid: int) -> list[tuple[int, int]]:
    """Bytes to send and bytes received of each UDP socket."""
    return [(int(row[4][:8], 16), int(row[4][9:], 16)) for row in _net(pid, "udp")[1:]]


def _slabs() -> list[list[str]]:
    return [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]


def _active(cache: str) -> int:
    return sum(int(row[1]) for row in _slabs() if row[0] == cache)


def _objects_of_size(size_bytes: int) -> int:
    return sum(int(row[1]) for row in _slabs() if int(row[3]) == size_bytes)


def _settled_free_bytes() -> int:
    """MemFree once it has not moved for some seconds: what was planted before is freed with a delay, and in parts."""
    free_bytes, quiet_seconds = _meminfo("MemFree"), 0
    for _ in range(_SETTLE_SECONDS):
        time.sleep(1)
        last_bytes, free_bytes = free_bytes, _meminfo("MemFree")
        quiet_seconds = quiet_seconds + 1 if abs(free_bytes - last_bytes) < MIB else 0
        if quiet_seconds == _QUIET_SECONDS:
            break
    return free_bytes


def _meminfo(name: str) -> int:
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) << 10
