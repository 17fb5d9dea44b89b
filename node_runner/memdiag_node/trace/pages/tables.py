"""The tables of page_trace.bpf.c as numpy sees them, and the numbers that both share."""

import numpy as np

from memdiag_node.procfs.memory_map import SECTION_FRAMES
from memdiag_node.trace import common_tables
from memdiag_node.trace.pages.frame_layout import CHUNK_FRAMES, MAX_ORDER

OWN_PAGES = 256
CLASS_MOVABLE, CLASS_LOST, CLASS_THINNED, FIRST_CLASS = 1, 2, 3, 16
"""Classes with a fixed meaning, and the first of the others.

CLASS_MOVABLE: user memory, by the movable filter. CLASS_LOST: no class was left, or no level of `scratch`.
CLASS_THINNED + order: a block of that order, skipped by the governor.
"""
CLASS_MASK = 0x7FFF
"""A flag in a frame's entry: its block is in `births`."""
CLASSES = 1 << 15
RESERVED_SHARE = 0.25
"""The share of class numbers kept for stacks without a process, the highest ones."""
GOVERNOR_BITS = 6

NUMBERS_IN_C = {
    "SECTION_FRAMES": SECTION_FRAMES,
    "CHUNK_FRAMES": CHUNK_FRAMES,
    "MAX_ORDER": MAX_ORDER,
    "OWN_PAGES": OWN_PAGES,
    "CLASS_MOVABLE": CLASS_MOVABLE,
    "CLASS_THINNED": CLASS_THINNED,
    "CLASS_LOST": CLASS_LOST,
    "TIMED": CLASS_MASK + 1,
    "GOVERNOR_BITS": GOVERNOR_BITS,
    **common_tables.NUMBERS_IN_C,
}
"""The constants that page_trace.bpf.c shares with this module, except the sizes of its tables."""

CONFIG_DTYPE = np.dtype(
    [
        ("first_page", "<u8"),
        ("end_frame", "<u8"),
        ("slice", "<u4"),
        ("budget_permille", "<u4"),
        ("own_pid", "<u8"),
    ]
)
CLASS_KEY_DTYPE = np.dtype(
    [("stack", "<u8"), ("tgid", "<u4"), ("slice", "u1"), ("order", "u1"), ("level", "u1"), ("reserved", "u1")]
)
CLASS_INFO_DTYPE = np.dtype(
    [
        ("key", CLASS_KEY_DTYPE),
        ("allocated_pages", "<u8"),
        ("allocated_blocks", "<u8"),
        ("cgroup", "<u8"),
        ("comm", "S16"),
    ]
)
CLASS_ENTRY_DTYPE = np.dtype([("key", CLASS_KEY_DTYPE), ("value", "<u4")])
BIRTH_ENTRY_DTYPE = np.dtype([("key", "<u4"), ("value", "<u8")])
_COUNTERS = (
    *("events", "pages", "movable_events", "movable_pages", "thinned_events", "thinned_pages"),
    *("lost_stacks", "lost_blocks", "lost_pages", "interrupted", "nested", "nested_allocs"),
    *("frees", "pool_events", "pool_pages", "taken_classes", "unnamed_blocks"),
    *("thinned_large_events", "known_cgroups", "lost_cgroups"),
    *("timed_events", "timed_ns", "timed_frees", "timed_free_ns"),
)


CPU_DTYPE = np.dtype(
    [
        *((name, "<u8") for name in _COUNTERS),
        ("governor", common_tables.governor_dtype(GOVERNOR_BITS)),
        ("last_page", "<u8"),
    ]
)
"""struct cpu_state; its counters come first."""
SCRATCH_DTYPE = np.dtype(
    {
        "names": ["busy"],
        "formats": ["<u8"],
        "itemsize": 8
        + CLASS_INFO_DTYPE.itemsize
        + common_tables.CGROUP_LEVELS * common_tables.CGROUP_NAME_BYTES
        + common_tables.STACK_DTYPE.itemsize,
    }
)

MAPS = {
    "config": CONFIG_DTYPE,
    "sections": np.dtype("<u8"),
    "frames": np.dtype(("<u2", CHUNK_FRAMES)),
    "class_info": CLASS_INFO_DTYPE,
    "classes": CLASS_ENTRY_DTYPE,
    "stacks": common_tables.STACK_ENTRY_DTYPE,
    "cgroups": common_tables.CGROUP_ENTRY_DTYPE,
    "births": BIRTH_ENTRY_DTYPE,
    "lives": common_tables.LIFE_ENTRY_DTYPE,
    "cpu": CPU_DTYPE,
    "scratch": SCRATCH_DTYPE,
    "own_pages": np.dtype("<u8"),
}
"""The maps as read here (BpfObject)."""


def reserved_classes() -> int:
    """The number of class numbers kept for stacks without a process."""
    return int(CLASSES * RESERVED_SHARE)
