"""Huge pages of the pool that two processes map: each counts them, and they exist once."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from planted.child import Truth, held

HUGE_PAGE_BYTES = 2 << 20
_MAP_HUGETLB = 0x40000


@dataclass(frozen=True, slots=True)
class SharedHugePages:
    """A mapping of the pool, and the processes that have touched all of it."""

    pids: tuple[int, int]
    size_bytes: int


@contextlib.contextmanager
def shared_huge_pages(pages: int) -> Iterator[SharedHugePages]:
    """So many pages of 2 MiB, which the pool must have."""
    with held(_shared, pages) as child:
        yield SharedHugePages((child.pid, child.truth["fork"]), pages * HUGE_PAGE_BYTES)


def _shared(kept: ExitStack, pages: int) -> Truth:
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
    memory = kept.enter_context(mmap.mmap(-1, pages * HUGE_PAGE_BYTES, flags=flags))
    _touch(memory)
    touched, is_touched = os.pipe()
    ended, is_ended = os.pipe()
    fork = os.fork()
    if not fork:
        os.close(is_ended)
        _touch(memory)
        os.write(is_touched, b".")
        os.read(ended, 1)  # until the other process closes its end, however it ends
        os._exit(0)
    kept.callback(os.waitpid, fork, 0)
    kept.callback(os.close, is_ended)
    os.read(touched, 1)
    return {"fork": fork}


def _touch(memory: mmap.mmap) -> None:
    for position in range(0, len(memory), HUGE_PAGE_BYTES):
        memory[position] = 1
