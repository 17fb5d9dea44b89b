"""Files of the kernel that do nothing, only to have one of their kind."""

import ctypes
import os
import platform
import struct

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_IO_URING_SETUP = 425  # the same on every architecture
_TYPE_SOFTWARE, _COUNT_DUMMY = 1, 9
_ATTRIBUTE_BYTES = 64  # PERF_ATTR_SIZE_VER0
_DISABLED_EXCLUDE_KERNEL = 1 << 0 | 1 << 5
_CLOSE_ON_EXEC = 1 << 3
_IO_URING_PARAMETER_BYTES = 120  # include/uapi/linux/io_uring.h, struct io_uring_params


def open_idle_perf_event() -> int:
    """Open a perf event that counts nothing, and return its fd. Raises OSError if this process may not open one.

    Source: man 2 perf_event_open.
    """
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(f"the number of perf_event_open is not known for {platform.machine()}")
    fields = struct.pack("=IIQQQQQ", _TYPE_SOFTWARE, _ATTRIBUTE_BYTES, _COUNT_DUMMY, 0, 0, 0, _DISABLED_EXCLUDE_KERNEL)
    attributes = ctypes.create_string_buffer(fields, _ATTRIBUTE_BYTES)
    return _call("perf_event_open", number, attributes, 0, -1, -1, ctypes.c_ulong(_CLOSE_ON_EXEC))


def open_idle_io_uring() -> int:
    """Open an io_uring of one entry, and return its fd, which is closed on exec.

    Raises OSError if this process may not open one: sysctl kernel.io_uring_disabled, or a seccomp profile.
    """
    return _call("io_uring_setup", _IO_URING_SETUP, 1, ctypes.create_string_buffer(_IO_URING_PARAMETER_BYTES))


def _call(name: str, number: int, *arguments: object) -> int:
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return fd
