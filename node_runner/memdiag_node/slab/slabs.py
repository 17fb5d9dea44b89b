"""Every slab of the node: which frames, of which cache, with how many objects.

The frames come from /proc/kpageflags, the rest from the struct page that heads each slab. On a machine that is too
large for the time or the space, a random sample of memory is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.kpageflags import ReadFrames, is_slab_head
from memdiag_node.procfs.memory_map import FrameRange, frames_in

MAX_SLABS = 1 << 20
"""As many as are kept, of 40 bytes each. A node of 24 GiB that has nothing but slab has more; see `sampled_share`."""
_PIECE_FRAMES = 1 << 15  # 128 MiB of memory; a section of x86-64
_SEED = 1
_IN_USE_MASK, _OBJECTS_SHIFT, _OBJECTS_MASK = 0xFFFF, 16, 0x7FFF  # mm/slab.h, struct slab
_MAX_ORDER = 10

SLAB_DTYPE = np.dtype(
    [
        ("frame", "<u8"),  # the first one
        ("freelist", "<u8"),  # its first free object, 0 for none; of a CPU's current slab only what others freed
        ("cache", "<i4"),  # number of the cache
        ("piece", "<i4"),  # number of the piece of memory
        ("objects", "<u2"),
        ("in_use", "<u2"),  # in a CPU's current slab all objects count as in use
        ("order", "u1"),
    ]
)


@dataclass(frozen=True, slots=True)
class Slabs:
    """The slabs that were read."""

    table: npt.NDArray[np.void]
    """SLAB_DTYPE, by frame."""
    pieces: int
    """Pieces of memory that were read: all of the same size, except where memory ends."""
    sampled_share: float
    """Of the frames of memory that were read; below 1, the pieces are a random sample."""


def read_slabs(
    memory: KernelMemory,
    at: Mapping[str, int],
    cache_addresses: npt.NDArray[np.uint64],
    *,
    first_page: int,
    ranges: Sequence[FrameRange],
    read_flags: ReadFrames,
    late: Callable[[], bool] = lambda: False,
    max_slabs: int = MAX_SLABS,
) -> Slabs:
    """Every slab in `ranges` whose cache is one of `cache_addresses`, which ascend.

    `first_page` is the address of frame 0's struct page. `late` ends the search before the next piece, and
    `max_slabs` after it.
    """
    pieces = [
        (first, min(_PIECE_FRAMES, one.end - first))
        for one in ranges
        for first in range(one.first, one.end, _PIECE_FRAMES)
    ]
    found: list[npt.NDArray[np.void]] = []
    count = scanned = read = 0
    # In random order, so that what was read is a random sample whenever the search ends.
    order = np.random.default_rng(_SEED).permutation(len(pieces)).tolist()
    for number in order:
        base, frames = pieces[number]
        heads = np.flatnonzero(is_slab_head(read_flags(base, frames))).astype("<u8") + np.uint64(base)
        table = _describe(memory, at, heads, cache_addresses, first_page=first_page)
        table["piece"] = number
        found.append(table)
        count, scanned, read = count + len(table), scanned + frames, read + 1
        if count >= max_slabs or late():
            break
    table = np.concatenate(found) if found else np.empty(0, SLAB_DTYPE)
    table = table[np.argsort(table["frame"])]
    return Slabs(table, read, scanned / max(1, frames_in(ranges)))


def _describe(
    memory: KernelMemory,
    at: Mapping[str, int],
    frames: npt.NDArray[np.uint64],
    cache_addresses: npt.NDArray[np.uint64],
    *,
    first_page: int,
) -> npt.NDArray[np.void]:
    """The slabs that start at these frames, without those that are gone meanwhile."""
    pages = frames * np.uint64(at["STRUCT_PAGE_BYTES"]) + np.uint64(first_page)
    names = ("SLAB_CACHE", "SLAB_FREELIST", "SLAB_COUNTERS", "PAGE_FLAGS", "PAGE_ORDER")
    cache, freelist, counters, flags, order = (memory.peek(pages + np.uint64(at[name])) for name in names)
    number = np.minimum(np.searchsorted(cache_addresses, cache), max(0, len(cache_addresses) - 1))
    is_known = cache_addresses[number] == cache
    table = np.zeros(int(is_known.sum()), SLAB_DTYPE)
    table["frame"], table["freelist"], table["cache"] = frames[is_known], freelist[is_known], number[is_known]
    counters = counters[is_known]
    table["in_use"] = counters & np.uint64(_IN_USE_MASK)
    table["objects"] = counters >> np.uint64(_OBJECTS_SHIFT) & np.uint64(_OBJECTS_MASK)
    is_compound = flags[is_known] >> np.uint64(at["PG_HEAD"]) & np.uint64(1)
    table["order"] = np.minimum((order[is_known] & np.uint64(0xFF)) * is_compound, _MAX_ORDER)
    return table
