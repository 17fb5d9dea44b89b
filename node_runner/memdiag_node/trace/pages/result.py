"""The numeric result of a page-allocation trace, from which stacks, join and report are built."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import TraceCounters
from memdiag_node.slab.cache import Cache

BLOCK_DTYPE = np.dtype(
    [
        ("page", "<u8"),  # address of the block's first struct page: a key for the join, never published
        ("order", "u1"),
        ("slice", "u1"),
        ("context", "u1"),  # ContextCode
        ("frames", "<u4"),  # still out
        ("stack", "<i4"),  # index in TraceResult.stacks
        ("process", "<i4"),  # index in TraceResult.processes, -1 none
        ("weight", "<f4"),  # the number of blocks that this one represents
    ]
)
GROUP_DTYPE = np.dtype(
    [
        ("stack", "<i4"),
        ("process", "<i4"),
        ("order", "u1"),
        ("slice", "u1"),
        ("context", "u1"),
        ("is_direct", "?"),  # not a slab and not a page table
        ("weight", "<f8"),
        ("frames", "<i8"),  # outstanding; this field and the following ones are not weighted
        ("blocks", "<i8"),
        ("allocated_pages", "<i8"),
        ("allocated_blocks", "<i8"),
    ]
)


@dataclass(frozen=True, slots=True)
class TracedProcess:
    """A process as it was when it allocated."""

    pid: int
    comm: str
    container_id: str
    pod_uid: str


@dataclass(frozen=True, slots=True)
class Charge:
    """Outstanding blocks that are charged to the memory cgroup of a container."""

    container_id: str
    pod_uid: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TraceResult:
    """What was outstanding when the trace ended. Stacks are in order of their outstanding bytes, largest first."""

    blocks: npt.NDArray[np.void]
    """BLOCK_DTYPE, for the join."""
    groups: npt.NDArray[np.void]
    """GROUP_DTYPE: all blocks, summed up by their common properties."""
    stacks: list[tuple[str, ...]]
    """Trimmed frames, innermost first."""
    memory_classes: list[str]
    """Of each stack: AllocPage, Vmalloc, Percpu, Slab, ..."""
    caches: list[Cache | None]
    """Of each stack: the slab cache that its pages are of."""
    lives: list[dict[int, int]]
    """Of each stack: freed blocks that were timed, by bucket of their life (births.median_life_seconds)."""
    processes: list[TracedProcess]
    charges: list[Charge]
    """By container, largest first: recorded blocks, not scaled. The rest is charged to no known container."""
    counters: TraceCounters
    slices: int
    """The number of slices that had started when the trace ended."""
    slice_seconds: float
    """The length of every slice except the last."""
    traced_seconds: float
    page_bytes: int
    struct_page_bytes: int
    first_page: int
    """Address of frame 0's struct page, to convert between frames and struct pages. Never published."""
    outstanding_bytes: int
    """Allocpage only: excludes stacks of other memory classes, and memory that was set aside."""
    outstanding_blocks: int
    vmalloc_page_bytes: int = 0
    """What vmalloc allocated in the window, freed or not, as far as it passed the tracepoint."""

    @property
    def last_slice_seconds(self) -> float:
        """The length of the last slice: shorter after an early end, otherwise it lasts until the trace is read."""
        return max(0.0, self.traced_seconds - (self.slices - 1) * self.slice_seconds)

    def groups_of(self, stack: int) -> npt.NDArray[np.void]:
        """The groups of one stack."""
        groups: npt.NDArray[np.void] = self.groups[self.groups["stack"] == stack]
        return groups

    def error_bytes(self, groups: npt.NDArray[np.void]) -> float:
        """The standard error of the scaled bytes of `groups`: the true value is within two of it 95 times in 100.

        Each block of a thinned kind was recorded with the probability 1 / weight, independently of the others. The sum
        over all stacks is known exactly for each order: the uncertainty is how it is shared out among them.
        """
        thinned = groups[groups["weight"] > 1]
        variance = sum(
            _variance(thinned[thinned["order"] == order], self.groups[self.groups["order"] == order])
            for order in np.unique(thinned["order"]).tolist()
        )
        return self.page_bytes * math.sqrt(variance)


def _variance(groups: npt.NDArray[np.void], every: npt.NDArray[np.void]) -> float:
    """The variance of the scaled sum of `groups`, in frames^2; that of `every` group of their order is known exactly.

    A recorded block adds frames^2 * weight * (weight - 1) to the variance of an unscaled sum. As a ratio of two sums,
    the share of `groups` varies with each block's distance from it: 1 - share for their own blocks, share for others.
    """
    unrecorded_frames = float(np.sum(every["frames"] * (every["weight"] - 1)))
    blocks = float(np.sum(_blocks(every[every["weight"] > 1])))
    if not unrecorded_frames:
        return 0.0
    share = float(np.sum(groups["frames"] * (groups["weight"] - 1))) / unrecorded_frames
    own, total = _scatter(groups), _scatter(every)
    variance = own * (1 - share) ** 2 + max(0.0, total - own) * share**2
    return variance * blocks / max(1.0, blocks - 1)  # the share is itself from these blocks: Bessel's correction


def _blocks(groups: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """Recorded blocks of each group; one that is freed in part counts in part."""
    blocks: npt.NDArray[np.float64] = groups["frames"] / np.exp2(groups["order"].astype(np.float64))
    return blocks


def _scatter(groups: npt.NDArray[np.void]) -> float:
    """The variance of the sum over these groups if no sum were known, in frames^2."""
    block_frames = np.exp2(groups["order"].astype(np.float64))
    return float(np.sum(groups["frames"] * block_frames * groups["weight"] * (groups["weight"] - 1)))
