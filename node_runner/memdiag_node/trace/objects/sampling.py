"""Which slab objects are recorded, as object_trace.bpf.c decides it (pure).

Probabilities are in bytes: one of `b` bytes is b / DENSEST_BYTES. That of an address is its alignment, and that of an
object is at least about its size, so that a leak of a given size leaves as many records whatever its objects are.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memdiag_node.slab.cache import Cache
from memdiag_node.trace.objects import tables

LEAST_LARGE_BYTES = 1024
_HASH = np.uint64(0x9E3779B97F4A7C15)


def alignment_bytes(addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """What each address is aligned to, between SPARSEST_BYTES and DENSEST_BYTES."""
    lowest_bit = addresses & (~addresses + np.uint64(1))
    least, most = np.uint64(tables.SPARSEST_BYTES), np.uint64(tables.DENSEST_BYTES)
    return np.clip(lowest_bit, least, most)


def size_class_bytes(strides: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The power of two below the size of the objects of each cache, at most DENSEST_BYTES; 0 for small objects.

    Objects whose size is not a power of two are often at addresses that are hardly aligned.
    """
    clipped = np.clip(strides, 1, tables.DENSEST_BYTES).astype(np.float64)
    powers = np.exp2(np.floor(np.log2(clipped))).astype(np.uint64)
    result: npt.NDArray[np.uint64] = np.where(strides >= LEAST_LARGE_BYTES, powers, np.uint64(0)).astype(np.uint64)
    return result


def large_caches(caches: Sequence[Cache]) -> npt.NDArray[np.void]:
    """The entries of the map `large_caches`: those with the largest objects, as many as it holds.

    Where the size is a power of two, objects are aligned to it: they are recorded as often without a lookup.
    """
    strides = np.array([cache.stride_bytes for cache in caches], np.uint64)
    entries = np.zeros(len(caches), tables.MAPS["large_caches"])
    entries["key"] = [cache.address for cache in caches]
    entries["value"] = size_class_bytes(strides)
    entries = entries[(entries["value"] > 0) & (strides & (strides - np.uint64(1)) > 0)]
    return entries[np.argsort(-entries["value"].astype(np.int64), kind="stable")][: tables.LARGE_CACHES]


def filter_words(addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bit for each of these caches, by a hash of its address: most others can be excluded without a lookup."""
    bits = (addresses * _HASH) >> np.uint64(64 - tables.FILTER_BITS)
    words = np.zeros((1 << tables.FILTER_BITS) // 64, np.uint64)
    np.bitwise_or.at(words, (bits >> np.uint64(6)).astype(np.int64), np.uint64(1) << (bits & np.uint64(63)))
    return words
