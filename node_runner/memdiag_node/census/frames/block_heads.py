"""Frames that no flag identifies: the first of compound blocks, and single ones; which are large kmalloc blocks.

kmalloc takes blocks above two pages from the buddy allocator. The kernel counts them as SUnreclaim, and marks them
since Linux 6.15 (PGTY_large_kmalloc).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.procfs.kpageflags import ReadFrames, is_direct, is_head, is_tail
from memdiag_node.procfs.memory_map import FrameRange
from memdiag_node.slab.census import SlabCensus
from memdiag_node.slab.slabs import pieces_of

_MAX_HEADS = 1 << 20
_MAX_ORDER = 10
_SMALLEST_FRAMES = 4  # a large kmalloc block has more than two pages
_FIELDS: tuple[Field, ...] = (("PAGE_TYPE", "page", "page_type"),)
PAGE_TYPE_SHIFT = 24  # include/linux/page-flags.h, since Linux 6.12
_U32 = 0xFFFFFFFF


class BlockHeads:
    """Collects heads of blocks, and single frames, while a census reads /proc/kpageflags through `read`."""

    def __init__(self, read_flags: ReadFrames) -> None:
        self._read_flags = read_flags
        self._found: dict[int, npt.NDArray[np.uint64]] = {}
        self._count = 0
        self._singles: dict[int, npt.NDArray[np.uint64]] = {}
        self._single_count = 0

    def read(self, first_frame: int, frames: int) -> npt.NDArray[np.uint64]:
        """Read the flags, and keep which frames are of FrameKind DIRECT and the first of a compound block."""
        flags = self._read_flags(first_frame, frames)
        direct = is_direct(flags)
        if self._count < _MAX_HEADS:
            heads = np.flatnonzero(direct & is_head(flags)).astype("<u8") + np.uint64(first_frame)
            self._found[first_frame] = heads[: _MAX_HEADS - self._count]
            self._count += len(self._found[first_frame])
        if self._single_count < _MAX_HEADS:
            singles = np.flatnonzero(direct & ~is_head(flags) & ~is_tail(flags)).astype("<u8") + np.uint64(first_frame)
            self._singles[first_frame] = singles[: _MAX_HEADS - self._single_count]
            self._single_count += len(self._singles[first_frame])
        return flags

    @property
    def singles(self) -> npt.NDArray[np.uint64]:
        """The single frames that were seen, ascending, each once."""
        return _ascending(self._singles)

    @property
    def frames(self) -> npt.NDArray[np.uint64]:
        """The heads that were seen, ascending, each once; in the extreme, a million of them."""
        return _ascending(self._found)


def _ascending(pieces: Mapping[int, npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """All frames of the pieces, by first frame of a piece; each piece ascends."""
    return np.concatenate([np.empty(0, "<u8"), *(pieces[first] for first in sorted(pieces))])


def large_kmalloc_layout(btf: Btf) -> dict[str, int]:
    """What `large_kmalloc_bytes` needs; empty if this kernel does not mark the blocks."""
    if not btf.has_enumerator("PGTY_large_kmalloc"):
        return {}
    found = optional_offsets(btf, "HAS_LARGE_KMALLOC", _FIELDS)
    return found | {"TYPE_LARGE_KMALLOC": btf.enum_value("PGTY_large_kmalloc")} if found else {}


def large_kmalloc_bytes(census: SlabCensus, at: Mapping[str, int], ranges: Sequence[FrameRange]) -> int | None:
    """Bytes of large kmalloc blocks in the memory that the census read, not scaled. None if they are not marked.

    `ranges` are those of the census.
    """
    if "HAS_LARGE_KMALLOC" not in at:
        return None
    pieces, size_bytes = pieces_of(ranges), 0
    for number in census.slabs.numbers.tolist():
        base, frames = pieces[number]
        aligned = -(-base // _SMALLEST_FRAMES) * _SMALLEST_FRAMES  # as blocks are
        heads = np.arange(aligned, base + frames, _SMALLEST_FRAMES, dtype="<u8")
        pages = heads * np.uint64(census.at["STRUCT_PAGE_BYTES"]) + np.uint64(census.first_page)
        types = census.memory.peek(pages + np.uint64(at["PAGE_TYPE"])) & np.uint64(_U32)
        found = pages[types >> np.uint64(PAGE_TYPE_SHIFT) == np.uint64(at["TYPE_LARGE_KMALLOC"])]
        if len(found):
            size_bytes += int(np.left_shift(1, block_orders(census, found)).sum()) << census.at["PAGE_SHIFT"]
    return size_bytes


def block_orders(census: SlabCensus, pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The order of each block, by the struct page of its head; 0 for a single frame."""
    at = census.at
    is_compound = census.memory.peek(pages + np.uint64(at["PAGE_FLAGS"])) >> np.uint64(at["PG_HEAD"]) & np.uint64(1)
    orders = census.memory.peek(pages + np.uint64(at["PAGE_ORDER"])) & np.uint64(0xFF)
    return np.minimum(orders * is_compound, np.uint64(_MAX_ORDER)).astype(np.int64)
