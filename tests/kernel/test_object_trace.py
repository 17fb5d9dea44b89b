"""The object trace on this kernel: what it attaches, and what it leaves."""

import os

import pytest

from memdiag_node.procfs.roots import HostRoots
from memdiag_node.trace import object_trace
from memdiag_node.trace.object_tables import Kind
from memdiag_node.trace.object_trace import ObjectTrace
from memdiag_node.trace.settings import TraceSettings
from support.bpf import programs_of, wait_until_gone

SETTINGS = TraceSettings(duration_seconds=60)


def attached(trace: ObjectTrace) -> set[str]:
    """The programs that are attached to a tracepoint."""
    return {key.decode().split()[1] for key in trace._bpf._module.raw_tracepoint_fds}


def test_all_kinds_are_traced_and_none_of_it_stays() -> None:
    before = programs_of(os.getpid())
    with ObjectTrace(SETTINGS, roots=HostRoots()) as trace:
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
        assert trace.kinds == (Kind.SLAB, Kind.PERCPU)
        assert not attached(trace) & {"on_vmap_area", "on_vmap_area_freed"}
        assert trace.read_out().kinds == trace.kinds
