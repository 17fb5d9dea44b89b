"""The free objects in sheaves, arrays of them that CPUs and NUMA nodes keep since Linux 6.18 (mm/slub.c)."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import WordReader
from memdiag_node.slab.cache import Cache
from memdiag_node.slab.free_lists import per_cpu_copies

MAX_SHEAF_OBJECTS = 1 << 12
_MAX_NODES = 1 << 10
_MAX_FULL_SHEAVES = 1 << 6  # the kernel keeps 10 on each node (MAX_FULL_SHEAVES)
_OF_A_CPU = ("SHEAVES_MAIN", "SHEAVES_SPARE", "SHEAVES_RCU_FREE")


def sheaf_objects(
    memory: WordReader, at: Mapping[str, int], caches: Sequence[Cache], per_cpu: npt.NDArray[np.uint64], *, nodes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The objects in sheaves of the CPUs and `nodes` NUMA nodes: the number of the cache of each, and its address.

    Sheaves that are being filled, or wait for a grace period, are on no list: their objects look allocated.
    """
    if "HAS_SHEAVES" not in at:
        return np.empty(0, np.int64), np.empty(0, "<u8")
    owner, copies = per_cpu_copies(memory, caches, per_cpu, at["CACHE_SHEAVES"])
    of_cpus = [memory.peek(copies + np.uint64(at[name])) for name in _OF_A_CPU]
    full_owners, full = _full_sheaves(memory, at, caches, nodes)
    owners = np.concatenate([np.tile(owner, len(_OF_A_CPU)), full_owners])
    sheaves = np.concatenate([*of_cpus, full])
    # A sheaf that was freed meanwhile, and is something else, does not refer to the cache.
    is_sheaf = memory.peek(sheaves + np.uint64(at["SHEAF_CACHE"])) == _addresses(caches)[owners]
    is_sheaf &= sheaves != 0
    owners, sheaves = owners[is_sheaf], sheaves[is_sheaf]
    sizes = memory.peek(sheaves + np.uint64(at["SHEAF_SIZE"])) & np.uint64(0xFFFFFFFF)
    sizes[sizes > MAX_SHEAF_OBJECTS] = 0
    counts = sizes.astype(np.int64)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.repeat(sheaves, counts) + np.uint64(at["SHEAF_OBJECTS"]) + (8 * within).astype("<u8")
    return np.repeat(owners, counts), memory.peek(slots)


def _full_sheaves(
    memory: WordReader, at: Mapping[str, int], caches: Sequence[Cache], nodes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The full sheaves that NUMA nodes keep for their CPUs: the number of the cache of each, and its address."""
    owners, barns = _barns(memory, at, caches, nodes)
    heads = barns + np.uint64(at.get("BARN_FULL", 0))
    found_owners, found = [np.empty(0, np.int64)], [np.empty(0, "<u8")]
    entries = memory.peek(heads)
    for _ in range(_MAX_FULL_SHEAVES):
        going = (entries != 0) & (entries != heads)
        owners, heads, entries = owners[going], heads[going], entries[going]
        if not len(entries):
            break
        found_owners.append(owners)
        found.append(entries - np.uint64(at["SHEAF_LIST"]))
        entries = memory.peek(entries)
    return np.concatenate(found_owners), np.concatenate(found)


def _barns(
    memory: WordReader, at: Mapping[str, int], caches: Sequence[Cache], nodes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The barn of each cache on each NUMA node: the number of the cache, and its address."""
    elements = np.arange(nodes, dtype="<u8") * np.uint64(at["KMEM_CACHE_NODE_STRIDE"])
    slots = (_addresses(caches)[:, np.newaxis] + elements).reshape(-1)
    owners = np.repeat(np.arange(len(caches)), nodes)
    if "HAS_CACHE_BARN" in at:
        barns = memory.peek(slots + np.uint64(at["CACHE_BARN"]))
    elif "HAS_NODE_BARN" in at:
        found = memory.peek(slots + np.uint64(at["KMEM_CACHE_NODE"]))
        barns = np.where(found != 0, memory.peek(found + np.uint64(at["NODE_BARN"])), np.uint64(0))
    else:
        return np.empty(0, np.int64), np.empty(0, "<u8")
    return owners[barns != 0], barns[barns != 0]


def numa_nodes(at: Mapping[str, int], caches: Sequence[Cache]) -> int:
    """The length of a cache's array of nodes. It ends a struct kmem_cache: the cache of these, among all, shows it."""
    sizes = [cache.object_bytes for cache in caches if cache.name == "kmem_cache"]
    if not sizes:
        return 0
    return min(_MAX_NODES, max(0, sizes[0] - at["KMEM_CACHE_NODES"]) // at["KMEM_CACHE_NODE_STRIDE"])


def _addresses(caches: Sequence[Cache]) -> npt.NDArray[np.uint64]:
    return np.array([cache.address for cache in caches], "<u8")
