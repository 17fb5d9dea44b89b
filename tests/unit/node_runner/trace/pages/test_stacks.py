"""Stacks of pages."""

import numpy as np
import pytest

from memdiag_api.evidence import TraceCounters, Trend
from memdiag_node.trace.contexts import ContextCode
from memdiag_node.trace.pages.result import BLOCK_DTYPE, GROUP_DTYPE, TraceResult
from memdiag_node.trace.pages.stacks import page_stacks

RATE = 1 << 20  # bytes that leak per second
SLICES = 20


def trace_of_a_leak(window_seconds: float, ended_seconds: float, scan_seconds: float) -> TraceResult:
    """A steady leak, in a trace that continued after the end of its window while the holders were scanned."""
    slice_seconds = window_seconds / SLICES
    begun = min(SLICES, int(ended_seconds / slice_seconds) + 1)
    traced_seconds = ended_seconds + scan_seconds
    groups = np.zeros(begun, GROUP_DTYPE)
    groups["slice"] = np.arange(begun)
    groups["context"] = ContextCode.PROCESS
    groups["process"] = -1
    groups["weight"] = 1
    groups["frames"] = groups["allocated_pages"] = RATE * slice_seconds / 4096
    groups["frames"][-1] = groups["allocated_pages"][-1] = RATE * (traced_seconds - (begun - 1) * slice_seconds) / 4096
    groups["blocks"] = groups["allocated_blocks"] = groups["frames"]
    return TraceResult(
        blocks=np.zeros(0, BLOCK_DTYPE),
        groups=groups,
        stacks=[("pipe_write+0x1",)],
        memory_classes=["AllocPage"],
        caches=[None],
        lives=[{}],
        processes=[],
        charges=[],
        counters=TraceCounters(),
        slices=begun,
        slice_seconds=slice_seconds,
        traced_seconds=traced_seconds,
        page_bytes=4096,
        struct_page_bytes=64,
        first_page=0,
        outstanding_bytes=0,
        outstanding_blocks=0,
    )


@pytest.mark.parametrize(
    ("window", "ended", "scan", "trend"),
    [
        (30, 30, 0, Trend.GROWING),
        (30, 30, 10, Trend.GROWING),
        (30, 30, 40, Trend.GROWING),
        (5, 5, 40, Trend.GROWING),
        (60, 10, 0, Trend.UNCLEAR),  # four slices are too few to judge
        (60, 10, 40, Trend.UNCLEAR),
        (60, 20, 0, Trend.GROWING),
        (60, 20, 40, Trend.GROWING),
        (60, 30, 0, Trend.GROWING),
        (60, 30, 40, Trend.GROWING),
    ],
)
def test_a_steady_leak_has_its_rate_however_long_the_window_and_the_last_scan_take(
    window: float, ended: float, scan: float, trend: Trend
) -> None:
    (leak,) = page_stacks(trace_of_a_leak(window, ended, scan), 1)
    assert leak.trend is trend
    assert sum(leak.births_bytes) == leak.outstanding_bytes
    if trend is Trend.GROWING:
        assert leak.growth_bytes_per_second == pytest.approx(RATE, rel=0.01)
