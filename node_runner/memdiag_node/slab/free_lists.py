"""The free objects of slabs: on the lists of slabs and CPUs, and in sheaves (mm/slub.c).

A free object holds a pointer to the next one. With CONFIG_SLAB_FREELIST_HARDENED the pointer is stored exclusive-or a
secret of the cache and the byte-swapped address at which it is stored.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import WordReader, list_entries
from memdiag_node.slab.cache import Cache

MAX_OBJECTS = 1 << 15
"""Of one slab: the kernel counts them in 15 bits."""
_MAX_NODES = 1 << 10
_MAX_SHEAF_OBJECTS = 1 << 12


Accept = Callable[[npt.NDArray[np.int64], npt.NDArray[np.uint64]], npt.NDArray[np.bool_]]
"""Receives the numbers of lists and the next object of each; returns which of the lists to follow further."""


def follow(
    memory: WordReader,
    heads: npt.NDArray[np.uint64],
    free_pointer_bytes: npt.NDArray[np.uint64],
    random: npt.NDArray[np.uint64],
    accept: Accept,
) -> None:
    """Follow many lists in step, each with the free pointer's offset and the secret of its cache.

    The objects may be garbage if a list changes meanwhile.
    """
    lists = np.flatnonzero(heads)
    objects = heads[lists]
    for _ in range(MAX_OBJECTS):
        if not len(lists):
            return
        good = accept(lists, objects)
        lists, objects = lists[good], objects[good]
        places = objects + free_pointer_bytes[lists]
        stored, secret = memory.peek(places), random[lists]
        objects = np.where(secret != 0, stored ^ secret ^ places.byteswap(), stored)
        going = objects != 0
        lists, objects = lists[going], objects[going]


def cpu_list_heads(
    memory: WordReader, at: Mapping[str, int], caches: Sequence[Cache], per_cpu: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """The first object of each CPU's own list: one row for each cache, one column for each CPU; 0 for none."""
    if "HAS_CPU_SLAB" not in at:
        return np.zeros((len(caches), 0), "<u8")
    pointers = memory.peek(_addresses(caches) + np.uint64(at["CACHE_CPU_SLAB"]))
    copies = pointers[:, np.newaxis] + per_cpu
    heads = memory.peek((copies + np.uint64(at["CPU_SLAB_FREELIST"])).reshape(-1)).reshape(copies.shape)
    heads[pointers == 0] = 0
    return heads


def sheaf_objects(
    memory: WordReader, at: Mapping[str, int], caches: Sequence[Cache], per_cpu: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The objects in sheaves of the CPUs and NUMA nodes: the number of the cache of each, and its address."""
    if "HAS_SHEAVES" not in at:
        return np.empty(0, np.int64), np.empty(0, "<u8")
    pointers = memory.peek(_addresses(caches) + np.uint64(at["CACHE_SHEAVES"]))
    owner = np.repeat(np.arange(len(caches)), len(per_cpu))
    copies = (pointers[:, np.newaxis] + per_cpu).reshape(-1)
    used = np.repeat(pointers, len(per_cpu)) != 0
    owner, copies = owner[used], copies[used]
    fields = ("SHEAVES_MAIN", "SHEAVES_SPARE", "SHEAVES_RCU_FREE")
    sheaves = np.concatenate([memory.peek(copies + np.uint64(at[name])) for name in fields])
    owners = np.tile(owner, len(fields))
    full_owners, full = _full_sheaves(memory, at, caches)
    owners, sheaves = np.concatenate([owners, full_owners]), np.concatenate([sheaves, full])
    owners, sheaves = owners[sheaves != 0], sheaves[sheaves != 0]
    sizes = memory.peek(sheaves + np.uint64(at["SHEAF_SIZE"])) & np.uint64(0xFFFFFFFF)
    sizes[sizes > _MAX_SHEAF_OBJECTS] = 0  # freed meanwhile
    counts = sizes.astype(np.int64)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.repeat(sheaves, counts) + np.uint64(at["SHEAF_OBJECTS"]) + (8 * within).astype("<u8")
    return np.repeat(owners, counts), memory.peek(slots)


def _full_sheaves(
    memory: WordReader, at: Mapping[str, int], caches: Sequence[Cache]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The full sheaves that NUMA nodes keep for their CPUs: the number of the cache of each, and its address."""
    if "HAS_BARN" not in at:
        return np.empty(0, np.int64), np.empty(0, "<u8")
    nodes_in_array = numa_nodes(at, caches)
    slots = _addresses(caches)[:, np.newaxis] + np.arange(0, 8 * nodes_in_array, 8, dtype="<u8")
    nodes = memory.peek((slots + np.uint64(at["KMEM_CACHE_NODE"])).reshape(-1))
    owners = np.repeat(np.arange(len(caches)), nodes_in_array)
    owners, nodes = owners[nodes != 0], nodes[nodes != 0]
    barns = memory.peek(nodes + np.uint64(at["NODE_BARN"]))
    owners, barns = owners[barns != 0], barns[barns != 0]
    found_owners, found = [np.empty(0, np.int64)], [np.empty(0, "<u8")]
    for owner, barn in zip(owners.tolist(), barns.tolist(), strict=True):
        head = np.array([barn + at["BARN_FULL"]], "<u8")
        sheaves = list_entries(memory, head) - np.uint64(at["SHEAF_LIST"])
        found.append(sheaves)
        found_owners.append(np.full(len(sheaves), owner, np.int64))
    return np.concatenate(found_owners), np.concatenate(found)


def numa_nodes(at: Mapping[str, int], caches: Sequence[Cache]) -> int:
    """The length of every cache's array of nodes, which ends a struct kmem_cache: so the cache of these shows it."""
    sizes = [cache.object_bytes for cache in caches if cache.name == "kmem_cache"]
    return min(_MAX_NODES, max(0, sizes[0] - at["KMEM_CACHE_NODE"]) // 8) if sizes else 0


def _addresses(caches: Sequence[Cache]) -> npt.NDArray[np.uint64]:
    return np.array([cache.address for cache in caches], "<u8")
