"""Results of a page trace without blocks, to be filled with groups."""

import numpy as np

from memdiag_api.evidence import TraceCounters
from memdiag_node.trace.pages.result import BLOCK_DTYPE, GROUP_DTYPE, TraceResult

NO_BLOCKS = TraceResult(
    blocks=np.zeros(0, BLOCK_DTYPE),
    groups=np.zeros(0, GROUP_DTYPE),
    stacks=[],
    memory_classes=[],
    caches=[],
    lives=[],
    processes=[],
    charges=[],
    counters=TraceCounters(),
    slices=2,
    slice_seconds=1.0,
    traced_seconds=2.0,
    page_bytes=1,
    struct_page_bytes=64,
    first_page=0,
    outstanding_bytes=0,
    outstanding_blocks=0,
)
"""Two slices of a second, pages of one byte."""
