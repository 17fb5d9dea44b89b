"""Use of each page frame, from /proc/kpageflags (kernel: fs/proc/page.c, Documentation/admin-guide/mm/pagemap.rst)."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.resource import Resource

_ENTRY_BYTES = 8
_RUN_FRAMES = 1 << 10
# Bit numbers: kernel, include/uapi/linux/kernel-page-flags.h. Stable, unlike the kernel's own page flags.
_LOCKED, _UPTODATE, _LRU, _ACTIVE, _SLAB, _WRITEBACK, _BUDDY, _ANON = 0, 3, 5, 6, 7, 8, 10, 12
_SWAPCACHE, _SWAPBACKED, _HUGE, _UNEVICTABLE, _OFFLINE, _ZERO, _PGTABLE = 13, 14, 17, 18, 23, 24, 26
_HEAD, _TAIL, _HWPOISON, _NOPAGE, _THP, _RESERVED = 15, 16, 19, 20, 22, 32


class FrameKind(IntEnum):
    """The use of a frame, as far as its flags show it."""

    DIRECT = 0
    """No identifying flag: allocated directly from the buddy allocator."""
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


# The first match counts: slab and page tables reuse fields that make other frames look anonymous. MMAP and DIRTY prove
# nothing: packet rings and perf buffers are kernel memory that user space maps.
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
    """Return the FrameKind of each frame, from its flags."""
    kinds = np.zeros(len(flags), np.uint8)
    for kind, mask in reversed(_RULES):
        kinds[(flags & mask) != 0] = kind
    return kinds


def is_anonymous(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return whether each frame is anonymous user memory."""
    found: npt.NDArray[np.bool_] = (flags & _mask(_ANON, _SLAB, _BUDDY)) == _mask(_ANON)
    return found


class FrameUse(IntEnum):
    """What user memory is, as far as the flags show it."""

    NONE = 0
    """No user memory."""
    ANONYMOUS = 1
    FILE = 2
    """Cache of a file or of a block device, on no active list."""
    ACTIVE_FILE = 3
    SHMEM = 4
    """tmpfs, memfd, System V and shared anonymous memory."""
    HUGETLB = 5


# Bits 5 to 20 decide the use: 16 bits, so that one look-up in a small table gives it.
_USE_SHIFT, _USE_BITS = 5, 16
_USED_OTHERWISE = _mask(_SLAB, _BUDDY)


def _uses_by_bits() -> npt.NDArray[np.uint8]:
    """Return the use for every value of those bits; later lines take precedence.

    SWAPBACKED distinguishes shmem from the cache of files. Anonymous memory may lack it (MADV_FREE).
    """
    flags = np.arange(1 << _USE_BITS, dtype=np.uint64) << np.uint64(_USE_SHIFT)
    on_list = (flags & _mask(_LRU, _UNEVICTABLE)) != 0
    uses = np.zeros(len(flags), np.uint8)
    uses[on_list] = FrameUse.FILE
    uses[on_list & ((flags & _mask(_ACTIVE)) != 0)] = FrameUse.ACTIVE_FILE
    uses[on_list & ((flags & _mask(_SWAPBACKED)) != 0)] = FrameUse.SHMEM
    uses[(flags & _mask(_ANON)) != 0] = FrameUse.ANONYMOUS
    uses[(flags & _mask(_HUGE)) != 0] = FrameUse.HUGETLB
    uses[(flags & _USED_OTHERWISE) != 0] = FrameUse.NONE
    return uses


_USES = _uses_by_bits()


def frame_uses(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Return the FrameUse of each frame, from its own flags: some kernels mark tails of a block less than its head.

    With the multi-generational LRU, frames on its lists have no ACTIVE flag: all of the cache is FILE then.
    """
    uses: npt.NDArray[np.uint8] = _USES[((flags >> np.uint64(_USE_SHIFT)) & np.uint64((1 << _USE_BITS) - 1))]
    uses[(flags & _mask(_PGTABLE)) != 0] = FrameUse.NONE
    return uses


def is_slab(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return whether each frame belongs to a slab. Some kernels mark only the first frame of a slab."""
    found: npt.NDArray[np.bool_] = (flags & _mask(_SLAB)) != 0
    return found


def is_slab_head(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return whether each frame is the first of a slab."""
    found: npt.NDArray[np.bool_] = (flags & _mask(_SLAB, _TAIL)) == _mask(_SLAB)
    return found


def is_direct(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return whether each frame exists, is in use, and is of FrameKind DIRECT.

    A single frame of that kind may also belong to vmalloc, per-CPU memory or a per-CPU free list, or be a hole.
    """
    found: npt.NDArray[np.bool_] = (flags & _NOT_DIRECT) == 0
    return found


def is_head(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return whether each frame is the first of a compound block, which is allocated as a whole (__GFP_COMP)."""
    found: npt.NDArray[np.bool_] = (flags & _mask(_HEAD)) != 0
    return found


def is_tail(flags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return whether each frame belongs to a compound block and is not its first."""
    found: npt.NDArray[np.bool_] = (flags & _mask(_TAIL)) != 0
    return found


def is_huge_anonymous_head(first: npt.NDArray[np.uint64], last: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return whether each block is a transparent huge page of a process, by its first and its last frame."""
    starts = (first & _mask(_HEAD, _THP, _ANON, _ZERO, _HWPOISON, _BUDDY, _SLAB)) == _mask(_HEAD, _THP, _ANON)
    found: npt.NDArray[np.bool_] = starts & ((last & _mask(_TAIL, _THP)) == _mask(_TAIL, _THP))
    return found


class FrameTable(Resource):
    """A file of /proc with 64 bits for each frame: kpageflags, or kpagecgroup (inode of the cgroup that is charged)."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError if it does not exist or cannot be read."""
        with self._opening() as parts:
            self._file = parts.enter_context(path.open("rb", buffering=0))

    def read(self, first_frame: int, frames: int) -> npt.NDArray[np.uint64]:
        """Return the entries of `frames` frames, fewer at the end of memory."""
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


ReadFrames = Callable[[int, int], npt.NDArray[np.uint64]]
"""Reads the entries of a table, as FrameTable.read does."""


def read_runs(wanted: npt.NDArray[np.bool_], base: int, read: ReadFrames) -> npt.NDArray[np.uint64]:
    """Read the entry of each frame from `base` on. Entries are 0 if no frame nearby is wanted."""
    values = np.zeros(len(wanted), np.uint64)
    active = np.logical_or.reduceat(wanted, np.arange(0, len(wanted), _RUN_FRAMES))
    edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False])).astype(np.int8)))
    for first, last in edges.reshape(-1, 2).tolist():
        start, end = first * _RUN_FRAMES, min(last * _RUN_FRAMES, len(wanted))
        part = read(base + start, end - start)
        values[start : start + len(part)] = part
    return values


def open_frame_table(path: Path, files: ExitStack) -> FrameTable | None:
    """Open the table at `path`, to be closed with `files`. None if the kernel does not have or show it."""
    try:
        return files.enter_context(FrameTable(path))
    except OSError:
        return None
