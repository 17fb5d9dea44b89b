"""A trace of many short-lived processes needs more classes than exist: unused ones are reused."""

import subprocess
import time

import pytest

from memdiag_node.procfs.roots import HostRoots
from memdiag_node.trace.pages import decode
from memdiag_node.trace.pages import tables as page_tables
from memdiag_node.trace.pages.decode import RawTrace
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.pages.stacks import page_stacks
from memdiag_node.trace.settings import TraceSettings
from planted.allocations import MIB, Allocator

PLANTED_BYTES = 8 * MIB
PROCESSES_A_STEP = 20  # each allocates by some twenty stacks, in classes of its own
STEPS = 30
STEP_PAUSE_SECONDS = 0.3

# By default there are 20 slices of 3 s, and 32,760 classes.
SHORT_SLICES = TraceSettings(duration_seconds=12, slices=60, cpu_budget_share=0.0)
ONE_LONG_SLICE = TraceSettings(duration_seconds=600, slices=1, cpu_budget_share=0.0)


def trace_a_fork_storm(settings: TraceSettings) -> tuple[int, RawTrace]:
    """Bytes seen of the pipes that were filled before the storm, and the tables."""
    with PageTrace(settings, roots=HostRoots()) as trace, Allocator() as child:
        assert child.do("fill_pipes", PLANTED_BYTES) == PLANTED_BYTES
        for _ in range(STEPS):
            for _ in range(PROCESSES_A_STEP):
                subprocess.run(["/bin/true"], check=True)
            time.sleep(STEP_PAUSE_SECONDS)
            trace.advance()
        raw = trace.read_out()
        result = decode.decode(raw, trace.symbols(raw), trace.contexts(raw))
        pid = child.pid
    stacks = [
        stack
        for stack in page_stacks(result, len(result.stacks))
        if any("pipe_write" in frame for frame in stack.frames)
    ]
    return sum(one.outstanding_bytes for stack in stacks for one in stack.processes if one.pid == pid), raw


@pytest.mark.parametrize("settings", [SHORT_SLICES, ONE_LONG_SLICE], ids=["short slices", "one long slice"])
@pytest.mark.parametrize("makes_room", [True, False])
def test_classes_that_nothing_uses_make_room_for_new_ones(
    settings: TraceSettings, makes_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, processes lose their names, so this storm needs it."""
    classes = 4096
    monkeypatch.setattr(page_tables, "CLASSES", classes)
    if not makes_room:
        monkeypatch.setattr(PageTrace, "_make_room", lambda *_: None)
    seen_bytes, raw = trace_a_fork_storm(settings)
    assert (raw.counter("unnamed_blocks") == 0) is makes_room
    assert (raw.counter("taken_classes") > classes) is makes_room
    assert (raw.counter("lost_blocks"), raw.counter("lost_stacks")) == (0, 0)
    assert seen_bytes == pytest.approx(PLANTED_BYTES, rel=0.02)


def test_a_storm_beyond_all_classes_loses_no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 forks per second in a slice of 90 s need 900,000 classes, 27 times as many as exist; the same ratio here."""
    classes = 1024
    monkeypatch.setattr(page_tables, "CLASSES", classes)
    _, raw = trace_a_fork_storm(ONE_LONG_SLICE)
    assert raw.counter("unnamed_blocks") > 0
    assert (raw.counter("lost_blocks"), raw.counter("lost_stacks")) == (0, 0)
