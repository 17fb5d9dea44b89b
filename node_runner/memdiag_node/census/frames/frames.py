"""A census of page frames: kernel memory that no flag identifies, by block size and by charged memory cgroup; and user
memory by use and charged memory cgroup.

One pass over /proc/kpageflags (and /proc/kpagecgroup where frames may be charged), in bounded pieces. It is not a
snapshot: memory that is allocated or freed meanwhile may be counted in part.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_node.procfs.kpageflags import FrameUse, ReadFrames, frame_uses, is_direct, is_head, is_tail, read_runs
from memdiag_node.procfs.memory_map import FrameRange, frames_in

ORDERS = 20
CENSUS_SECONDS = 30.0
"""Time limit of a census. An idle CPU scans 24 GiB a second."""
_USE_BITS = 3
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
class UserFrames:
    """Frames of user memory that one memory cgroup is charged for."""

    anonymous: int = 0
    file: int = 0
    """Cache of files and block devices; of it, in `active_file`, what is on an active list."""
    active_file: int = 0
    """0 for all of it with the multi-generational LRU, whose pages have no flag that says so."""
    shmem: int = 0
    hugetlb: int = 0
    """Charged only where memory cgroups account huge pages (since Linux 6.7, a mount option of cgroup2)."""

    def add(self, other: "UserFrames") -> None:
        """Add the frames of `other`."""
        self.anonymous += other.anonymous
        self.file += other.file
        self.active_file += other.active_file
        self.shmem += other.shmem
        self.hugetlb += other.hugetlb


@dataclass(slots=True)
class FrameCensus:
    """Result of the pass: frames of FrameKind DIRECT that are compound, or charged, or both; and all of user memory."""

    blocks: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(ORDERS, np.int64))
    """Compound blocks by order."""
    frames: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(ORDERS, np.int64))
    """Frames of those blocks."""
    held_frames: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(ORDERS, np.int64))
    """Of those frames, in known holders."""
    charged: dict[int, ChargedFrames] = field(default_factory=dict)
    """By the inode of the memory cgroup. A removed cgroup has the inode of its nearest remaining ancestor."""
    user: dict[int, UserFrames] = field(default_factory=dict)
    """User memory, by the inode of the memory cgroup as in `charged`. 0: charged to none, or charges are not known."""
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
        direct, uses = is_direct(flags), frame_uses(flags)
        wanted = direct | (uses != FrameUse.NONE)
        if not wanted.any():
            continue
        charges = np.zeros(len(flags), np.uint64) if read_charges is None else read_runs(wanted, base, read_charges)
        # Only the first frame of a block is sure to have the cgroup that is charged, and the flags of its use.
        tails = is_tail(flags)
        head_of = np.maximum.accumulate(np.where(tails, 0, np.arange(len(flags))))
        inodes, uses = np.where(tails, charges[head_of], charges), np.where(tails, uses[head_of], uses)
        _count_user(census.user, uses, inodes)
        if not direct.any():
            continue
        is_held = _held_mask(holders, base, len(flags))
        _count_compound(census, flags, direct, is_held)
        if read_charges is not None:
            _count_charged(census.charged, tails | is_head(flags), direct, is_held, inodes)
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


def _count_user(counted: dict[int, UserFrames], uses: npt.NDArray[np.uint8], inodes: npt.NDArray[np.uint64]) -> None:
    """Add the user memory of a piece."""
    chosen = np.flatnonzero(uses)
    if not len(chosen):
        return
    starts, lengths = _runs(inodes[chosen] << np.uint64(_USE_BITS) | uses[chosen])
    first = chosen[starts]
    groups, group_of = np.unique(inodes[first], return_inverse=True)
    counts = np.bincount(group_of * len(FrameUse) + uses[first], lengths, minlength=len(groups) * len(FrameUse))
    rows = counts.astype(np.int64).reshape(-1, len(FrameUse)).tolist()
    for inode, (_, anonymous, inactive, active, shmem, hugetlb) in zip(groups.tolist(), rows, strict=True):
        found = UserFrames(anonymous, inactive + active, active, shmem, hugetlb)
        counted.setdefault(inode, UserFrames()).add(found)


def _runs(values: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each run of equal values starts, and its length. Frames of one use are mostly adjacent."""
    starts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    return starts, np.diff(np.append(starts, len(values)))


def _count_charged(
    charged: dict[int, ChargedFrames],
    is_compound: npt.NDArray[np.bool_],
    direct: npt.NDArray[np.bool_],
    is_held: npt.NDArray[np.bool_],
    inodes: npt.NDArray[np.uint64],
) -> None:
    """Add the charged frames of a piece. `inodes`: the cgroup that is charged for each frame."""
    chosen = np.flatnonzero(direct & (inodes != 0))
    if not len(chosen):
        return
    inodes = inodes[chosen]
    starts, all_frames = _runs(inodes)
    compound = np.add.reduceat(is_compound[chosen].astype(np.int64), starts)
    held = np.add.reduceat(is_held[chosen].astype(np.int64), starts)
    for inode, frames, in_blocks, in_holders in zip(
        inodes[starts].tolist(), all_frames.tolist(), compound.tolist(), held.tolist(), strict=True
    ):
        count = charged.setdefault(inode, ChargedFrames())
        count.single += frames - in_blocks
        count.compound += in_blocks
        count.held += in_holders
