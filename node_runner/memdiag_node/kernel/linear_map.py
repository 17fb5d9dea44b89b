"""Which struct page belongs to an address of the kernel's linear map.

Both the linear map and the array of struct pages start at random addresses. A partly used slab connects them: it is a
struct page (`struct slab`, and before Linux 5.17 `struct page` itself), and its first free object is an address inside
the block of that page (mm/slub.c; the pointer in the slab is not encoded by CONFIG_SLAB_FREELIST_HARDENED).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader, list_entries

# Of a cache, for each NUMA node with memory. The array is shorter on most machines. What follows it is read too, and
# does not count as a node of the cache, since nothing there points to a slab that refers to the cache.
_MAX_NODES = 64
_MAX_ORDER = 31
_CACHE: tuple[Field, ...] = (
    ("KMEM_CACHE_LIST", "kmem_cache", "list"),
    ("KMEM_CACHE_NODE_PARTIAL", "kmem_cache_node", "partial"),
)


def slab_layout(btf: Btf) -> dict[str, int]:
    """Where SLUB keeps the slabs of its caches, with HAS_SLAB; empty if this kernel has another slab allocator."""
    slab = "slab" if btf.has_field("slab", "slab_cache") else "page"
    fields: tuple[Field, ...] = (
        *_CACHE,
        ("SLAB_LIST", slab, "slab_list"),
        ("SLAB_CACHE", slab, "slab_cache"),
        ("SLAB_FREELIST", slab, "freelist"),
    )
    found = optional_offsets(btf, "HAS_SLAB", fields)
    nodes = _nodes_layout(btf)
    return found | nodes if found and nodes else {}


def _nodes_layout(btf: Btf) -> dict[str, int]:
    """The array at the end of a cache with an element for each NUMA node: where it starts, and the pointer in it."""
    if btf.has_field("kmem_cache", "per_node.node"):  # Linux 7.2: pairs of pointers
        return {
            "KMEM_CACHE_NODES": btf.offset_bytes("kmem_cache", "per_node"),
            "KMEM_CACHE_NODE": btf.offset_bytes("kmem_cache", "per_node.node"),
            "KMEM_CACHE_NODE_STRIDE": btf.size_bytes("kmem_cache_per_node_ptrs"),
        }
    if btf.has_field("kmem_cache", "node"):
        start = btf.offset_bytes("kmem_cache", "node")
        return {"KMEM_CACHE_NODES": start, "KMEM_CACHE_NODE": start, "KMEM_CACHE_NODE_STRIDE": 8}
    return {}


def linear_to_page(memory: WordReader, at: Mapping[str, int], *, cache: int) -> int:
    """The page array less the linear map: a linear address has its struct page there + (address >> shift) * size.

    `at` has the offsets of `slab_layout` and `block_layout`, and PAGE_SHIFT. `cache` is any kmem_cache, from which all
    are reached. 0 if no slab shows it. Slabs change while they are read, so the most frequent answer is used.
    """
    bases = _bases(memory, at, cache)
    if not len(bases):
        return 0
    values, counts = np.unique(bases, return_counts=True)
    most = int(np.argmax(counts))
    return int(values[most]) if 2 * counts[most] > len(bases) else 0


def _bases(memory: WordReader, at: Mapping[str, int], cache: int) -> npt.NDArray[np.uint64]:
    """The answer of the first partial slab of each cache on each NUMA node."""
    slabs, owners = _partial_slabs(memory, at, cache)
    free = _field(memory, at, slabs, "SLAB_FREELIST")
    is_whole = (_field(memory, at, slabs, "SLAB_CACHE") == owners) & (free != 0)
    slabs, free = slabs[is_whole], free[is_whole]
    is_compound = _field(memory, at, slabs, "PAGE_FLAGS") >> np.uint64(at["PG_HEAD"]) & np.uint64(1)
    orders = (_field(memory, at, slabs, "PAGE_ORDER") & np.uint64(_MAX_ORDER)) * is_compound
    first_frames = free >> np.uint64(at["PAGE_SHIFT"]) >> orders << orders
    bases: npt.NDArray[np.uint64] = slabs - first_frames * np.uint64(at["STRUCT_PAGE_BYTES"])
    return bases


def partial_slabs(memory: WordReader, at: Mapping[str, int], *, cache: int) -> npt.NDArray[np.uint64]:
    """Struct pages that head partly used slabs: the first one of each cache on each NUMA node."""
    slabs, owners = _partial_slabs(memory, at, cache)
    whole: npt.NDArray[np.uint64] = slabs[_field(memory, at, slabs, "SLAB_CACHE") == owners]
    return whole


def _partial_slabs(
    memory: WordReader, at: Mapping[str, int], cache: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The slabs and the cache of each. Both were read at different times and may disagree."""
    listed = list_entries(memory, np.array([cache + at["KMEM_CACHE_LIST"]], np.uint64))
    caches = np.append(listed - np.uint64(at["KMEM_CACHE_LIST"]), np.uint64(cache))
    slots = caches[:, np.newaxis] + _node_offsets(at, _MAX_NODES)
    nodes = _field(memory, at, slots.reshape(-1), "KMEM_CACHE_NODE")
    owners = np.repeat(caches, _MAX_NODES)
    slabs = _field(memory, at, nodes, "KMEM_CACHE_NODE_PARTIAL")
    is_slab = (nodes != 0) & (slabs != 0) & (slabs != nodes + np.uint64(at["KMEM_CACHE_NODE_PARTIAL"]))
    return slabs[is_slab] - np.uint64(at["SLAB_LIST"]), owners[is_slab]


def _node_offsets(at: Mapping[str, int], nodes: int) -> npt.NDArray[np.uint64]:
    return np.arange(nodes, dtype="<u8") * np.uint64(at["KMEM_CACHE_NODE_STRIDE"])


def _field(
    memory: WordReader, at: Mapping[str, int], addresses: npt.NDArray[np.uint64], name: str
) -> npt.NDArray[np.uint64]:
    return memory.peek(addresses + np.uint64(at[name]))
