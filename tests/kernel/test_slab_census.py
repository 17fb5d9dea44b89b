"""The census of slabs on this machine, against planted objects and the kernel's own figures."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.meminfo import parse_meminfo
from support.slab_census import opened_memory, slabinfo_active, take_slab_census

_PLANTED = 5_000
_LARGE_BYTES = 1 << 20
_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; Python has no name for it


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf.load()


@pytest.fixture(scope="module")
def memory(btf: Btf) -> Iterator[KernelMemory]:
    with opened_memory(btf) as opened:
        yield opened


def test_every_planted_packet_is_an_allocated_object(memory: KernelMemory, btf: Btf) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with sender, receiver:
        sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
        sender.setblocking(False)
        for _ in range(_PLANTED):
            sender.send(b"x" * 100)
        census = take_slab_census(memory, btf)
        (cache,) = census.named("skbuff_head_cache")
        packets = census.objects(cache)
        packets = packets[census.still_allocated(cache, packets)]
        owner = census.read(packets, btf.offset_bytes("sk_buff", "sk"))
        assert int((owner == np.uint64(_sock_of(memory, btf, sender.fileno()))).sum()) == _PLANTED


def _sock_of(memory: KernelMemory, btf: Btf, fd: int) -> int:
    file = memory.file(fd)
    private = memory.word(file + btf.offset_bytes("file", "private_data"))
    return memory.word(private + btf.offset_bytes("socket", "sk"))


def test_the_sum_of_all_slabs_agrees_with_meminfo(memory: KernelMemory, btf: Btf) -> None:
    census = take_slab_census(memory, btf)
    meminfo = parse_meminfo(Path("/proc/meminfo").read_bytes())
    counted = sum(count.slab_bytes for count in census.count())
    assert counted == pytest.approx(meminfo.slab_reclaimable_bytes + meminfo.slab_unreclaimable_bytes, rel=0.02)


def test_objects_agree_with_slabinfo_and_with_the_lists_of_objects(memory: KernelMemory, btf: Btf) -> None:
    before = slabinfo_active()
    census = take_slab_census(memory, btf)
    after = slabinfo_active()
    compared = 0
    for number, (cache, count) in enumerate(zip(census.caches, census.count(), strict=True)):
        if count.slab_bytes < _LARGE_BYTES or cache.name not in after or cache.name not in before:
            continue
        allowed = _allowance(before[cache.name][1], after[cache.name][1])
        assert allowed[0] <= count.objects <= allowed[1], cache.name
        assert abs(len(census.objects(number)) - count.in_use) <= count.objects * 0.01 + 2 * (allowed[1] - allowed[0])
        compared += 1
    assert compared


def _allowance(before: int, after: int) -> tuple[float, float]:
    """What may be counted between two readings: within 1 %, and within what changed meanwhile."""
    changed = abs(after - before)
    return 0.99 * min(before, after) - changed, 1.01 * max(before, after) + changed
