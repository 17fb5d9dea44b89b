"""The kernel log, read for the size of the per-CPU allocator's first chunk (kernel: mm/percpu.c).

/proc/meminfo counts that chunk in `Percpu`, yet it was set aside at boot and is no part of `MemTotal`.
No file tells its size; one line of the boot log does, until newer lines push it out.
"""

import ctypes
import re

_SYSLOG_ACTION_READ_ALL = 3
_SYSLOG_ACTION_SIZE_BUFFER = 10
_EMBEDDED = re.compile(rb"\bpercpu: (?:Embedded )?(\d{1,6}) (?:4K )?pages/cpu\b")


def read_kernel_log() -> bytes | None:
    """The whole kernel log (man 2 syslog), or None where only CAP_SYSLOG may read it and this process lacks it."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(_SYSLOG_ACTION_SIZE_BUFFER, None, 0)
    if size <= 0:
        return None
    buffer = ctypes.create_string_buffer(size)
    length = libc.klogctl(_SYSLOG_ACTION_READ_ALL, buffer, size)
    return buffer.raw[:length] if length >= 0 else None


def parse_first_chunk_pages_per_cpu(log: bytes) -> int | None:
    """Pages per CPU of the first chunk, or None when the log no longer holds its line."""
    match = _EMBEDDED.search(log)
    return int(match[1]) if match else None
