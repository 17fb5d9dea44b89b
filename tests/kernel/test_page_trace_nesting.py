"""Interrupts that allocate while the trace's own programs run on that CPU: their allocations keep their stack.

A timer's interrupts send a TCP stream through a veth pair, whose receiving end takes its pages from a page pool. On the
same CPU, pipes are filled and emptied without a pause, so that the program runs there much of the time. From a first
stream the trace learns that interrupts hide events.
"""

import os
import threading

from memdiag_node.procfs.roots import HostRoots
from memdiag_node.trace.pages import decode
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.pages.stacks import page_stacks
from memdiag_node.trace.settings import TraceSettings
from planted.allocations import MIB, Allocator
from planted.veth_xdp import XdpReceiver

FIRST_STREAM_BYTES, STREAM_BYTES = 16 * MIB, 24 * MIB
SETTINGS = TraceSettings(duration_seconds=10, cpu_budget_share=0.0)


def is_driver(frame: str) -> bool:
    return frame.startswith("veth_")


def test_pages_that_interrupts_take_while_the_program_runs_keep_their_stack() -> None:
    cpu = {min(os.sched_getaffinity(0))}
    with (
        Allocator() as churning,
        XdpReceiver() as first_receiver,
        XdpReceiver() as receiver,
        PageTrace(SETTINGS, roots=HostRoots()) as trace,
    ):
        os.sched_setaffinity(churning.pid, cpu)
        os.sched_setaffinity(first_receiver.pid, cpu)
        os.sched_setaffinity(receiver.pid, cpu)

        def hidden_events() -> int:
            return {info.function: info.recursion_misses for info in trace.program_infos()}["on_alloc"]

        def receive(receiver: XdpReceiver, amount: int) -> None:
            receiving = threading.Thread(target=receiver.receive, args=("paced_stream", amount))
            receiving.start()
            while receiving.is_alive():
                churning.do("churn_pipes", 100)
                trace.advance()
            receiving.join()

        receive(first_receiver, FIRST_STREAM_BYTES)
        hidden_before = hidden_events()
        receive(receiver, STREAM_BYTES)
        hidden = hidden_events() - hidden_before
        misses = {info.function: info.recursion_misses for info in trace.program_infos()}
        raw = trace.read_out()
        result = decode.decode(raw, trace.symbols(raw), trace.contexts(raw))
    stacks = page_stacks(result, len(result.stacks))
    found_bytes = sum(one.outstanding_bytes for one in stacks if any(map(is_driver, one.frames)))
    assert raw.counter("nested") > 0, "no interrupt hit the program: this load does not exercise the case"
    assert (raw.counter("interrupted"), result.counters.lost_records) == (0, 0)
    assert hidden > 0
    assert raw.counter("nested_allocs") >= hidden, "allocations that no program saw"
    assert result.counters.missed_runs == raw.recursion_misses > 0, "what was hidden at first is not counted"
    assert misses["on_pool_hold"] == 0
    assert found_bytes >= STREAM_BYTES, [(one.outstanding_bytes, one.frames[:8]) for one in stacks[:8]]
