"""What the frame table of the trace holds at the end: blocks that are outstanding, frames by class (pure)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_node.procfs.kpageflags import FrameKind, ReadFrames, classify, read_runs
from memdiag_node.trace.pages import tables
from memdiag_node.trace.pages.frame_layout import FrameLayout
from memdiag_node.trace.pages.tables import CLASS_MASK, FIRST_CLASS

OUT_DTYPE = np.dtype([("frame", "<u8"), ("number", "<u2"), ("frames", "<u2")])
_SCAN_FRAMES = 1 << 18
MAX_BLOCKS = 1 << 19


@dataclass(slots=True)
class FrameTally:
    """The frames that were still outstanding when the trace ended."""

    by_kind: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(FrameKind), tables.CLASSES), np.int64))
    """Frames by FrameKind and class number."""
    blocks: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(tables.CLASSES, np.int64))
    """Blocks of direct kernel memory by class number."""
    parts: list[npt.NDArray[np.void]] = field(default_factory=list)
    """Those blocks: first frame, class number, frames still outstanding."""
    slab_parts: list[npt.NDArray[np.void]] = field(default_factory=list)
    """Blocks of slab memory, likewise."""
    charged: dict[int, int] = field(default_factory=dict)
    """Frames of those blocks by the inode of the memory cgroup that they are charged to."""


def tally_frames(
    frames: npt.NDArray[np.uint16],
    orders: npt.NDArray[np.uint8],
    read_flags: ReadFrames,
    read_charges: ReadFrames | None = None,
    *,
    late: Callable[[], bool] = lambda: False,
    layout: FrameLayout,
) -> FrameTally:
    """Classify every outstanding frame by its use.

    `frames` may change meanwhile, as blocks are freed: it is read before and after the flags, and only a frame that was
    outstanding both times counts, because only then do the flags belong to the traced block. `orders` is by class
    number; `read_flags` and `read_charges` return kpageflags and kpagecgroup of (first frame, number of frames). Once
    `late` returns true, both are skipped, and frames count as if the kernel did not expose their flags. `layout` says
    which frame an entry of `frames` is.
    """
    tally = FrameTally()
    for place, base, count in layout.runs(_SCAN_FRAMES):
        before = np.array(frames[place : place + count])
        if not before.any():
            continue
        is_late = late()
        kinds = np.zeros(len(before), np.uint8) if is_late else classify(read_runs(before != 0, base, read_flags))
        numbers = np.where(frames[place : place + count] == before, before & CLASS_MASK, 0)
        out = np.flatnonzero(numbers)
        cells = kinds[out].astype(np.int64) * tables.CLASSES + numbers[out]
        tally.by_kind += np.bincount(cells, minlength=tally.by_kind.size).reshape(tally.by_kind.shape)
        direct = out[(kinds[out] == FrameKind.DIRECT) & (numbers[out] >= FIRST_CLASS)]
        slab = out[(kinds[out] == FrameKind.SLAB) & (numbers[out] >= FIRST_CLASS)]
        if len(slab):
            tally.slab_parts.append(_blocks(slab + base, numbers[slab], orders))
        if len(direct):
            part = _blocks(direct + base, numbers[direct], orders)
            tally.blocks += np.bincount(part["number"], minlength=tables.CLASSES)
            tally.parts.append(part)
            if read_charges is not None and not is_late:
                _add_charges(tally.charged, part, base, read_runs(before != 0, base, read_charges))
    return tally


def _add_charges(
    charged: dict[int, int], blocks: npt.NDArray[np.void], base: int, charges: npt.NDArray[np.uint64]
) -> None:
    """Only a block's first frame shows the cgroup that the block is charged to."""
    inodes, where = np.unique(charges[blocks["frame"] - base], return_inverse=True)
    frames = np.bincount(where.reshape(-1), blocks["frames"])
    for inode, count in zip(inodes.tolist(), frames.tolist(), strict=True):
        if inode:
            charged[inode] = charged.get(inode, 0) + int(count)


def frames_by_class(frames: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """The number of outstanding frames by class number; only of classes that blocks were recorded in."""
    counts = np.zeros(tables.CLASSES, np.int64)
    for start in range(0, len(frames), _SCAN_FRAMES):
        part = frames[start : start + _SCAN_FRAMES]
        counts += np.bincount(part[part >= FIRST_CLASS] & CLASS_MASK, minlength=tables.CLASSES)
    return counts


def _blocks(
    frames: npt.NDArray[np.int64], numbers: npt.NDArray[np.uint16], orders: npt.NDArray[np.uint8]
) -> npt.NDArray[np.void]:
    """Group frames, in ascending order, into the blocks that they were allocated as."""
    order = orders[numbers].astype(np.int64)
    heads = frames >> order << order
    is_first = np.ones(len(frames), bool)
    is_first[1:] = (heads[1:] != heads[:-1]) | (numbers[1:] != numbers[:-1])
    firsts = np.flatnonzero(is_first)
    blocks = np.zeros(len(firsts), OUT_DTYPE)
    blocks["frame"] = heads[firsts]
    blocks["number"] = numbers[firsts]
    blocks["frames"] = np.diff(np.append(firsts, len(frames)))
    return blocks
