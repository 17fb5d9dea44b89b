"""The kernel log: the size of the per-CPU allocator's first chunk (kernel: mm/percpu.c).

/proc/meminfo counts that chunk in `Percpu`, yet it was set aside at boot and is no part of `MemTotal`.
No file tells its size; one line of the boot log does, until newer lines push it out.
"""

import re

_EMBEDDED = re.compile(rb"\bpercpu: (?:Embedded )?(\d{1,6}) (?:4K )?pages/cpu\b")


def parse_first_chunk_pages_per_cpu(log: bytes) -> int | None:
    """Pages per CPU of the first chunk, or None when the log no longer holds its line."""
    match = _EMBEDDED.search(log)
    return int(match[1]) if match else None
