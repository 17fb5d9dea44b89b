"""The kernel log: the size of the per-CPU allocator's first chunk (kernel: mm/percpu.c).

/proc/meminfo counts that chunk in `Percpu`, but it was reserved at boot and is not part of `MemTotal`. No file has its
size. One line of the boot log does, until newer lines overwrite it.
"""

import re

_EMBEDDED = re.compile(rb"\bpercpu: (?:Embedded )?(\d{1,6}) (?:4K )?pages/cpu\b")


def parse_first_chunk_pages_per_cpu(log: bytes) -> int | None:
    """Return the pages per CPU of the first chunk, or None if the log no longer has the line."""
    match = _EMBEDDED.search(log)
    return int(match[1]) if match else None
