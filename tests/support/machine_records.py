"""Runs with memory of the machine, made by hand, for the rules."""

import numpy as np

from memdiag_api.evidence import Breakdown, Holder, MemoryClass, Window
from memdiag_api.machine import Machine
from memdiag_api.memory_classes import ClassName
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from memdiag_node.holding import PINNED_DTYPE, Holding
from support.measurements import host_of, window_of

MEM_TOTAL_BYTES = 16 * GIB
NOTABLE_BYTES = 64 * MIB
LARGE_BYTES = round(0.02 * MEM_TOTAL_BYTES)


def situation_of(machine: Machine | None, *holders: Holder, window: Window | None = None) -> Situation:
    """A run on a machine with 16 GiB: findings start at 64 MiB, and memory is large from 327.7 MiB on."""
    classes = [
        MemoryClass(name=ClassName.ALLOC_PAGE, group="Kernel", size_bytes=2 * GIB),
        MemoryClass(name=ClassName.VMALLOC, group="Kernel", size_bytes=GIB),
        MemoryClass(name=ClassName.MEM_FREE, group="Free", size_bytes=13 * GIB),
    ]
    measured = Measurements(
        host=host_of(MEM_TOTAL_BYTES),
        window=window or window_of(10),
        checks=(),
        needs=(),
        breakdown=Breakdown(
            mem_total_bytes=MEM_TOTAL_BYTES, classes=classes, alloc_page_bytes=2 * GIB, alloc_page_error_bytes=0
        ),
        machine=machine,
        holdings=[Holding(one, np.empty(0, PINNED_DTYPE)) for one in holders],
    )
    return Situation(measured, Thresholds())
