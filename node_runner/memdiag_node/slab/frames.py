"""The slabs that contain given page frames: only the struct pages of these frames are read, not all of memory."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.page_array import block_heads
from memdiag_node.procfs.kpageflags import ReadFrames, is_slab_head
from memdiag_node.slab.access import SlabAccess
from memdiag_node.slab.slabs import read_heads

_U32, _TYPE_SHIFT = 0xFFFFFFFF, 24  # include/linux/page-flags.h, since Linux 6.12
_RUN_FRAMES = 1 << 6
"""As many flags are read at once: neighbours are often wanted too."""


class FrameSlabs(NamedTuple):
    """The slabs of some frames."""

    table: npt.NDArray[np.void]
    """SLAB_DTYPE, by frame, each slab once. Pages of KFENCE are among them (see `guarded.py`)."""
    numbers: npt.NDArray[np.int64]
    """Of each frame the index of its slab in `table`; -1 if it is in no slab of a known cache now."""
    is_other: npt.NDArray[np.bool_]
    """Whether each frame is memory of another kind than slab now, or free."""


def slabs_of_frames(
    access: SlabAccess, frames: npt.NDArray[np.uint64], *, frame_count: int, read_flags: ReadFrames
) -> FrameSlabs:
    """The slabs of known caches that these frames are in, if they are below `frame_count`, the end of memory."""
    unique, inverse = np.unique(frames, return_inverse=True)
    heads = _head_frames(access, unique, frame_count)
    candidates = np.unique(heads[heads < np.uint64(frame_count)])
    is_marked = _is_marked(access, candidates, read_flags)
    is_other = np.isin(heads, candidates[~is_marked])[inverse]
    addresses, first_page = access.addresses, access.first_page
    slabs = candidates[is_marked]
    table = read_heads(access.memory, access.at, slabs, cache_addresses=addresses, first_page=first_page)
    table = table[_is_marked(access, table["frame"], read_flags)]  # not freed in between
    if not len(table):
        return FrameSlabs(table, np.full(len(frames), -1, np.int64), is_other)
    numbers = np.minimum(np.searchsorted(table["frame"], heads), len(table) - 1)
    rows = table[numbers]
    is_inside = rows["frame"] == heads
    is_inside &= unique - heads < np.left_shift(np.uint64(1), rows["order"].astype("<u8"))
    return FrameSlabs(table, np.where(is_inside, numbers, -1)[inverse], is_other)


def _head_frames(access: SlabAccess, frames: npt.NDArray[np.uint64], frame_count: int) -> npt.NDArray[np.uint64]:
    """The first frame of the block of each frame; `frame_count` or more for none."""
    heads = np.full(len(frames), np.uint64(frame_count), "<u8")
    inside = frames < np.uint64(frame_count)
    pages = block_heads(access.memory, access.at, access.pages(frames[inside]))
    heads[inside] = (pages - np.uint64(access.first_page)) // np.uint64(access.at["STRUCT_PAGE_BYTES"])
    return heads


def _is_marked(access: SlabAccess, frames: npt.NDArray[np.uint64], read_flags: ReadFrames) -> npt.NDArray[np.bool_]:
    """Whether each frame is marked as the head of a slab: a page that was freed may refer to its last cache still.

    As in slabs.bpf.c. Where the kernel's page types are not known, /proc/kpageflags is read.
    """
    at, memory, pages = access.at, access.memory, access.pages(frames)
    result = np.zeros(len(frames), np.bool_)
    if "SLAB_TYPE" in at:
        types = memory.peek(pages + np.uint64(at["PAGE_TYPE"])) & np.uint64(_U32)
        result[:] = types >> np.uint64(_TYPE_SHIFT) == np.uint64(at["SLAB_TYPE"])
        return result
    if "SLAB_BIT" in at:
        flags = memory.peek(pages + np.uint64(at["PAGE_FLAGS"]))
        result[:] = flags >> np.uint64(at["SLAB_BIT"]) & np.uint64(1) != 0
        return result
    runs, starts = np.unique(frames // np.uint64(_RUN_FRAMES), return_index=True)
    bounds = [*starts.tolist(), len(frames)]
    for run, first, end in zip(runs.tolist(), bounds[:-1], bounds[1:], strict=True):
        flags = read_flags(run * _RUN_FRAMES, _RUN_FRAMES)
        within = (frames[first:end] - np.uint64(run * _RUN_FRAMES)).astype(np.int64)
        is_known = within < len(flags)
        result[first:end][is_known] = is_slab_head(flags[within[is_known]])
    return result
