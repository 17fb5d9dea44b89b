"""Plants datagrams, takes a census of the slabs and prints what it found and what the kernel's own files say, as JSON.

A step of guest_program.py, and of tests on the machine itself, in a process of its own: it uses the library of the node
runner directly.
"""

import contextlib
import json
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.slab.census import SlabCensus
from memdiag_node.slab.layout import object_layout
from support.slab_census import (
    SlabinfoRow,
    large_kmalloc,
    lean_memory,
    slabinfo_rows,
    surviving_places,
    take_slab_census,
)

PLANTED = 20_000
_SOCKETS = 20
_SO_SNDBUFFORCE = 32  # socket(7); Python has no name for it
_LARGE_BYTES = 1 << 20
_KFENCE = Path("/sys/module/kfence/parameters/sample_interval")


@contextlib.contextmanager
def planted_datagrams() -> Iterator[list[socket.socket]]:
    """PLANTED datagrams in UNIX sockets' queues; yields the senders, which own them."""
    with contextlib.ExitStack() as kept:
        senders = []
        for _ in range(_SOCKETS):
            sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            kept.enter_context(sender)
            kept.enter_context(receiver)
            sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
            for _ in range(PLANTED // _SOCKETS):
                sender.send(b"x" * 100)
            senders.append(sender)
        yield senders


@contextlib.contextmanager
def kfence_samples() -> Iterator[bool]:
    """Let KFENCE take an allocation every 20 ms, where this kernel has it."""
    if not _KFENCE.exists():
        yield False
        return
    before = _KFENCE.read_text()
    _KFENCE.write_text("20")
    try:
        yield True
    finally:
        _KFENCE.write_text(before)


def count_owned(census: SlabCensus, btf: Btf, senders: list[socket.socket]) -> int:
    """The packets that belong to these sockets, among all objects of the packets' cache."""
    memory, owned = census.memory, 0
    owners = []
    for sender in senders:
        private = memory.word(memory.file(sender.fileno()) + btf.offset_bytes("file", "private_data"))
        owners.append(memory.word(private + btf.offset_bytes("socket", "sk")))
    for cache in census.named("skbuff_head_cache"):
        packets = census.objects(cache)
        packets = packets[census.still_allocated(cache, packets)]
        owner = census.read(packets, btf.offset_bytes("sk_buff", "sk"))
        owned += int(np.isin(owner, np.array(owners, "<u8")).sum())
    return owned


def large_caches(census: SlabCensus, before: Mapping[str, SlabinfoRow]) -> dict[str, dict[str, int]]:
    """Each cache of at least a MiB, and what slabinfo has: `before` the census, and after its objects were listed.

    `kept` were there when slabinfo was read, of those that are `listed`, and likewise `kept_places`.
    """
    found = {}
    for number, (cache, count) in enumerate(zip(census.caches, census.count(), strict=True)):
        if count.slab_bytes < _LARGE_BYTES or cache.name not in before:
            continue
        listed = census.objects(number)
        after = slabinfo_rows()[cache.name]
        found[cache.name] = {
            "places": count.objects,
            "in_use": count.in_use,
            "listed": len(listed),
            "kept": int(census.still_allocated(number, listed).sum()),
            "kept_places": surviving_places(census)[number],
            "slabinfo_places": after.places,
            "slabinfo_active": after.active,
            "slabinfo_uncertain": after.uncertain,
            "slabinfo_places_before": before[cache.name].places,
            "slabinfo_active_before": before[cache.name].active,
        }
    return found


def slab_census() -> dict[str, Any]:
    """What a census finds, beside what was planted and what the kernel's own files say."""
    btf = Btf.load()
    report: dict[str, Any] = {"planted": PLANTED}
    at = object_layout(btf)
    with lean_memory(at) as memory, kfence_samples() as has_kfence, planted_datagrams() as senders:
        before = slabinfo_rows()
        started = time.process_time()
        census = take_slab_census(memory, btf, at=at)
        report["census_cpu_seconds"] = time.process_time() - started
        meminfo = parse_meminfo(Path("/proc/meminfo").read_bytes())
        report["slab_bytes"] = sum(count.slab_bytes for count in census.count())
        report["meminfo_bytes"] = meminfo.slab_reclaimable_bytes + meminfo.slab_unreclaimable_bytes
        report["caches"] = large_caches(census, before)
        report["counted"] = count_owned(census, btf, senders)
        report["cpu_seconds"] = time.process_time() - started
        report["large_kmalloc_bytes"] = large_kmalloc(census, btf)
        report["has_kfence"] = has_kfence
        report["guarded_pages"] = len(census.slabs.guarded)
        report["uncertain_objects"] = census.uncertain_objects
        report["sees_cpu_lists"] = census.sees_cpu_lists
    report["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return report


if __name__ == "__main__":
    json.dump(slab_census(), sys.stdout)
