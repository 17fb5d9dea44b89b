"""The tables of identity.bpf.h and governor.bpf.h, which both traces have, as numpy sees them."""

import numpy as np

from memdiag_node.kernel.layout import enum_defines
from memdiag_node.trace.contexts import ContextCode

STACK_FRAMES = 64
CGROUP_LEVELS, CGROUP_NAME_BYTES = 5, 160
MAX_LEVEL = 15  # one in 2^15

NUMBERS_IN_C = {
    "STACK_FRAMES": STACK_FRAMES,
    "CGROUP_LEVELS": CGROUP_LEVELS,
    "CGROUP_NAME_BYTES": CGROUP_NAME_BYTES,
    "MAX_LEVEL": MAX_LEVEL,
    **enum_defines("CONTEXT", ContextCode),
}
"""The constants that these headers share with this module, except the sizes of their tables."""

PROCESS_DTYPE = np.dtype([("cgroup", "<u8"), ("comm", "S16")])
STACK_DTYPE = np.dtype([("context", "<u4"), ("frames", "<u4"), ("address", "<u8", (STACK_FRAMES,))])
STACK_ENTRY_DTYPE = np.dtype([("key", "<u8"), ("value", STACK_DTYPE)])
CGROUP_ENTRY_DTYPE = np.dtype([("key", "<u8"), ("value", f"S{CGROUP_NAME_BYTES}", (CGROUP_LEVELS,))])
LIFE_KEY_DTYPE = np.dtype([("stack", "<u8"), ("bucket", "<u8")])
LIFE_ENTRY_DTYPE = np.dtype([("key", LIFE_KEY_DTYPE), ("value", "<u8")])
_CELL_DTYPE = np.dtype([("round", "<u4"), ("count", "<u2"), ("level", "<u2")])


def governor_dtype(bits: int) -> np.dtype[np.void]:
    """struct governor of governor.bpf.h with 2^bits cells."""
    return np.dtype(
        [
            *((name, "<u8") for name in ("since_ns", "recorded", "skipped", "event_ns", "round", "random")),
            *((name, "<u8") for name in ("saved", "use")),
            *((name, "<u4") for name in ("most", "last_most")),
            *((name, "<u8") for name in ("most_recorded", "last_most_recorded")),
            *((name, "<u4") for name in ("more", "less")),
            ("cells", _CELL_DTYPE, (1 << bits,)),
        ]
    )
