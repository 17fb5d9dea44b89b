"""A census of page frames: kernel memory that no flag identifies, by block size and by charged memory cgroup.

One pass over /proc/kpageflags (and /proc/kpagecgroup where frames may be charged), in bounded pieces. It is not a
snapshot: memory that is allocated or freed meanwhile may be counted in part.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_node.procfs.kpageflags import ReadFrames, is_direct, is_head, is_tail, read_runs
from memdiag_node.procfs.memory_map import FrameRange, frames_in

ORDERS = 20
CENSUS_SECONDS = 30.0
"""Time limit of a census. An idle CPU scans 24 GiB a second."""
_PIECE_FRAMES = 1 << 16  # 256 MiB of memory, 512 KiB of flags; no compound block of kernel memory crosses its end


HELD_DTYPE = np.dtype([("frame", "<u8"), ("frames", "<u8")])
"""Frames that are known to be held: first frame, number of frames."""


@dataclass(slots=True)
class ChargedFrames:
    """Frames that one memory cgroup is charged for."""

    single: int = 0
    compound: int = 0
    held: int = 0
    """Of both, in known holders."""


@dataclass(slots=True)
class FrameCensus:
    """Result of the pass: frames of FrameKind DIRECT that are compound, or charged, or both."""

    blocks: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(ORDERS, np.int64))
    """Compound blocks by order."""
    frames: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(ORDERS, np.int64))
    """Frames of those blocks."""
    held_frames: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(ORDERS, np.int64))
    """Of those frames, in known holders."""
    charged: dict[int, ChargedFrames] = field(default_factory=dict)
    """By the inode of the memory cgroup. A removed cgroup has the inode of its nearest remaining ancestor."""
    knows_charges: bool = False
    knows_holders: bool = False
    scanned_share: float = 1.0
    """Of all frames of memory; below 1 when the time ran out."""
    scan_seconds: float = 0.0


def take_census(
    ranges: Sequence[FrameRange],
    read_flags: ReadFrames,
    read_charges: ReadFrames | None = None,
    *,
    held: npt.NDArray[np.void] | None = None,
    late: Callable[[], bool] = lambda: False,
) -> FrameCensus:
    """Scan every frame of `ranges` once, until `late` returns True. It is called before each piece.

    `held` (HELD_DTYPE) are the frames of known holders, None if they are not known.
    """
    census = FrameCensus(knows_charges=read_charges is not None, knows_holders=held is not None)
    holders = np.empty(0, HELD_DTYPE) if held is None else np.sort(held, order="frame")
    started = time.monotonic()
    scanned = 0
    for base, count in _pieces(ranges):
        if late():
            census.scanned_share = scanned / frames_in(ranges)
            break
        scanned += count
        flags = read_flags(base, count)
        direct = is_direct(flags)
        if not direct.any():
            continue
        is_held = _held_mask(holders, base, len(flags))
        _count_compound(census, flags, direct, is_held)
        if read_charges is not None:
            charges = read_runs(direct, base, read_charges)
            _count_charged(census.charged, flags, direct, is_held, charges)
    census.scan_seconds = time.monotonic() - started
    return census


def _pieces(ranges: Sequence[FrameRange]) -> Iterator[tuple[int, int]]:
    """Yield (first frame, number of frames)."""
    for one in ranges:
        for first in range(one.first, one.end, _PIECE_FRAMES):
            yield first, min(_PIECE_FRAMES, one.end - first)


def _held_mask(held: npt.NDArray[np.void], base: int, frames: int) -> npt.NDArray[np.bool_]:
    """Return which of the frames from `base` on are in any entry of `held`, which is sorted by frame."""
    # An entry that starts before the piece extends into it by less than the largest block.
    first, last = np.searchsorted(held["frame"], (max(0, base - (1 << ORDERS)), base + frames)).tolist()
    steps = np.zeros(frames + 1, np.int32)
    starts = held["frame"][first:last].astype(np.int64) - base
    np.add.at(steps, np.clip(starts, 0, frames), 1)
    np.add.at(steps, np.clip(starts + held["frames"][first:last].astype(np.int64), 0, frames), -1)
    mask: npt.NDArray[np.bool_] = np.cumsum(steps[:-1]) > 0
    return mask


def _count_compound(
    census: FrameCensus,
    flags: npt.NDArray[np.uint64],
    direct: npt.NDArray[np.bool_],
    is_held: npt.NDArray[np.bool_],
) -> None:
    """Add the compound blocks of a piece. A block extends to the next frame that is not a tail."""
    heads = np.flatnonzero(direct & is_head(flags))
    if not len(heads):
        return
    no_tails = np.append(np.flatnonzero(~is_tail(flags)), len(flags))
    ends = no_tails[np.searchsorted(no_tails, heads, side="right")]
    orders = np.minimum(np.log2(ends - heads).astype(np.int64), ORDERS - 1)  # torn by a race: the next smaller one
    held_before = np.concatenate(([0], np.cumsum(is_held, dtype=np.int64)))
    census.blocks += np.bincount(orders, minlength=ORDERS)
    census.frames += np.bincount(orders, ends - heads, minlength=ORDERS).astype(np.int64)
    census.held_frames += np.bincount(orders, held_before[ends] - held_before[heads], minlength=ORDERS).astype(np.int64)


def _count_charged(
    charged: dict[int, ChargedFrames],
    flags: npt.NDArray[np.uint64],
    direct: npt.NDArray[np.bool_],
    is_held: npt.NDArray[np.bool_],
    charges: npt.NDArray[np.uint64],
) -> None:
    """Add the charged frames of a piece. Only the first frame of a block has the cgroup that is charged."""
    tails = is_tail(flags)
    head_of = np.maximum.accumulate(np.where(tails, 0, np.arange(len(flags))))
    inodes = np.where(tails, charges[head_of], charges)
    chosen = np.flatnonzero(direct & (inodes != 0))
    if not len(chosen):
        return
    # Frames of one cgroup are mostly adjacent: count them run by run.
    inodes = inodes[chosen]
    starts = np.flatnonzero(np.concatenate(([True], inodes[1:] != inodes[:-1])))
    compound = np.add.reduceat((tails | is_head(flags))[chosen].astype(np.int64), starts)
    held = np.add.reduceat(is_held[chosen].astype(np.int64), starts)
    all_frames = np.diff(np.append(starts, len(chosen)))
    for inode, frames, in_blocks, in_holders in zip(
        inodes[starts].tolist(), all_frames.tolist(), compound.tolist(), held.tolist(), strict=True
    ):
        count = charged.setdefault(inode, ChargedFrames())
        count.single += frames - in_blocks
        count.compound += in_blocks
        count.held += in_holders
