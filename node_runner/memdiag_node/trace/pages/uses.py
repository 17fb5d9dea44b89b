"""What the outstanding frames of each class are used for: direct kernel memory, page tables, slabs by cache (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.procfs.kpageflags import FrameKind
from memdiag_node.slab.cache import Cache
from memdiag_node.trace import common_tables
from memdiag_node.trace.pages import tables
from memdiag_node.trace.pages.frame_tally import OUT_DTYPE, FrameTally

LISTED = (FrameKind.DIRECT, FrameKind.PAGE_TABLES, FrameKind.SLAB)
"""The kinds of frames whose stacks are listed. All others are user memory, or free by now."""
MAX_LOOKUPS = 1 << 16


@dataclass(frozen=True, slots=True)
class SlabPages:
    """Blocks of slab memory, and their caches. Of many, a sample."""

    blocks: npt.NDArray[np.void]
    """OUT_DTYPE."""
    cache: npt.NDArray[np.int32]
    """Of each block: the index in `caches`, -1 if it is not known."""
    caches: Sequence[Cache]


NO_SLAB_PAGES = SlabPages(np.zeros(0, OUT_DTYPE), np.zeros(0, np.int32), ())


@dataclass(frozen=True, slots=True)
class Uses:
    """For each class and use: how much of it is outstanding. All arrays have one value for each."""

    number: npt.NDArray[np.int64]
    """The class number."""
    kind: npt.NDArray[np.int64]
    """FrameKind."""
    cache: npt.NDArray[np.int64]
    """The index in `caches`; -1 for none."""
    frames: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    """The number of blocks that a block represents."""
    caches: Sequence[Cache]


def sampled_slab_blocks(tally: FrameTally) -> npt.NDArray[np.void]:
    """The blocks of slab memory to look up: at most MAX_LOOKUPS, evenly from all."""
    total = sum(len(part) for part in tally.slab_parts)
    stride = -(-total // MAX_LOOKUPS) or 1
    return np.concatenate([np.zeros(0, OUT_DTYPE), *(part[::stride] for part in tally.slab_parts)])


def uses_of(infos: npt.NDArray[np.void], tally: FrameTally, slab: SlabPages) -> Uses:
    """Return the uses of all classes; also of those with nothing outstanding, if their stack has something.

    `infos` is CLASS_INFO_DTYPE by class number.
    """
    key, is_class = infos["key"], infos["allocated_pages"] > 0
    numbers, kinds, caches, frames, weights = [], [], [], [], []
    for kind in LISTED:
        of_class = np.where(is_class, tally.by_kind[kind], 0)
        weight = class_weights(key, of_class, tally.by_kind[kind])
        for cache, part in _by_cache(of_class, slab) if kind is FrameKind.SLAB else [(-1, of_class)]:
            found = np.flatnonzero(part)
            numbers.append(found)
            kinds.append(np.full(len(found), int(kind)))
            caches.append(np.full(len(found), cache))
            frames.append(part[found])
            weights.append(weight[found])
    number, kind_of, cache_of = (np.concatenate(parts).astype(np.int64) for parts in (numbers, kinds, caches))
    frames_of, weight_of = np.concatenate(frames).astype(np.int64), np.concatenate(weights)
    number, others = _with_idle(key["stack"], is_class, number, frames_of)
    kind_of, cache_of = np.append(kind_of, kind_of[others]), np.append(cache_of, cache_of[others])
    frames_of = np.append(frames_of, np.zeros(len(others), np.int64))
    weight_of = np.append(
        weight_of, np.exp2(np.minimum(key["level"][number[len(weight_of) :]], common_tables.MAX_LEVEL))
    )
    blocks = -(-frames_of >> key["order"][number].astype(np.int64))
    is_direct = kind_of == FrameKind.DIRECT
    blocks[is_direct] = tally.blocks[number[is_direct]]
    return Uses(number, kind_of, cache_of, frames_of, blocks, weight_of, slab.caches)


def _by_cache(frames: npt.NDArray[np.int64], slab: SlabPages) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Divide the slab frames of each class among the caches, as in the sample."""
    sampled = np.bincount(slab.blocks["number"], slab.blocks["frames"], tables.CLASSES)
    parts = [(-1, np.where(sampled > 0, 0, frames))]
    scale = np.divide(frames, sampled, out=np.zeros(tables.CLASSES), where=sampled > 0)
    for cache in np.unique(slab.cache).tolist():
        chosen = slab.blocks[slab.cache == cache]
        of_cache = np.bincount(chosen["number"], chosen["frames"], tables.CLASSES) * scale
        parts.append((cache, np.rint(of_cache).astype(np.int64)))
    return parts


def _with_idle(
    stacks: npt.NDArray[np.uint64],
    is_class: npt.NDArray[np.bool_],
    number: npt.NDArray[np.int64],
    frames: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Append the classes whose blocks were all freed, if their stack has others: what they allocated counts.

    Also returns, for each of those, the index in `number` of the largest use of its stack.
    """
    ascending = np.argsort(frames, kind="stable")
    largest = {int(stack): int(index) for stack, index in zip(stacks[number[ascending]], ascending, strict=True)}
    idle = np.flatnonzero(
        is_class & ~np.isin(np.arange(tables.CLASSES), number) & np.isin(stacks, np.array(list(largest), np.uint64))
    )
    return np.append(number, idle), np.array([largest[int(stacks[one])] for one in idle], np.int64)


def class_weights(
    key: npt.NDArray[np.void], frames: npt.NDArray[np.int64], by_class: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The weight of each class. How many frames of each order are in blocks that were not recorded is known."""
    levels = np.minimum(key["level"], common_tables.MAX_LEVEL)
    weights = np.ones(len(key))
    for order in np.unique(key["order"][levels > 0]).tolist():
        is_order = key["order"] == order
        of_order = calibrated_weights(levels[is_order], frames[is_order], int(by_class[tables.CLASS_THINNED + order]))
        weights[is_order] = of_order
    return weights


def calibrated_weights(
    levels: npt.NDArray[np.uint8], frames: npt.NDArray[np.int64], thinned_frames: int
) -> npt.NDArray[np.float64]:
    """The number of blocks that a recorded block of each class represents, itself included.

    One in 2^level was recorded. The number of outstanding frames of the others is known exactly, but not their stacks.
    So the weights are scaled to match that sum, which removes most of the error of the stacks with most of them.
    """
    unrecorded = np.exp2(levels.astype(np.float64)) - 1
    estimated_frames = float((frames * unrecorded).sum())
    factor = thinned_frames / estimated_frames if estimated_frames else 1.0
    return 1 + unrecorded * factor
