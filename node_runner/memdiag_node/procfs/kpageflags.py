"""What each page frame is, from /proc/kpageflags (kernel: fs/proc/page.c, Documentation/admin-guide/mm/pagemap.rst)."""

import os
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.resource import Resource

_ENTRY_BYTES = 8
# Bit numbers: kernel, include/uapi/linux/kernel-page-flags.h. Stable, unlike the kernel's own page flags.
_LOCKED, _UPTODATE, _LRU, _SLAB, _WRITEBACK, _BUDDY, _ANON = 0, 3, 5, 7, 8, 10, 12
_SWAPCACHE, _SWAPBACKED, _HUGE, _UNEVICTABLE, _OFFLINE, _ZERO, _PGTABLE = 13, 14, 17, 18, 23, 24, 26
_HEAD, _TAIL, _HWPOISON, _NOPAGE, _RESERVED = 15, 16, 19, 20, 32


class FrameKind(IntEnum):
    """What a frame is used for, as far as its flags tell."""

    DIRECT = 0
    """No flag that tells: taken straight from the buddy allocator."""
    FREE = 1
    SLAB = 2
    PAGE_TABLES = 3
    HUGETLB = 4
    BALLOON = 5
    HUGE_ZERO_PAGE = 6
    USER_MEMORY = 7
    """Anonymous memory, shared memory or file cache."""


def _mask(*bits: int) -> np.uint64:
    return np.uint64(sum(1 << bit for bit in bits))


# The first that matches counts: slab and page tables reuse the fields that make other frames look anonymous. Being
# mapped (MMAP) or dirty proves nothing: packet rings and perf buffers are kernel memory that user space maps.
_RULES = (
    (FrameKind.FREE, _mask(_BUDDY)),
    (FrameKind.SLAB, _mask(_SLAB)),
    (FrameKind.PAGE_TABLES, _mask(_PGTABLE)),
    (FrameKind.HUGETLB, _mask(_HUGE)),
    (FrameKind.BALLOON, _mask(_OFFLINE)),
    (FrameKind.HUGE_ZERO_PAGE, _mask(_ZERO)),
    (
        FrameKind.USER_MEMORY,
        _mask(_ANON, _LRU, _UNEVICTABLE, _SWAPBACKED, _SWAPCACHE, _UPTODATE, _WRITEBACK, _LOCKED),
    ),
)

_NOT_DIRECT = np.bitwise_or.reduce([mask for _, mask in _RULES]) | _mask(_HWPOISON, _NOPAGE, _RESERVED)


def classify(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """The FrameKind of each frame, from its flags."""
    kinds = np.zeros(len(flags), np.uint8)
    for kind, mask in reversed(_RULES):
        kinds[(flags & mask) != 0] = kind
    return kinds


def is_anonymous(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each frame is anonymous user memory."""
    found: npt.NDArray[np.bool_] = (flags & _mask(_ANON, _SLAB, _BUDDY)) == _mask(_ANON)
    return found


def is_direct(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each frame is there, in use, and of FrameKind DIRECT.

    A single frame of that kind may also be one of vmalloc, of per-CPU memory, of a per-CPU free list, or a hole.
    """
    found: npt.NDArray[np.bool_] = (flags & _NOT_DIRECT) == 0
    return found


def is_head(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each frame is the first of a compound block: of one allocated as a whole (__GFP_COMP)."""
    found: npt.NDArray[np.bool_] = (flags & _mask(_HEAD)) != 0
    return found


def is_tail(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each frame belongs to a compound block and is not its first."""
    found: npt.NDArray[np.bool_] = (flags & _mask(_TAIL)) != 0
    return found


class FrameTable(Resource):
    """A file of /proc with 64 bits for each frame: kpageflags, or kpagecgroup (inode of the cgroup that is charged)."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when there is no such file or it may not be read."""
        with self._opening() as parts:
            self._file = parts.enter_context(path.open("rb", buffering=0))

    def read(self, first_frame: int, frames: int) -> npt.NDArray[np.uint64]:
        """The entries of `frames` frames, fewer at the end of memory."""
        parts: list[bytes] = []
        position, end = first_frame * _ENTRY_BYTES, (first_frame + frames) * _ENTRY_BYTES
        while position < end:
            part = os.pread(self._file.fileno(), end - position, position)
            if not part:
                break
            parts.append(part)
            position += len(part)
        data = b"".join(parts)
        return np.frombuffer(data, "<u8", count=len(data) // _ENTRY_BYTES)


def open_frame_table(path: Path, files: ExitStack) -> FrameTable | None:
    """The table at `path`, closed with `files`; None where the kernel does not have it, or does not show it."""
    try:
        return files.enter_context(FrameTable(path))
    except OSError:
        return None
