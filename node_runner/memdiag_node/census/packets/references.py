"""What refers to packets in no known queue: untyped objects that have their addresses, at which offset."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.network_objects import index_of
from memdiag_node.slab.census import SlabCensus

_PIECE_WORDS = 1 << 17
_SEED = 1
_MIN_HITS = 4


@dataclass(frozen=True, slots=True)
class References:
    """Words of allocated objects that hold the address of a packet. The columns have one element for each word."""

    packet: npt.NDArray[np.int64]
    """Index of the packet."""
    cache: npt.NDArray[np.int32]
    offset_bytes: npt.NDArray[np.int64]
    """Of the word in its object."""
    searched_share: float
    """Of all slabs of untyped objects that were read."""


def find_references(census: SlabCensus, packets: npt.NDArray[np.uint64], *, max_words: int) -> References:
    """Read slabs of untyped objects, up to `max_words`, and find pointers to `packets`, which ascend.

    Small caches are read whole, large ones are sampled.
    """
    rows, words, share = _chosen_slabs(census, _is_searched(census), max_words)
    bases = (rows["frame"] << np.uint64(census.at["PAGE_SHIFT"])) + np.uint64(census.linear_base)
    places, numbers = [np.empty(0, "<u8")], [np.empty(0, np.int64)]
    for first, end in pieces_of(words, _PIECE_WORDS):
        counts = words[first:end]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        addresses = np.repeat(bases[first:end], counts) + (8 * within).astype("<u8")
        values = census.memory.peek(addresses)
        near = np.flatnonzero((values >= packets[0]) & (values <= packets[-1])) if len(packets) else np.empty(0, int)
        found = index_of(values[near], packets)
        places.append(addresses[near[found >= 0]])
        numbers.append(found[found >= 0])
    return _in_objects(census, np.concatenate(places), np.concatenate(numbers), share)


def pieces_of(words: npt.NDArray[np.int64], piece_words: int) -> list[tuple[int, int]]:
    """Ranges of indices that cover all slabs of so many words each, with about `piece_words` in each range."""
    limits = np.searchsorted(np.cumsum(words), np.arange(0, int(words.sum()), piece_words)).tolist()
    return list(pairwise([*limits, len(words)]))


def most_frequent(references: References, chosen: npt.NDArray[np.bool_], names: list[str]) -> str:
    """The place that most of the chosen references share: "kmalloc-256+16", or the cache alone; empty for none."""
    cache, offset = references.cache[chosen], references.offset_bytes[chosen]
    if len(cache) < _MIN_HITS:
        return ""
    places, counts = np.unique(np.stack([cache, offset]), axis=1, return_counts=True)
    best = int(np.argmax(counts))
    if 2 * counts[best] > len(cache):
        return f"{names[int(places[0, best])]}+{int(places[1, best])}"
    caches, counts = np.unique(cache, return_counts=True)
    best = int(np.argmax(counts))
    return names[int(caches[best])] if 2 * counts[best] > len(cache) else ""


def _chosen_slabs(
    census: SlabCensus, is_searched: npt.NDArray[np.bool_], max_words: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64], float]:
    """The slabs to search in random order, an equal share of the words for each cache; the words of each slab."""
    rows = census.slabs.table[is_searched[census.slabs.table["cache"]]]
    rows = rows[np.random.default_rng(_SEED).permutation(len(rows))]
    rows = rows[np.argsort(rows["cache"], kind="stable")]
    words = np.left_shift(1 << census.at["PAGE_SHIFT"] >> 3, rows["order"].astype(np.int64))
    total = int(words.sum())
    sizes = np.bincount(rows["cache"], words, len(census.caches)).astype(np.int64)
    limit = _equal_share(sizes[sizes > 0], max_words)
    before = np.cumsum(sizes) - sizes
    within = np.cumsum(words) - before[rows["cache"]]
    kept = within <= limit
    return rows[kept], words[kept], int(words[kept].sum()) / max(1, total)


def _is_searched(census: SlabCensus) -> npt.NDArray[np.bool_]:
    """Whether the type of each cache's objects is not certain: kmalloc, and merged caches."""
    return np.array(["kmalloc" in cache.name or cache.is_merged for cache in census.caches], np.bool_)


def _equal_share(sizes: npt.NDArray[np.int64], most: int) -> int:
    """The largest size at which all are cut off so that their sum is at most `most`."""
    ordered, rest = np.sort(sizes).tolist(), most
    for number, size in enumerate(ordered):
        others = len(ordered) - number
        if size * others > rest:
            return rest // others
        rest -= size
    return max(ordered, default=0)


def _in_objects(
    census: SlabCensus, places: npt.NDArray[np.uint64], packets: npt.NDArray[np.int64], share: float
) -> References:
    """Only words in allocated objects: what has been freed still has its old contents."""
    starts, slabs = census.find(places)
    caches = np.full(len(places), -1, np.int32)
    caches[slabs >= 0] = census.slabs.table["cache"][slabs[slabs >= 0]]
    is_used = np.zeros(len(places), np.bool_)
    for cache in np.unique(caches[slabs >= 0]).tolist():
        own = np.flatnonzero(caches == cache)
        is_used[own] = census.still_allocated(cache, starts[own])
    offset = (places - starts).astype(np.int64)
    is_used &= ~_in_sheaves(census, starts, offset)
    return References(packets[is_used], caches[is_used], offset[is_used], share)


def _in_sheaves(
    census: SlabCensus, starts: npt.NDArray[np.uint64], offset_bytes: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether each word is a slot of a sheaf of the slab allocator, which keeps the address of what it gave out last.

    Sheaves are objects of kmalloc that refer to their cache.
    """
    if "HAS_SHEAVES" not in census.at:
        return np.zeros(len(starts), np.bool_)
    owners = census.memory.peek(starts + np.uint64(census.at["SHEAF_CACHE"]))
    is_sheaf = np.isin(owners, np.array([cache.address for cache in census.caches], "<u8"))
    return np.asarray(is_sheaf & (offset_bytes >= census.at["SHEAF_OBJECTS"]), np.bool_)
