"""Every slab of the node: which frames, of which cache, with how many objects.

On a machine that is too large for the time or the space, a random sample of memory is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import WordReader
from memdiag_node.procfs.kpageflags import ReadFrames, is_slab_head
from memdiag_node.procfs.memory_map import FrameRange, frames_in
from memdiag_node.slab.estimate import Estimate, estimate_total

MAX_SLABS = 1 << 20
"""As many as are kept, of 29 bytes each. A node of 24 GiB that has nothing but slab has more; see `sampled_share`."""
PIECE_FRAMES = 1 << 15
"""128 MiB of memory; a section of x86-64."""
_SEED = 1
_IN_USE_MASK, _OBJECTS_SHIFT, _OBJECTS_MASK = 0xFFFF, 16, 0x7FFF  # mm/slab.h, struct slab
MAX_ORDER = 10

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

ReadPiece = Callable[[int, int], npt.NDArray[np.void]]
"""The slabs that start in (first frame, number of frames), as SLAB_DTYPE by frame, whose cache is known."""


@dataclass(frozen=True, slots=True)
class Slabs:
    """The slabs that were read."""

    table: npt.NDArray[np.void]
    """SLAB_DTYPE, by frame."""
    guarded: npt.NDArray[np.void]
    """Pages of KFENCE that have or had an object, likewise; they are not in `table` (see `guarded.py`)."""
    pieces: int
    """Pieces of memory that were read: all of the same size, except where memory ends."""
    sampled_share: float
    """Of the frames of memory that were read; below 1, the pieces are a random sample."""
    numbers: npt.NDArray[np.int64]
    """The number of each piece that was read, ascending: `piece` in the table."""
    frames: npt.NDArray[np.int64]
    """The frames of each piece that was read."""
    all_pieces: int
    all_frames: int

    def estimate(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Estimate:
        """The total on the node of a figure that was counted in the slabs with these indices of `table`."""
        at_piece = np.searchsorted(self.numbers, self.table["piece"][rows])
        by_piece = np.bincount(at_piece, values, len(self.numbers)).astype(np.float64)
        return estimate_total(by_piece, self.frames, all_pieces=self.all_pieces, all_frames=self.all_frames)


def pieces_of(ranges: Sequence[FrameRange]) -> list[tuple[int, int]]:
    """The pieces of memory by their numbers: first frame, number of frames."""
    return [
        (first, min(PIECE_FRAMES, one.end - first))
        for one in ranges
        for first in range(one.first, one.end, PIECE_FRAMES)
    ]


def read_slabs(
    read_piece: ReadPiece,
    strides: npt.NDArray[np.uint64],
    *,
    ranges: Sequence[FrameRange],
    linear_base: int,
    page_shift: int,
    late: Callable[[], bool] = lambda: False,
    max_slabs: int = MAX_SLABS,
) -> Slabs:
    """Every slab in `ranges`. `strides` are those of the caches, `linear_base` is the address of frame 0.

    `late` ends the search before the next piece, and so does a piece that would exceed `max_slabs`. The pieces are read
    in random order, so that what was read is a random sample whenever the search ends.
    """
    pieces = pieces_of(ranges)
    found: dict[int, npt.NDArray[np.void]] = {}
    count = 0
    for number in np.random.default_rng(_SEED).permutation(len(pieces)).tolist():
        table = read_piece(*pieces[number])
        table["piece"] = number
        if found and count + len(table) > max_slabs:
            break
        found[number] = table
        count += len(table)
        if late():
            break
    numbers = sorted(found)
    table = np.concatenate([np.empty(0, SLAB_DTYPE), *(found.pop(number) for number in numbers)])
    frames = np.array([pieces[number][1] for number in numbers], np.int64)
    is_guarded = is_guarded_page(table, strides, linear_base, page_shift)
    is_kept = is_consistent(table, strides, page_shift) & ~is_guarded
    return Slabs(
        table if is_kept.all() else table[is_kept],
        table[is_guarded],
        pieces=len(numbers),
        sampled_share=int(frames.sum()) / max(1, frames_in(ranges)),
        numbers=np.array(numbers, np.int64),
        frames=frames,
        all_pieces=len(pieces),
        all_frames=frames_in(ranges),
    )


def is_guarded_page(
    table: npt.NDArray[np.void], strides: npt.NDArray[np.uint64], linear_base: int, page_shift: int
) -> npt.NDArray[np.bool_]:
    """Whether each is a page of KFENCE: one object that is not in use, and not on the list either.

    KFENCE does not set the list, which may be anything. It may even lead to an object in the page that was freed before
    (seen in Linux 7.2, in caches with slab_debug): then the cache must be one of more, or larger, objects.
    """
    if not len(table):
        return np.empty(0, np.bool_)
    start = (table["frame"] << np.uint64(page_shift)) + np.uint64(linear_base)
    slab_bytes = np.left_shift(np.uint64(1) << np.uint64(page_shift), table["order"].astype("<u8"))
    result: npt.NDArray[np.bool_] = (table["objects"] == 1) & (table["in_use"] == 0)
    result &= (table["freelist"] - start >= slab_bytes) | (slab_bytes // strides[table["cache"]] != 1)
    return result


def is_consistent(
    table: npt.NDArray[np.void], strides: npt.NDArray[np.uint64], page_shift: int
) -> npt.NDArray[np.bool_]:
    """Whether each slab can have as many objects as it says: not if it is freed, or being made."""
    if not len(table):
        return np.empty(0, np.bool_)
    object_bytes = table["objects"] * strides[table["cache"]]
    slab_bytes = np.left_shift(np.uint64(1) << np.uint64(page_shift), table["order"].astype("<u8"))
    result: npt.NDArray[np.bool_] = (table["objects"] > 0) & (table["in_use"] <= table["objects"])
    result &= object_bytes <= slab_bytes
    return result


def piece_reader(
    memory: WordReader,
    at: Mapping[str, int],
    cache_addresses: npt.NDArray[np.uint64],
    *,
    first_page: int,
    read_flags: ReadFrames,
) -> ReadPiece:
    """Finds slabs by /proc/kpageflags. `first_page` is the address of frame 0's struct page; the caches ascend."""

    def read_piece(first: int, frames: int) -> npt.NDArray[np.void]:
        heads = np.flatnonzero(is_slab_head(read_flags(first, frames))).astype("<u8") + np.uint64(first)
        return read_heads(memory, at, heads, cache_addresses=cache_addresses, first_page=first_page)

    return read_piece


def read_heads(
    memory: WordReader,
    at: Mapping[str, int],
    frames: npt.NDArray[np.uint64],
    *,
    cache_addresses: npt.NDArray[np.uint64],
    first_page: int,
) -> npt.NDArray[np.void]:
    """The slabs that these frames head, as SLAB_DTYPE, without those of unknown caches. See `piece_reader`."""
    pages = frames * np.uint64(at["STRUCT_PAGE_BYTES"]) + np.uint64(first_page)
    names = ("SLAB_CACHE", "SLAB_FREELIST", "SLAB_COUNTERS", "PAGE_FLAGS", "PAGE_ORDER")
    cache, freelist, counters, flags, order = (memory.peek(pages + np.uint64(at[name])) for name in names)
    is_compound = flags >> np.uint64(at["PG_HEAD"]) & np.uint64(1)
    order = (order & np.uint64(0xFF)) * is_compound
    return described(frames, cache, freelist, counters, order, cache_addresses=cache_addresses)


def described(
    frames: npt.NDArray[np.uint64],
    cache: npt.NDArray[np.uint64],
    freelist: npt.NDArray[np.uint64],
    counters: npt.NDArray[np.uint64],
    order: npt.NDArray[np.uint64],
    *,
    cache_addresses: npt.NDArray[np.uint64],
) -> npt.NDArray[np.void]:
    """The slabs with these fields as SLAB_DTYPE, without those whose cache is not one of `cache_addresses`."""
    number = np.minimum(np.searchsorted(cache_addresses, cache), max(0, len(cache_addresses) - 1))
    is_known = cache_addresses[number] == cache
    table = np.zeros(int(is_known.sum()), SLAB_DTYPE)
    table["frame"], table["freelist"], table["cache"] = frames[is_known], freelist[is_known], number[is_known]
    table["in_use"], table["objects"] = counts(counters[is_known])
    table["order"] = np.minimum(order[is_known], MAX_ORDER)
    return table


def counts(counters: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The objects in use and all objects of slabs with these `counters`."""
    return counters & np.uint64(_IN_USE_MASK), counters >> np.uint64(_OBJECTS_SHIFT) & np.uint64(_OBJECTS_MASK)
