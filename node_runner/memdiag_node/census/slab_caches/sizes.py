"""The size of every slab cache by the kernel's own counters (CONFIG_SLUB_DEBUG): cheap, so that it can be read twice.

The counters belong to each NUMA node. They count slabs, not bytes: a slab has the usual order of its cache, or its
smallest one where memory was short. The number of objects shows how many of each there are.
"""

from collections.abc import Mapping

import numpy as np

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.slab.cache import read_caches
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.sheaves import numa_nodes

_FIELDS: tuple[Field, ...] = (
    ("NODE_SLABS", "kmem_cache_node", "nr_slabs"),
    ("NODE_OBJECTS", "kmem_cache_node", "total_objects"),
    ("CACHE_USUAL_ORDER", "kmem_cache", "oo"),
    ("CACHE_SMALLEST_ORDER", "kmem_cache", "min"),
)
_ORDER_SHIFT, _OBJECTS_MASK, _MAX_ORDER = 16, 0xFFFF, 10  # mm/slub.c, oo_order
_U32 = 0xFFFFFFFF


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `cache_sizes` needs; without HAS_SLAB_COUNTERS if this kernel does not count its slabs."""
    layout = object_layout(btf)
    return layout | optional_offsets(btf, "HAS_SLAB_COUNTERS", _FIELDS) if layout else {}


def cache_sizes(memory: KernelMemory, at: Mapping[str, int]) -> dict[str, int]:
    """Bytes of all slabs of each cache, by name; empty if this kernel does not count them.

    Slabs of a size between the usual and the smallest one are counted approximately.
    """
    if "HAS_SLAB_COUNTERS" not in at:
        return {}
    caches = read_caches(memory, at)
    nodes_in_array = numa_nodes(at, caches)
    addresses = np.array([cache.address for cache in caches], "<u8")
    slots = addresses[:, np.newaxis] + np.arange(nodes_in_array, dtype="<u8") * np.uint64(at["KMEM_CACHE_NODE_STRIDE"])
    nodes = memory.peek((slots + np.uint64(at["KMEM_CACHE_NODE"])).reshape(-1))

    def summed(name: str) -> list[int]:
        values = memory.peek(nodes + np.uint64(at[name]))
        values[(nodes == 0) | (values > np.uint64(_U32))] = 0
        return [int(total) for total in values.reshape(slots.shape).sum(axis=1)]

    def orders(name: str) -> list[int]:
        return [int(value) & _U32 for value in memory.peek(addresses + np.uint64(at[name]))]

    sizes: dict[str, int] = {}
    rows = zip(
        caches,
        summed("NODE_SLABS"),
        summed("NODE_OBJECTS"),
        orders("CACHE_USUAL_ORDER"),
        orders("CACHE_SMALLEST_ORDER"),
        strict=True,
    )
    for cache, slabs, objects, usual, smallest in rows:
        pages = _pages(slabs, objects, usual, smallest)
        sizes[cache.name] = sizes.get(cache.name, 0) + (pages << at["PAGE_SHIFT"])
    return sizes


def _pages(slabs: int, objects: int, usual: int, smallest: int) -> int:
    """The pages of `slabs` slabs with `objects` places. `usual` and `smallest`: an order and a number of places."""
    order = min(usual >> _ORDER_SHIFT, _MAX_ORDER)
    smallest_order = min(smallest >> _ORDER_SHIFT, order)
    missing = slabs * (usual & _OBJECTS_MASK) - objects
    fewer_places = (usual & _OBJECTS_MASK) - (smallest & _OBJECTS_MASK)
    small_slabs = min(slabs, max(0, missing) // fewer_places) if fewer_places > 0 else 0
    return (slabs << order) - small_slabs * ((1 << order) - (1 << smallest_order))
