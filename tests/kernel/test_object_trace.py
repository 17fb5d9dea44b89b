"""The object trace on this kernel: what it attaches, and what it leaves; two of them at once."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

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
from memdiag_node.trace.objects import decode_objects
from memdiag_node.trace.settings import TraceSettings
from support.bpf import programs_of, wait_until_gone

SETTINGS = TraceSettings(duration_seconds=60)


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


def eventfds(trace: ObjectTrace, lookup: SlabLookup) -> int:
    """How many file structs of eventfds of this process are outstanding."""
    raw = trace.read_out()
    result = decode_objects(raw, lookup.objects(raw.slab_addresses()), possible_cpus=os.cpu_count() or 1)
    return sum(
        stack.outstanding_blocks
        for stack in result.stacks
        if stack.slab_cache == "filp"
        and any(process.pid == os.getpid() for process in stack.processes)
        and any("eventfd" in frame for frame in stack.frames)
    )


def test_two_traces_at_once_do_not_change_the_figures_of_each_other(all_recorded: TraceSettings) -> None:
    roots, fds = HostRoots(), list[int]()
    with ExitStack() as opened:
        at = object_layout(Btf.load(roots.sys))
        first = opened.enter_context(ObjectTrace(all_recorded, roots=roots))
        second = opened.enter_context(ObjectTrace(all_recorded, roots=roots))
        lookup = SlabLookup(
            open_memory(at, opened),
            at,
            ranges=read_memory_map(roots.proc, roots.sys, page_bytes=4096),
            read_flags=opened.enter_context(FrameTable(Path("/proc/kpageflags"))).read,
            cpus=sorted(os.sched_getaffinity(0)),
        )
        try:
            first.start()
            fds += [os.eventfd(0) for _ in range(2000)]
            first.advance()
            second.start()
            fds += [os.eventfd(0) for _ in range(2000)]
            second.advance()
            of_second = eventfds(second, lookup)
            fds += [os.eventfd(0) for _ in range(500)]
            of_first = eventfds(first, lookup)
        finally:
            for fd in fds:
                os.close(fd)
    assert (of_first, of_second) == (4500, 2000)
