"""Memory of the machine against the kernel's own figures, on this machine."""

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from memdiag_api.evidence import Check, Evidence
from memdiag_api.machine import Machine
from memdiag_node.breakdown.surroundings import read_huge_page_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.machine.huge_page_sample import HugePageHeads, count_zeros
from memdiag_node.machine.reading import read_machine
from memdiag_node.machine.record import machine_record
from memdiag_node.procfs.kpageflags import open_frame_table
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from planted.bpf_and_xdp import bpf
from planted.huge_pages import shared_huge_pages
from support.slab_census import opened_memory, take_slab_census

MIB = 1 << 20
HUGE_BYTES = 2 * MIB
NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
ZRAM_CONTROL = Path("/sys/class/zram-control")
MAP_HUGETLB = 0x40000
_MAP_CREATE, _ARRAY = 0, 2


def machine_now(*, vmalloc_bytes: int = 0) -> Machine:
    mem_total_bytes = parse_meminfo(Path("/proc/meminfo").read_bytes()).mem_total_bytes
    reading = read_machine(HostRoots(), vmalloc_bytes=vmalloc_bytes, is_last=True)
    return machine_record(reading, page_bytes=mmap.PAGESIZE, mem_total_bytes=mem_total_bytes)


@contextmanager
def huge_page_pool(pages: int) -> Iterator[int]:
    """A pool with `pages` more pages; yields its size before."""
    before = int(NR_HUGEPAGES.read_text())
    NR_HUGEPAGES.write_text(f"{before + pages}")
    try:
        yield before
    finally:
        NR_HUGEPAGES.write_text(f"{before}")


def test_a_pool_of_huge_pages_is_what_meminfo_shows() -> None:
    with huge_page_pool(64) as before, ExitStack() as kept:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
        used = kept.enter_context(mmap.mmap(-1, 8 * HUGE_BYTES, flags=flags))
        for position in range(0, 3 * HUGE_BYTES, HUGE_BYTES):
            used[position] = 1
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        (pool,) = [one for one in machine_now().huge_pages if one.numa_node is None]
        assert pool.pages == int(fields["HugePages_Total"]) == before + 64
        assert pool.free_pages == int(fields["HugePages_Free"])
        assert pool.reserved_pages == int(fields["HugePages_Rsvd"]) >= 5
        assert pool.page_size_bytes == HUGE_BYTES


@contextmanager
def zram_device(data_bytes: int) -> Iterator[str]:
    """A zram device of its own, with data that cannot be compressed and as many zeros."""
    number = int((ZRAM_CONTROL / "hot_add").read_text())
    folder = Path(f"/sys/block/zram{number}")
    try:
        (folder / "disksize").write_text("256M")
        with Path(f"/dev/zram{number}").open("wb", buffering=0) as device:
            device.writelines(os.urandom(MIB) + bytes(MIB) for _ in range(data_bytes // MIB))
            os.fsync(device.fileno())
        yield folder.name
    finally:
        (folder / "reset").write_text("1")
        (ZRAM_CONTROL / "hot_remove").write_text(str(number))


@pytest.mark.skipif(not ZRAM_CONTROL.exists(), reason="this kernel has no zram")
def test_a_zram_device_has_what_was_written_to_it() -> None:
    pages_before = _vmstat("nr_zspages")
    with zram_device(64 * MIB) as name:
        taken_bytes = (_vmstat("nr_zspages") - pages_before) * mmap.PAGESIZE
        (device,) = [one for one in machine_now().compressed_devices if one.name == name]
    assert device.stored_bytes == 128 * MIB
    assert device.disk_bytes == 256 * MIB
    assert device.taken_bytes == pytest.approx(64 * MIB, rel=0.03)
    assert device.taken_bytes == pytest.approx(taken_bytes, abs=MIB)
    assert name not in {one.name for one in machine_now().compressed_devices}


def _vmstat(name: str) -> int:
    lines = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(lines[name])


def _caller_bytes(machine: Machine, function: str) -> int:
    assert machine.vmalloc
    return sum(one.size_bytes for one in machine.vmalloc.callers if one.function == function)


def test_vmalloc_of_a_bpf_map_has_its_caller() -> None:
    before = machine_now()
    fd = bpf(_MAP_CREATE, struct.pack("IIIII", _ARRAY, 4, 4096, 100 * MIB // 4096, 0) + bytes(100))
    try:
        after = machine_now()
        vmalloc_bytes = parse_meminfo(Path("/proc/meminfo").read_bytes()).vmalloc_bytes
    finally:
        os.close(fd)
    grown_bytes = _caller_bytes(after, "array_map_alloc") - _caller_bytes(before, "array_map_alloc")
    assert grown_bytes == pytest.approx(100 * MIB, abs=2 * MIB)
    assert after.vmalloc
    assert after.vmalloc.is_complete
    assert 0 <= vmalloc_bytes - after.vmalloc.read_bytes <= 16 * MIB  # the rest are kernel stacks


def test_free_blocks_are_the_free_pages_of_the_zones() -> None:
    machine = machine_now()
    zones = Path("/proc/zoneinfo").read_text().splitlines()
    free_pages = sum(int(line.split()[2]) for line in zones if line.split()[:2] == ["pages", "free"])
    assert machine.free_blocks
    assert sum(machine.free_blocks.bytes_by_order) == pytest.approx(free_pages * mmap.PAGESIZE, abs=64 * MIB)


def test_what_is_outside_of_memtotal_is_the_memory_map_and_the_kernel() -> None:
    machine = machine_now()
    assert machine.reserved
    known_bytes = machine.reserved.memory_map_bytes + (machine.reserved.kernel_bytes or 0)
    assert known_bytes <= machine.reserved.reserved_bytes
    assert machine.reserved.reserved_bytes < 0.1 * machine.reserved.ram_bytes


def test_huge_pages_that_two_processes_map_have_their_owners_once() -> None:
    checks = (Check.BREAKDOWN, Check.OWNERS)
    settings = Settings(run_id="huge", node_name="here", checks=checks, duration_seconds=0.2)
    with huge_page_pool(48), shared_huge_pages(16) as planted:
        for pid in planted.pids:
            assert f"HugetlbPages:\t{planted.size_bytes // 1024:>8} kB" in Path(f"/proc/{pid}/status").read_text()
        evidence = measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None)
    (found,) = [one for one in evidence.owners if one.memory_class == "Hugetlb"]
    assert found.size_bytes >= 48 * HUGE_BYTES
    assert found.explained_bytes == planted.size_bytes
    assert [(one.owner.pid in planted.pids, one.owner.processes) for one in found.owners] == [(True, 2)]


@contextmanager
def half_zero_huge_pages(size_bytes: int) -> Iterator[mmap.mmap]:
    """Huge pages of which every second small page has one byte that is not zero."""
    with mmap.mmap(-1, size_bytes + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for position in range(0, len(memory), 2 * mmap.PAGESIZE):
            memory[position + position // mmap.PAGESIZE % 4096] = 1
        yield memory


def frames_of(memory: mmap.mmap) -> set[int]:
    view = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(view)
    del view
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(address // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pagemap.read(len(memory) // mmap.PAGESIZE * 8), "<u8")
    return set((entries & np.uint64((1 << 55) - 1)).tolist()) - {0}


def test_half_of_the_huge_pages_is_zero(btf: Btf) -> None:
    frames = read_huge_page_bytes(Path("/sys")) // mmap.PAGESIZE
    if not frames:
        pytest.skip("this kernel has no transparent huge pages")
    with opened_memory(btf) as kernel, half_zero_huge_pages(64 * MIB) as memory, ExitStack() as files:
        census = take_slab_census(kernel, btf)
        table = open_frame_table(Path("/proc/kpageflags"), files)
        assert table
        heads = HugePageHeads(table.read, frames)
        mine = frames_of(memory)
        for first in {frame >> 16 << 16 for frame in mine}:
            heads.read(first, 1 << 16)
        own = np.array(sorted(mine & set(heads.frames.tolist())), "<u8")
        if len(own) < 24:
            pytest.skip("the kernel had no huge pages to give")
        counts = count_zeros(
            kernel, own, linear_base=census.linear_base, page_bytes=mmap.PAGESIZE, frames_per_page=frames
        )
    assert counts.zero_pages.mean() / frames == pytest.approx(0.5, abs=0.03)


def test_the_machine_is_in_the_document_of_a_run() -> None:
    checks = (Check.BREAKDOWN, Check.KERNEL_OBJECTS)
    settings = Settings(run_id="machine", node_name="here", checks=checks, duration_seconds=0.2)
    with half_zero_huge_pages(32 * MIB), huge_page_pool(16):
        evidence: Evidence = measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None)
    machine = evidence.machine
    assert machine
    assert machine.not_read == []
    assert sum(one.pages for one in machine.huge_pages if one.numa_node is None) >= 16
    assert machine.free_blocks
    assert machine.free_blocks.compaction_stalls is not None
    assert machine.huge_page_sample
    assert machine.huge_page_sample.huge_pages >= 12
    (mine,) = [one for one in machine.huge_page_sample.processes if one.pid == os.getpid()]
    assert mine.comm == Path("/proc/self/comm").read_text().strip()
    assert mine.sampled_pages >= 12
    assert mine.zero_bytes == pytest.approx(0.5 * mine.sampled_pages * 2 * MIB, rel=0.1)
    assert len(machine.model_dump_json(by_alias=True)) < 32 * 1024
