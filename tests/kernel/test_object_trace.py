"""The object trace on this kernel: what it attaches, and what it leaves; two of them at once."""

import math
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from memdiag_api.evidence import Stack
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import open_memory
from memdiag_node.procfs.kpageflags import FrameTable
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.lookup import SlabLookup
from memdiag_node.trace.objects import object_trace, tables
from memdiag_node.trace.objects.decode import ObjectResult, RawObjects, decode_objects
from memdiag_node.trace.objects.object_trace import ObjectTrace
from memdiag_node.trace.objects.tables import Kind
from memdiag_node.trace.settings import TraceSettings
from planted.allocations import MIB
from planted.veth_xdp import XdpReceiver
from support.bpf import programs_of, wait_until_gone

SETTINGS = TraceSettings(duration_seconds=60)
DEADLINE_SECONDS = 60
SOCKETS, FREED_SOCKETS = 4000, 1000
OTHERS_SHARE = 0.01
MAPPINGS = 5000
MANY_MAPPINGS = f"""
import ctypes, mmap
memory = mmap.mmap(-1, {2 * MAPPINGS} * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for number in range({MAPPINGS}):
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 2 * number * mmap.PAGESIZE), mmap.PAGESIZE, mmap.PROT_READ)
"""
STREAM_BYTES = 8 * MIB
MANY = tables.OBJECTS * 11 // 20


def open_and_close_eventfds() -> None:
    for _ in range(1000):
        os.close(os.eventfd(0))


def attached(trace: ObjectTrace) -> set[str]:
    """The programs that are attached to a tracepoint."""
    return {key.decode().split()[1] for key in trace._bpf._module.raw_tracepoint_fds}


def test_all_kinds_are_traced_and_none_of_it_stays() -> None:
    before = programs_of(os.getpid())
    with ObjectTrace(SETTINGS, roots=HostRoots()) as trace:
        trace.start()
        assert trace.kinds == tuple(Kind)
        programs = programs_of(os.getpid()) - before
        assert {"on_kmalloc", "on_kfree", "on_percpu_alloc", "on_vmap_area_freed"} <= attached(trace)
        trace.stop_recording()
        assert attached(trace) == {"on_kfree", "on_cache_free", "on_percpu_free", "on_vmap_area_freed"}
        trace.stop_recording()
    assert programs
    assert wait_until_gone(programs) == set()


@pytest.mark.parametrize("missing", ["allocated", "freed"])
def test_a_kind_whose_tracepoint_is_missing_is_left_out(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slab, percpu, vmalloc = object_trace._EVENTS
    tracepoints = {
        "allocated": (("no_such_tracepoint", "on_vmap_area"),),
        "freed": (("no_such_tracepoint", "on_vmap_area_freed"),),
    }
    names = {"freed": vmalloc.freed, "allocated": vmalloc.allocated, missing: tracepoints[missing]}
    without = object_trace._Events(vmalloc.kind, names["freed"], names["allocated"])
    monkeypatch.setattr(object_trace, "_EVENTS", (slab, percpu, without))
    with ObjectTrace(SETTINGS, roots=HostRoots()) as trace:
        trace.start()
        assert trace.kinds == (Kind.SLAB, Kind.PERCPU)
        assert not attached(trace) & {"on_vmap_area", "on_vmap_area_freed"}
        assert trace.read_out().kinds == trace.kinds


@pytest.fixture
def all_recorded(monkeypatch: pytest.MonkeyPatch) -> TraceSettings:
    """Settings of a trace that records every object instead of a sample."""
    monkeypatch.setattr(tables, "SPARSEST_BYTES", tables.DENSEST_BYTES)
    monkeypatch.setitem(tables.NUMBERS_IN_C, "SPARSEST_BYTES", tables.DENSEST_BYTES)
    return TraceSettings(duration_seconds=60, cpu_budget_share=0)


@pytest.fixture(scope="module")
def lookup() -> Iterator[SlabLookup]:
    roots = HostRoots()
    with ExitStack() as opened:
        at = object_layout(Btf.load(roots.sys))
        yield SlabLookup(
            open_memory(at, opened),
            at,
            ranges=read_memory_map(roots.proc, roots.sys, page_bytes=4096),
            read_flags=opened.enter_context(FrameTable(Path("/proc/kpageflags"))).read,
            cpus=sorted(os.sched_getaffinity(0)),
        )


@contextmanager
def closing(fds: list[int]) -> Iterator[None]:
    """Close what is in the list at the end, whatever happens."""
    try:
        yield
    finally:
        while fds:
            os.close(fds.pop())


def decoded(raw: RawObjects, lookup: SlabLookup) -> ObjectResult:
    return decode_objects(raw, lookup.objects(raw.slab_addresses()), possible_cpus=os.cpu_count() or 1)


def own_stacks(result: ObjectResult, function: str) -> list[Stack]:
    """Stacks of this process that have a function with this in its name."""
    return [
        stack
        for stack in result.stacks
        if any(process.pid == os.getpid() for process in stack.processes)
        and any(function in frame for frame in stack.frames)
    ]


def eventfd_files(result: ObjectResult) -> list[Stack]:
    return [stack for stack in own_stacks(result, "eventfd") if stack.slab_cache == "filp"]


def tree_nodes(result: ObjectResult) -> int:
    """How many nodes of the tree of mappings of other processes are outstanding."""
    return sum(
        stack.outstanding_blocks
        for stack in result.stacks
        if stack.slab_cache == "maple_node" and any("mprotect" in frame for frame in stack.frames)
    )


def outstanding(stacks: Iterable[Stack]) -> int:
    return sum(stack.outstanding_blocks for stack in stacks)


def test_two_traces_at_once_do_not_change_the_figures_of_each_other(
    all_recorded: TraceSettings, lookup: SlabLookup
) -> None:
    roots, fds = HostRoots(), list[int]()
    with (
        ObjectTrace(all_recorded, roots=roots) as first,
        ObjectTrace(all_recorded, roots=roots) as second,
        closing(fds),
    ):
        first.start()
        fds += [os.eventfd(0) for _ in range(2000)]
        first.advance()
        second.start()
        fds += [os.eventfd(0) for _ in range(2000)]
        second.advance()
        of_second = eventfd_files(decoded(second.read_out(), lookup))
        fds += [os.eventfd(0) for _ in range(500)]
        of_first = eventfd_files(decoded(first.read_out(), lookup))
    assert (outstanding(of_first), outstanding(of_second)) == (4500, 2000)


def test_large_objects_are_recorded_more_densely(lookup: SlabLookup) -> None:
    """By their address alone, it would be one socket in 16 or little more."""
    (tcp,) = [cache for cache in lookup.caches if cache.name == "TCP"]
    with ExitStack() as kept, ObjectTrace(TraceSettings(60, cpu_budget_share=0), roots=HostRoots()) as trace:
        trace.start(lookup.caches)
        sockets = [kept.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(SOCKETS)]
        for one in sockets[:FREED_SOCKETS]:
            one.close()
        result = decoded(trace.read_out(), lookup)
    found = [stack for stack in own_stacks(result, "inet_create") if stack.slab_cache == "TCP"]
    one_in = tables.DENSEST_BYTES // 1024 if tcp.stride_bytes < 2048 else 2
    error = math.sqrt((SOCKETS - FREED_SOCKETS) * (one_in - 1))
    assert outstanding(found) == pytest.approx(SOCKETS - FREED_SOCKETS, abs=4 * error)
    assert min(stack.sampled_share for stack in found) > 0.9 / one_in


def test_objects_that_are_freed_in_bulk_are_not_outstanding(all_recorded: TraceSettings, lookup: SlabLookup) -> None:
    """The nodes of the tree of mappings are freed many at once, and after a grace period: no tracepoint shows it.

    After the trace has ended, others may allocate some of them again.
    """
    with ObjectTrace(all_recorded, roots=HostRoots()) as trace:
        trace.start()
        subprocess.run([sys.executable, "-c", MANY_MAPPINGS], check=True)
        raw = trace.read_out()
    recorded = len(raw.entries)
    end = time.monotonic() + DEADLINE_SECONDS
    result = decoded(raw, lookup)
    while tree_nodes(result) > OTHERS_SHARE * recorded and time.monotonic() < end:
        time.sleep(0.5)
        result = decoded(raw, lookup)
    assert tree_nodes(result) <= OTHERS_SHARE * recorded
    assert MAPPINGS / 2 < result.unseen_frees <= recorded


def test_runs_that_the_kernel_skips_are_counted(all_recorded: TraceSettings) -> None:
    """Interrupts receive packets on a CPU whose programs run much of the time, because objects are allocated there."""
    cpu = {min(os.sched_getaffinity(0))}
    with XdpReceiver() as receiver, ObjectTrace(all_recorded, roots=HostRoots()) as trace:
        os.sched_setaffinity(receiver.pid, cpu)
        trace.start()
        receiving = threading.Thread(target=receiver.receive, args=("paced_stream", STREAM_BYTES))
        receiving.start()
        with ThreadPoolExecutor(1, initializer=partial(os.sched_setaffinity, 0, cpu)) as churning:
            while receiving.is_alive():
                churning.submit(open_and_close_eventfds).result()
                trace.advance()
        receiving.join()
        raw = trace.read_out()
    assert raw.counter("nested") > 0, "no interrupt hit a program: this load does not exercise the case"
    assert raw.missed_runs > 0


def test_more_objects_than_the_table_holds_are_counted_with_the_stated_error(
    all_recorded: TraceSettings, lookup: SlabLookup
) -> None:
    """An eventfd has two objects at least."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    fds: list[int] = []
    try:
        with ObjectTrace(all_recorded, roots=HostRoots()) as trace, closing(fds):
            trace.start()
            for number in range(MANY):
                fds.append(os.eventfd(0))
                if number % 1000 == 0:
                    trace.advance()
            raw = trace.read_out()
            result = decoded(raw, lookup)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    files = eventfd_files(result)
    assert len(raw.entries) < tables.OBJECTS < raw.counter("recorded")
    assert result.lost_objects == 0
    error = math.sqrt(
        sum((stack.error_bytes / stack.outstanding_bytes * stack.outstanding_blocks) ** 2 for stack in files)
    )
    assert 0 < error < 0.05 * MANY
    assert outstanding(files) == pytest.approx(MANY, abs=4 * error)
