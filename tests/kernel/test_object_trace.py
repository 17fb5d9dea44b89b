"""The object trace on this kernel: what it attaches, and what it leaves; two of them at once."""

import math
import os
import resource
import select
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
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
from memdiag_node.trace import object_tables, object_trace
from memdiag_node.trace.object_tables import Kind
from memdiag_node.trace.object_trace import ObjectTrace
from memdiag_node.trace.objects import ObjectResult, RawObjects, decode_objects
from memdiag_node.trace.settings import TraceSettings
from support.bpf import programs_of, wait_until_gone

SETTINGS = TraceSettings(duration_seconds=60)
WATCHED = 1500
DEADLINE_SECONDS = 60


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
    monkeypatch.setattr(object_tables, "SPARSEST_BYTES", object_tables.DENSEST_BYTES)
    monkeypatch.setitem(object_tables.NUMBERS_IN_C, "SPARSEST_BYTES", object_tables.DENSEST_BYTES)
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


def test_objects_that_are_freed_in_bulk_are_not_outstanding(all_recorded: TraceSettings, lookup: SlabLookup) -> None:
    """Items of epoll are freed with kfree_rcu: in bulk, which no tracepoint shows, and some seconds later."""
    fds: list[int] = []
    with ObjectTrace(all_recorded, roots=HostRoots()) as trace, closing(fds):
        trace.start()
        fds += [os.eventfd(0) for _ in range(WATCHED)]
        with select.epoll() as epoll:
            for fd in fds:
                epoll.register(fd)
        raw = trace.read_out()
        end = time.monotonic() + DEADLINE_SECONDS
        while outstanding(own_stacks(decoded(raw, lookup), "do_epoll_ctl")) and time.monotonic() < end:
            time.sleep(0.5)
        result = decoded(raw, lookup)
        files = outstanding(eventfd_files(result))
    assert outstanding(own_stacks(result, "do_epoll_ctl")) == 0
    assert result.unseen_frees >= WATCHED
    assert files == WATCHED


def test_more_objects_than_the_table_holds_are_counted_with_the_stated_error(
    all_recorded: TraceSettings, lookup: SlabLookup
) -> None:
    """An eventfd has two objects, so that a third of them fills the table."""
    count = object_tables.OBJECTS * 3 // 2
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count), hard))
    fds: list[int] = []
    try:
        with ObjectTrace(all_recorded, roots=HostRoots()) as trace, closing(fds):
            trace.start()
            for number in range(count):
                fds.append(os.eventfd(0))
                if number % 1000 == 0:
                    trace.advance()
            raw = trace.read_out()
            result = decoded(raw, lookup)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files = eventfd_files(result)
    assert len(raw.entries) < object_tables.OBJECTS < raw.counter("recorded")
    assert result.lost_objects == 0
    error = math.sqrt(
        sum((stack.error_bytes / stack.outstanding_bytes * stack.outstanding_blocks) ** 2 for stack in files)
    )
    assert 0 < error < 0.05 * count
    assert outstanding(files) == pytest.approx(count, abs=4 * error)
