"""A trace of many short-lived processes needs more classes than there are: those that nothing uses go to new ones."""

import subprocess
import time

import pytest

from memdiag_api.evidence import TraceCounters
from memdiag_node.analyze.stacks import fold_stacks
from memdiag_node.ebpf import trace_tables
from memdiag_node.ebpf.btf import Btf
from memdiag_node.ebpf.page_trace import PageTrace, TraceSettings
from memdiag_node.host import HostRoots
from planted.allocations import MIB, Allocator

CLASSES = 4096
SETTINGS = TraceSettings(duration_seconds=12, slices=60, cpu_budget_share=0.0)
PROCESSES_A_SLICE = 20  # each allocates by some twenty stacks, in classes of its own
PLANTED_BYTES = 8 * MIB


def trace_a_fork_storm() -> tuple[int, TraceCounters]:
    """Bytes that were seen of pipes that were filled before the storm, and the counters."""
    with PageTrace(SETTINGS, btf=Btf.load(), roots=HostRoots()) as trace, Allocator() as child:
        assert child.do("fill_pipes", PLANTED_BYTES) == PLANTED_BYTES
        for _ in range(SETTINGS.slices):
            for _ in range(PROCESSES_A_SLICE):
                subprocess.run(["/bin/true"], check=True)
            time.sleep(SETTINGS.slice_seconds / 2)
            trace.advance()
        result = trace.finish()
        pid = child.pid
    seen = sum(
        process.outstanding_bytes
        for stack in fold_stacks(result, len(result.stacks))
        for process in stack.processes
        if process.pid == pid and any("pipe_write" in frame for frame in stack.frames)
    )
    return seen, result.counters


@pytest.mark.parametrize("makes_room", [True, False])
def test_classes_that_nothing_uses_make_room_for_new_ones(makes_room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, the same storm fills the table: so it is a storm that needs it."""
    monkeypatch.setattr(trace_tables, "CLASSES", CLASSES)
    if not makes_room:
        monkeypatch.setattr(PageTrace, "_make_room", lambda *_: None)
    seen_bytes, counters = trace_a_fork_storm()
    assert (counters.lost_records == 0) is makes_room
    assert seen_bytes == pytest.approx(PLANTED_BYTES, rel=0.02)
