"""The counters of every memory cgroup, as the kernel keeps them.

Counters of usage, limits and events are exact. Sizes of LRU lists are those of each group alone. Counters by use
(`state`) include the groups below; since Linux 5.13 the kernel adds them up every two seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_node.cgroups.layout import LRU_LISTS, STATES
from memdiag_node.cgroups.tree import MemoryCgroup
from memdiag_node.kernel.lists import WordReader

Counts = npt.NDArray[np.int64]
_BYTES_STATES = frozenset({"STATE_SLAB_RECLAIMABLE", "STATE_SLAB_UNRECLAIMABLE"})
_U32, _U8 = 0xFFFFFFFF, 0xFF
_AGREEMENT = 0.25
_EVICTABLE = 4
_ACTIVE_GENERATIONS = 2


@dataclass(frozen=True, slots=True)
class Counters:
    """One entry for each group, in the order of the groups. A counter that this kernel does not have is None."""

    is_unified: bool
    """Whether the groups are of version 2."""
    usage_pages: Counts
    limit_pages: Counts
    """A huge number if there is none."""
    limit_hits: Counts | None = None
    """Version 2: includes those of groups below."""
    oom_kills: Counts | None = None
    """Version 2: includes those of groups below."""
    swap_pages: Counts | None = None
    kernel_pages: Counts | None = None
    """Of version 1."""
    tcp_pages: Counts | None = None
    """Of version 1; -1 where the memory of TCP is not counted."""
    lru_pages: Counts | None = None
    """The lists of each group alone: rows of LRU_LISTS."""
    state_bytes: Mapping[str, Counts] = field(default_factory=dict)
    """By the names in STATES; includes groups below."""


def read_counters(
    memory: WordReader, at: Mapping[str, int], groups: Sequence[MemoryCgroup], *, nodes: int, page_bytes: int
) -> Counters | None:
    """Read the counters of these groups. None if this kernel's cannot be read.

    `at` is the result of `account_layout`, `nodes` the number of NUMA nodes that the machine can have.
    """
    if "HAS_MEMORY_ACCOUNTS" not in at or not groups:
        return None
    states = np.array([one.address for one in groups], "<u8")
    bases = states - np.uint64(at["MEMCG_CSS"])

    def of(name: str) -> Counts | None:
        return memory.peek(bases + np.uint64(at[name])).astype(np.int64) if name in at else None

    root = memory.peek(memory.peek(states[:1] + np.uint64(at["CSS_CGROUP"])) + np.uint64(at["CGROUP_ROOT"]))
    is_unified = int(memory.peek(root + np.uint64(at["ROOT_HIERARCHY"]))[0]) & _U32 == 0
    usage, limit = of("MEMCG_USAGE"), of("MEMCG_LIMIT")
    assert usage is not None  # noqa: S101 - HAS_MEMORY_ACCOUNTS: both are there
    assert limit is not None  # noqa: S101
    lru_pages = _lru_pages(memory, at, bases, nodes)
    state_bytes = _state_bytes(memory, at, bases, page_bytes)
    if "STATE_BY_PLACE" in at and not state_agrees(groups, lru_pages, state_bytes, page_bytes=page_bytes):
        state_bytes = {}
    return Counters(
        is_unified=is_unified,
        usage_pages=usage,
        limit_pages=limit,
        limit_hits=of("EVENT_MAX") if is_unified else of("MEMCG_FAILURES"),
        oom_kills=of("EVENT_OOM_KILL"),
        swap_pages=of("MEMCG_SWAP") if is_unified else _swap_pages(usage, of("MEMCG_WITH_SWAP")),
        kernel_pages=None if is_unified else of("MEMCG_KMEM"),
        tcp_pages=None if is_unified else _tcp_pages(memory, at, bases),
        lru_pages=lru_pages,
        state_bytes=state_bytes,
    )


def _swap_pages(usage: Counts, with_swap: Counts | None) -> Counts | None:
    """None if swap is not counted: then the sum of both stays 0."""
    if with_swap is None or not with_swap[1:].any():
        return None
    swap: Counts = np.maximum(with_swap - usage, 0)
    return swap


def _tcp_pages(memory: WordReader, at: Mapping[str, int], bases: npt.NDArray[np.uint64]) -> Counts | None:
    if "HAS_TCP_ACCOUNTS" not in at:
        return None
    is_active = memory.peek(bases + np.uint64(at["MEMCG_TCP_ACTIVE"])) & np.uint64(_U8) != 0
    pages: Counts = np.where(is_active, memory.peek(bases + np.uint64(at["MEMCG_TCP"])).astype(np.int64), -1)
    return pages


def _lru_pages(memory: WordReader, at: Mapping[str, int], bases: npt.NDArray[np.uint64], nodes: int) -> Counts | None:
    if "HAS_LRU_SIZES" not in at:
        return None
    total = np.zeros((len(bases), LRU_LISTS), np.int64)
    for node in range(nodes):
        of_node = memory.peek(bases + np.uint64(at["MEMCG_NODES"] + 8 * node))
        total += _array(memory, of_node + np.uint64(at["NODE_LRU_PAGES"]), (at["ZONES"], LRU_LISTS)).sum(axis=1)
        if "HAS_GENERATIONS" in at:
            total[:, :_EVICTABLE] += _generation_pages(memory, at, of_node)
    return total


def _generation_pages(memory: WordReader, at: Mapping[str, int], of_node: npt.NDArray[np.uint64]) -> Counts:
    """The pages of all generations, as the four evictable LRU lists (kernel: include/linux/mm_inline.h)."""
    generations = at["GENERATIONS"]
    youngest = memory.peek(of_node + np.uint64(at["NODE_YOUNGEST"])).astype(np.int64)
    pages = _array(memory, of_node + np.uint64(at["NODE_GENERATION_PAGES"]), (generations, 2, at["ZONES"])).sum(axis=3)
    ages = (youngest[:, np.newaxis] - np.arange(generations)) % generations
    is_active = (ages < _ACTIVE_GENERATIONS)[:, :, np.newaxis]
    inactive, active = np.where(is_active, 0, pages).sum(axis=1), np.where(is_active, pages, 0).sum(axis=1)
    lists: Counts = np.stack([inactive, active], axis=2).reshape(len(of_node), _EVICTABLE)
    return lists


def _array(memory: WordReader, starts: npt.NDArray[np.uint64], shape: tuple[int, ...]) -> Counts:
    """An array of counters at each address. A counter that is negative for a moment is 0."""
    words = np.arange(math.prod(shape), dtype="<u8") * np.uint64(8)
    values = memory.peek((starts[:, np.newaxis] + words).reshape(-1)).astype(np.int64)
    array: Counts = np.maximum(values, 0).reshape(len(starts), *shape)
    return array


def _state_bytes(
    memory: WordReader, at: Mapping[str, int], bases: npt.NDArray[np.uint64], page_bytes: int
) -> dict[str, Counts]:
    if "STATE" not in at:
        return {}
    arrays = memory.peek(bases + np.uint64(at["STATE_POINTER"])) if "STATE_POINTER" in at else bases
    found = {}
    for name in STATES:
        if name in at:
            values = memory.peek(arrays + np.uint64(at["STATE"] + 8 * at[name])).astype(np.int64)
            found[name] = np.maximum(values, 0) * (1 if name in _BYTES_STATES else page_bytes)
    return found


def subtree(groups: Sequence[MemoryCgroup], own: Counts) -> Counts:
    """The sums over each group and the groups below it."""
    total = own.copy()
    for number in range(len(groups) - 1, 0, -1):
        total[groups[number].parent] += total[number]
    return total


def state_agrees(
    groups: Sequence[MemoryCgroup], lru_pages: Counts | None, state_bytes: Mapping[str, Counts], *, page_bytes: int
) -> bool:
    """Whether the counters by use are where they were looked for.

    The pages on the LRU lists of all groups are anonymous, of files or of shmem. Two counters have their sum.
    """
    if lru_pages is None or not {"STATE_ANON", "STATE_FILE", "STATE_SHMEM"} <= state_bytes.keys():
        return False
    top = np.array([one.parent == 0 for one in groups])
    listed_bytes = int(subtree(groups, lru_pages)[top].sum()) * page_bytes
    anon, file, shmem = (int(state_bytes[f"STATE_{name}"][top].sum()) for name in ("ANON", "FILE", "SHMEM"))
    return shmem <= file and abs(anon + file - listed_bytes) <= _AGREEMENT * listed_bytes
