"""The page-allocation trace against allocations of known size, on this machine's own kernel.

Other processes on the machine allocate too, so a test checks the stacks of the process that it started, or a stack that
only its load has.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from memdiag_api.evidence import Context, Stack, Trend
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.trace.pages import decode
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.pages.result import TraceResult
from memdiag_node.trace.pages.stacks import page_stacks
from memdiag_node.trace.settings import TraceSettings
from planted.allocations import MIB, PAGE_BYTES, Allocator
from planted.memory import PlantedMemory
from support.bpf import receive_and_drop

TOLERANCE = 0.02
NEVER_THIN = 0.0
FIXED_TABLES_BYTES = 16 * MIB
CHURNED_PAGES = (
    14  # a round of churn writes 16, and the kernel keeps two for the next one (struct pipe_inode_info, tmp_page)
)


@contextmanager
def running_trace(btf: Btf, duration_seconds: float = 2.0, *, budget: float = NEVER_THIN) -> Iterator[PageTrace]:
    settings = TraceSettings(duration_seconds=duration_seconds, cpu_budget_share=budget)
    with PageTrace(settings, roots=HostRoots()) as trace:
        yield trace


def stacks_with(result: TraceResult, function: str) -> list[Stack]:
    return [
        stack
        for stack in page_stacks(result, len(result.stacks))
        if any(frame.startswith(f"{function}+") for frame in stack.frames)
    ]


def bytes_of(result: TraceResult, pid: int, function: str) -> int:
    return sum(
        process.outstanding_bytes
        for stack in stacks_with(result, function)
        for process in stack.processes
        if process.pid == pid
    )


def test_pages_in_pipes_are_outstanding_and_name_their_process(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as trace:
        planted_bytes = child.do("fill_pipes", 16 * MIB)
        trace.advance()
        result = trace.finish()
    assert bytes_of(result, child.pid, "anon_pipe_write") == pytest.approx(planted_bytes, rel=TOLERANCE)
    (stack,) = [one for one in stacks_with(result, "anon_pipe_write") if one.outstanding_bytes >= planted_bytes / 2]
    assert stack.context is Context.PROCESS
    assert set(stack.outstanding_by_order) == {"0"}
    assert not any("alloc_pages" in frame or "bpf" in frame for frame in stack.frames[:1])
    assert all("0xffff" not in frame for frame in stack.frames)


def test_what_is_freed_is_not_outstanding(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as trace:
        child.do("fill_pipes", 16 * MIB)
        child.do("empty_pipes")
        result = trace.finish()
    assert bytes_of(result, child.pid, "anon_pipe_write") <= 16 * PAGE_BYTES


def test_what_lived_before_the_window_is_not_counted(btf: Btf) -> None:
    with Allocator() as child:
        child.do("fill_pipes", 16 * MIB)
        with running_trace(btf) as trace:
            time.sleep(0.2)
            result = trace.finish()
    assert bytes_of(result, child.pid, "anon_pipe_write") == 0


def test_what_lived_before_the_window_and_is_freed_in_it_is_not_subtracted(btf: Btf) -> None:
    with Allocator() as child:
        child.do("fill_pipes", 16 * MIB)
        with running_trace(btf) as trace:
            child.do("empty_pipes")
            planted_bytes = child.do("fill_pipes", 4 * MIB)
            result = trace.finish()
    assert bytes_of(result, child.pid, "anon_pipe_write") == pytest.approx(planted_bytes, rel=TOLERANCE)


def test_a_process_that_ended_is_named_as_it_was(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as trace:
        pid = child.do("fill_pipes_and_exit", 8 * MIB)
        result = trace.finish()
    assert bytes_of(result, pid, "anon_pipe_write") == pytest.approx(8 * MIB, rel=TOLERANCE)
    assert {one.comm for one in result.processes if one.pid == pid} >= {"short-lived"}


def test_one_stack_of_two_processes_is_split_between_them(btf: Btf) -> None:
    with Allocator() as one, Allocator() as other, running_trace(btf) as trace:
        one.do("fill_pipes", 8 * MIB)
        other.do("fill_pipes", 4 * MIB)
        result = trace.finish()
    assert bytes_of(result, one.pid, "anon_pipe_write") == pytest.approx(8 * MIB, rel=TOLERANCE)
    assert bytes_of(result, other.pid, "anon_pipe_write") == pytest.approx(4 * MIB, rel=TOLERANCE)


def test_a_packet_ring_is_kernel_memory_in_high_orders(btf: Btf) -> None:
    with PlantedMemory("packet_ring", 32 * MIB) as child, running_trace(btf) as trace:
        planted_bytes = child.plant()
        result = trace.finish()
    assert bytes_of(result, child.pid, "packet_set_ring") == pytest.approx(planted_bytes, rel=TOLERANCE)
    (stack,) = stacks_with(result, "packet_set_ring")[:1]
    assert stack.outstanding_by_order == {"4": planted_bytes // (16 * PAGE_BYTES)}


def test_perf_buffers_are_kernel_memory_although_user_space_maps_them(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as trace:
        planted_bytes = child.do("perf_buffers", 8 * MIB)
        result = trace.finish()
    assert bytes_of(result, child.pid, "perf_mmap") == pytest.approx(planted_bytes, rel=TOLERANCE)


def test_unread_tcp_data_sits_in_order_3_fragments(btf: Btf) -> None:
    with PlantedMemory("tcp_queues", 32 * MIB) as child, running_trace(btf) as trace:
        sent_bytes = child.plant()
        result = trace.finish()
    assert bytes_of(result, child.pid, "tcp_sendmsg") == pytest.approx(sent_bytes, rel=TOLERANCE)
    largest = stacks_with(result, "tcp_sendmsg")[0]
    assert set(largest.outstanding_by_order) == {"3"}


def class_bytes_of(result: TraceResult, pid: int, memory_class: str) -> int:
    """What a process allocated of a class, over all stacks."""
    return sum(
        process.outstanding_bytes
        for stack in page_stacks(result, len(result.stacks))
        if stack.memory_class == memory_class
        for process in stack.processes
        if process.pid == pid
    )


def test_page_tables_are_set_aside_under_their_class(btf: Btf) -> None:
    with PlantedMemory("page_tables", 16 * MIB) as child, running_trace(btf) as trace:
        planted_bytes = child.plant()
        result = trace.finish()
    assert result.counters.set_aside_bytes["PageTables"] >= planted_bytes * (1 - TOLERANCE)
    assert class_bytes_of(result, child.pid, "PageTables") >= planted_bytes * (1 - TOLERANCE)
    assert class_bytes_of(result, child.pid, "AllocPage") <= MIB


def test_slab_is_set_aside_under_its_class(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as trace:
        child.do("slab", 8000)
        result = trace.finish()
    assert result.counters.set_aside_bytes["Slab"] >= 8000 * 2048
    assert class_bytes_of(result, child.pid, "Slab") >= 8000 * 2048
    assert class_bytes_of(result, child.pid, "AllocPage") <= MIB


def test_a_bpf_map_is_vmalloc_and_not_allocpage(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as trace:
        planted_bytes = child.do("bpf_map", 32 * MIB)
        result = trace.finish()
    assert bytes_of(result, child.pid, "bpf_map_area_alloc") + bytes_of(
        result, child.pid, "__bpf_map_area_alloc"
    ) == pytest.approx(planted_bytes, rel=TOLERANCE)
    assert result.counters.set_aside_bytes["Vmalloc"] >= planted_bytes * (1 - TOLERANCE)
    assert {result.memory_classes[i] for i, s in enumerate(result.stacks) if "array_map_alloc" in "".join(s)} == {
        "Vmalloc"
    }


def test_user_memory_is_set_aside_by_the_movable_filter(btf: Btf) -> None:
    with PlantedMemory("anon", 64 * MIB) as child, running_trace(btf) as trace:
        planted_bytes = child.plant()
        result = trace.finish()
    assert result.counters.movable_outstanding_bytes >= planted_bytes * (1 - TOLERANCE)
    assert sum(one.outstanding_bytes for one in stacks_with(result, "do_anonymous_page")) <= MIB


def test_a_steady_leak_grows_and_one_filling_is_pinned(btf: Btf) -> None:
    step_bytes = MIB
    with Allocator() as leaking, Allocator() as filled_once, running_trace(btf, 4.0) as trace:
        filled_once.do("perf_buffers", 4 * MIB)
        for _ in range(39):
            leaking.do("fill_pipes", step_bytes)
            trace.advance()
            time.sleep(0.1)
        result = trace.finish()
    leak = next(one for one in stacks_with(result, "anon_pipe_write") if one.outstanding_bytes >= 30 * step_bytes)
    assert leak.trend is Trend.GROWING
    assert len(leak.births_bytes) == 20
    assert sum(leak.births_bytes) == leak.outstanding_bytes
    assert leak.growth_bytes_per_second == pytest.approx(39 * step_bytes / result.traced_seconds, rel=0.25)
    pinned = next(one for one in stacks_with(result, "perf_mmap") if one.outstanding_bytes >= 2 * MIB)
    assert pinned.trend is Trend.PINNED


def test_a_steady_leak_grows_at_its_rate_when_the_window_ends_early_and_the_trace_continues(btf: Btf) -> None:
    with Allocator() as leaking, running_trace(btf, 10.0) as trace:

        def leak_for(seconds: float, *, in_window: bool) -> int:
            leaked_bytes = 0
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                leaked_bytes += leaking.do("fill_pipes", MIB // 2)
                if in_window:
                    trace.advance()
                time.sleep(0.05)
            return leaked_bytes

        started = time.monotonic()
        leaked_bytes = leak_for(4.0, in_window=True)
        rate = leaked_bytes / (time.monotonic() - started)
        begun = trace._slice + 1
        leak_for(3.0, in_window=False)
        result = trace.finish()
    leak = next(one for one in stacks_with(result, "anon_pipe_write") if one.outstanding_bytes >= leaked_bytes)
    assert len(leak.births_bytes) == begun < 20
    assert leak.trend is Trend.GROWING
    assert leak.growth_bytes_per_second == pytest.approx(rate, rel=0.25)


def test_churn_leaves_nothing_and_its_life_is_short(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf, 2.0) as trace:
        kept_bytes = child.do("fill_pipes", 64 * 1024)  # so that the stack is in the result
        child.do("churn_pipes", 3000)
        result = trace.finish()
    assert bytes_of(result, child.pid, "anon_pipe_write") <= kept_bytes + 16 * PAGE_BYTES
    stack = next(
        one for one in stacks_with(result, "anon_pipe_write") if any(p.pid == child.pid for p in one.processes)
    )
    assert stack.allocated_bytes >= 3000 * CHURNED_PAGES * PAGE_BYTES * (1 - TOLERANCE)
    assert stack.median_life_seconds is not None
    assert stack.median_life_seconds < 0.01


def test_the_governor_thins_churn_and_states_its_error(btf: Btf) -> None:
    with Allocator() as churning, Allocator() as child, running_trace(btf, 2.0, budget=0.005) as trace:
        churning.do("churn_pipes", 3000)
        planted_bytes = child.do("fill_pipes", 64 * MIB)
        trace.advance()
        result = trace.finish()
    assert result.counters.events_sampled_out > 0
    assert result.counters.sampled_share < 1
    largest = stacks_with(result, "anon_pipe_write")[0]
    assert largest.sampled_share < 1
    assert abs(largest.outstanding_bytes - planted_bytes) <= 4 * largest.error_bytes + TOLERANCE * planted_bytes


def test_receiving_in_softirq_names_no_process(btf: Btf) -> None:
    """Small datagrams over loopback are received in softirq, where their slab pages are sometimes allocated."""
    with PlantedMemory("packet_ring", MIB), running_trace(btf) as trace:
        subprocess.run([sys.executable, "-c", _LOOPBACK_STORM], check=True)
        result = trace.finish()
    for stack in page_stacks(result, len(result.stacks)):
        if stack.context in (Context.SOFTIRQ, Context.INTERRUPT):
            assert stack.processes == []


_LOOPBACK_STORM = """
import socket
a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(("127.0.0.1", 0))
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(20000): b.sendto(b"x" * 9000, a.getsockname())
"""


def test_two_traces_at_once_agree(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as one, running_trace(btf) as other:
        planted_bytes = child.do("fill_pipes", 16 * MIB)
        first, second = one.finish(), other.finish()
    for result in (first, second):
        assert bytes_of(result, child.pid, "anon_pipe_write") == pytest.approx(planted_bytes, rel=TOLERANCE)


def test_the_blocks_are_those_of_the_stacks(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as trace:
        child.do("fill_pipes", 4 * MIB)
        result = trace.finish()
    by_block = np.bincount(result.blocks["stack"], result.blocks["frames"] * result.blocks["weight"])
    for index, stack in enumerate(page_stacks(result, len(result.stacks))):
        assert by_block[index] * PAGE_BYTES == pytest.approx(stack.outstanding_bytes)
    assert len(np.unique(result.blocks["page"])) == len(result.blocks)


def test_the_programs_run_time_agrees_with_the_kernels_own_count(btf: Btf) -> None:
    """The programs time one run in 256 themselves; kernel.bpf_stats_enabled makes the kernel time every run."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    try:
        with Allocator() as child, running_trace(btf) as trace:
            switch.write_text("1")
            child.do("churn_pipes", 4000)
            kernel_seconds = sum(info.run_seconds for info in trace.program_infos())
            result = trace.finish()
    finally:
        switch.write_text(before)
    assert result.counters.program_seconds == pytest.approx(kernel_seconds, rel=0.5)


def test_nothing_is_lost_and_the_counters_add_up(btf: Btf) -> None:
    with Allocator() as child, running_trace(btf) as trace:
        child.do("churn_pipes", 200)
        result = trace.finish()
    counters = result.counters
    assert counters.events_seen >= counters.events_filtered + 200 * CHURNED_PAGES
    assert counters.lost_stacks == counters.lost_records == 0
    assert counters.table_bytes <= 0.0005 * os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES + FIXED_TABLES_BYTES


def test_pages_that_a_pool_takes_in_bulk_are_seen_by_the_pool(btf: Btf) -> None:
    """alloc_pages_bulk does not hit mm_page_alloc; without page_pool_state_hold these pages would not be seen."""
    with running_trace(btf) as trace:
        receive_and_drop(1 << 14)
        raw = trace.read_out()
        result = decode.decode(raw, trace.symbols(raw), trace.contexts(raw))
    assert raw.counter("pool_pages") >= 64
    assert sum(stack.outstanding_bytes for stack in stacks_with(result, "page_pool_alloc_netmems")) == 0


@pytest.fixture
def proc_without(tmp_path: Path) -> Callable[[str], HostRoots]:
    """A view of /proc that lacks one file."""

    def make(missing: str) -> HostRoots:
        for name in {"kpageflags", "kpagecgroup", "meminfo", "vmstat", "zoneinfo"} - {missing}:
            (tmp_path / name).symlink_to(f"/proc/{name}")
        return HostRoots(proc=tmp_path)

    return make


@pytest.mark.parametrize("missing", ["kpageflags", "kpagecgroup"])
def test_without_a_file_of_proc_the_bytes_stay_right(
    btf: Btf, proc_without: Callable[[str], HostRoots], missing: str
) -> None:
    settings = TraceSettings(duration_seconds=2.0, cpu_budget_share=NEVER_THIN)
    with Allocator() as child, PageTrace(settings, roots=proc_without(missing)) as trace:
        planted_bytes = child.do("fill_pipes", 16 * MIB)
        result = trace.finish()
    stacks = page_stacks(result, len(result.stacks))
    found = sum(one.outstanding_bytes for stack in stacks for one in stack.processes if one.pid == child.pid)
    assert found == pytest.approx(planted_bytes, rel=2 * TOLERANCE)
    assert not any("0xffff" in frame for stack in stacks for frame in stack.frames)


def test_pages_in_pipes_are_charged_to_the_container_that_filled_them(btf: Btf) -> None:
    """The container is a memory cgroup named as containerd names it."""
    container, pod = "c0ffee" + "0" * 58, "11111111-2222-3333-4444-555555555555"
    root = next(path for path in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if path.is_dir())
    parent = root / f"kubepods-burstable-pod{pod.replace('-', '_')}.slice"
    group = parent / f"cri-containerd-{container}.scope"
    group.mkdir(parents=True)
    try:
        with Allocator() as child, running_trace(btf) as trace:
            (group / "cgroup.procs").write_text(str(child.pid))
            planted_bytes = child.do("fill_pipes", 8 * MIB)
            result = trace.finish()
    finally:
        group.rmdir()
        parent.rmdir()
    (process,) = [one for one in result.processes if one.pid == child.pid and one.container_id]
    assert (process.container_id, process.pod_uid) == (container, pod)
    (charge,) = [one for one in result.charges if one.container_id == container]
    assert charge.pod_uid == pod
    assert charge.size_bytes == pytest.approx(planted_bytes, rel=TOLERANCE)
