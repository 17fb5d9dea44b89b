"""Objects of kmalloc-64 that a kernel module allocated: module/planted_leak.c, loaded and unloaded."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from planted.sockets.common import libc

NAME = "planted_leak"
SOURCE = Path(__file__).parent / "module" / f"{NAME}.c"

_SYS_DELETE_MODULE, _SYS_FINIT_MODULE = 176, 313  # x86-64


@dataclass(frozen=True, slots=True)
class LeakedObjects:
    """What the module has allocated. Each object points to `function`, in its third word."""

    module: str
    function: str
    objects: int
    object_bytes: int


@contextlib.contextmanager
def leaked_objects(module: Path, objects: int) -> Iterator[LeakedObjects]:
    """Load the module, which was built for this kernel; unloading it frees its objects."""
    load_module(module, f"objects={objects}")
    try:
        allocated = int(Path(f"/sys/module/{NAME}/parameters/allocated").read_text())
        yield LeakedObjects(NAME, f"{NAME}_callback", allocated, 64)
    finally:
        if libc.syscall(_SYS_DELETE_MODULE, NAME.encode(), os.O_NONBLOCK):
            raise OSError(ctypes.get_errno(), f"unloading {NAME}")


def load_module(path: Path, parameters: str = "") -> None:
    """Load an uncompressed module. Raises OSError, FileExistsError if it has been loaded."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.syscall(_SYS_FINIT_MODULE, fd, parameters.encode(), 0):
            raise OSError(ctypes.get_errno(), f"loading {path.name}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
