"""The tables of object_trace.bpf.c as numpy sees them, and the numbers that both share."""

import mmap
from enum import IntEnum
from typing import Any

import numpy as np

from memdiag_node.trace import common_tables

OBJECTS = 1 << 15
ENTRIES_BITS = 14
STACKS = 4096
CGROUPS = 1024
PROCESSES = 4096
GOVERNOR_BITS = 8
LARGE_CACHES = 256
FILTER_BITS = 10
SPARSEST_BYTES, DENSEST_BYTES = 256, 4096
"""Objects at addresses with this alignment or less are recorded with a probability of 256 / 4096, and with this one or
more all are; in between the probability is proportional to the alignment (sampling.py)."""


class Kind(IntEnum):
    """What an entry of `objects` is. It takes the lower bits of the address, which are 0 in the address itself."""

    SLAB = 0
    PERCPU = 1
    VMALLOC = 2


KIND_MASK = 3

NUMBERS_IN_C = {
    **common_tables.NUMBERS_IN_C,
    **{f"KIND_{kind.name}": int(kind) for kind in Kind},
    "OBJECTS": OBJECTS,
    "ENTRIES_BITS": ENTRIES_BITS,
    "STACKS": STACKS,
    "CGROUPS": CGROUPS,
    "PROCESSES": PROCESSES,
    "GOVERNOR_BITS": GOVERNOR_BITS,
    "LARGE_CACHES": LARGE_CACHES,
    "FILTER_BITS": FILTER_BITS,
    "SPARSEST_BYTES": SPARSEST_BYTES,
    "DENSEST_BYTES": DENSEST_BYTES,
    "PAGE_BYTES": mmap.PAGESIZE,
}
"""The constants that object_trace.bpf.c shares with this module."""

CONFIG_DTYPE = np.dtype([("budget_permille", "<u4"), ("reserved", "<u4"), ("filter", "<u8", (1 << FILTER_BITS) // 64)])
OBJECT_DTYPE = np.dtype(
    [("stack", "<u8"), ("born_ns", "<u8"), ("size_bytes", "<u8"), ("tgid", "<u4"), ("level", "<u2"), ("one_in", "<u2")]
)
OBJECT_ENTRY_DTYPE = np.dtype([("key", "<u8"), ("value", OBJECT_DTYPE)])
TOTALS_DTYPE = np.dtype([("recorded", "<u8"), ("allocated", "<u8"), ("allocated_bytes", "<u8")])
TOTALS_ENTRY_DTYPE = np.dtype([("key", "<u8"), ("value", TOTALS_DTYPE)])
PROCESS_ENTRY_DTYPE = np.dtype([("key", "<u4"), ("value", common_tables.PROCESS_DTYPE)])
_COUNTERS = (
    *("picked", "recorded", "thinned", "lost_stacks", "lost_objects", "interrupted", "nested"),
    *("added", "removed", "unnamed_objects", "known_processes", "known_cgroups", "lost_cgroups"),
    *("recording_ns", "timed"),
)
CPU_DTYPE = np.dtype(
    [*((name, "<u8") for name in _COUNTERS), ("governor", common_tables.governor_dtype(GOVERNOR_BITS))]
)
"""struct cpu_state; its counters come first."""
SCRATCH_DTYPE = np.dtype(
    {
        "names": ["busy"],
        "formats": ["<u8"],
        "itemsize": 8
        + OBJECT_DTYPE.itemsize
        + common_tables.PROCESS_DTYPE.itemsize
        + common_tables.CGROUP_LEVELS * common_tables.CGROUP_NAME_BYTES
        + common_tables.STACK_DTYPE.itemsize,
    }
)

MAPS: dict[str, np.dtype[Any]] = {
    "config": CONFIG_DTYPE,
    "large_caches": np.dtype([("key", "<u8"), ("value", "<u8")]),
    "objects": OBJECT_ENTRY_DTYPE,
    "entry_counts": np.dtype("<u8"),
    "totals": TOTALS_ENTRY_DTYPE,
    "processes": PROCESS_ENTRY_DTYPE,
    "stacks": common_tables.STACK_ENTRY_DTYPE,
    "cgroups": common_tables.CGROUP_ENTRY_DTYPE,
    "lives": common_tables.LIFE_ENTRY_DTYPE,
    "cpu": CPU_DTYPE,
    "scratch": SCRATCH_DTYPE,
}
"""The maps as read here (BpfObject)."""
