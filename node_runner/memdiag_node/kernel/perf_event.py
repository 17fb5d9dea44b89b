"""A perf event that counts nothing, only to have such a file (man 2 perf_event_open)."""

import ctypes
import os
import platform
import struct

_SYSTEM_CALLS = {"x86_64": 298, "aarch64": 241}  # perf_event_open
_TYPE_SOFTWARE, _COUNT_DUMMY = 1, 9
_ATTRIBUTE_BYTES = 64  # PERF_ATTR_SIZE_VER0
_DISABLED_EXCLUDE_KERNEL = 1 << 0 | 1 << 5
_CLOSE_ON_EXEC = 1 << 3


def open_idle_perf_event() -> int:
    """Open one and return its file descriptor. Raises OSError if this process may not open one."""
    number = _SYSTEM_CALLS.get(platform.machine())
    if number is None:
        raise OSError(f"the number of perf_event_open is not known for {platform.machine()}")
    fields = struct.pack("=IIQQQQQ", _TYPE_SOFTWARE, _ATTRIBUTE_BYTES, _COUNT_DUMMY, 0, 0, 0, _DISABLED_EXCLUDE_KERNEL)
    attributes = ctypes.create_string_buffer(fields, _ATTRIBUTE_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(number, attributes, 0, -1, -1, ctypes.c_ulong(_CLOSE_ON_EXEC))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"perf_event_open: {os.strerror(code)}")
    return fd
