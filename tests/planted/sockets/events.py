"""Events of inotify that nobody reads."""

import ctypes
import os
import tempfile
from pathlib import Path

from planted.sockets.common import Truth, keep, libc

_IN_CREATE = 0x100


def inotify_events(amount: int, name_bytes: int) -> Truth:
    """`amount` events with names of `name_bytes`; the kernel's limit for each fd may be less."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    fd = libc.inotify_init()
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init")
    events = min(amount, limit)
    with tempfile.TemporaryDirectory() as directory:
        libc.inotify_add_watch(fd, directory.encode(), _IN_CREATE)
        for number in range(events):
            path = Path(directory) / f"{number:0{name_bytes}}"
            os.mknod(path)
            path.unlink()
        keep(fd)
        libc.inotify_rm_watch(fd, 1)
    return {"fd": fd, "events": events}
