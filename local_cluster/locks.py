"""A lock between processes, held as long as its file is open (flock(2)): a process that exits releases it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock `path`, after waiting for other holders to release it."""
    descriptor = _open_current(path)
    try:
        yield
    finally:
        os.close(descriptor)


def _open_current(path: Path) -> int:
    """Lock the file at `path`, and open it again if it was deleted while we waited."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
