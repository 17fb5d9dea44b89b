"""The memory cgroup that each object of a slab is charged to.

A slab with charged objects has a vector with one entry for each of its places: a pointer to a struct obj_cgroup, or a
struct slabobj_ext with one. The pointer to the vector has flags in its lowest bits (include/linux/memcontrol.h):

    page.obj_cgroups              Linux 5.9
    page.memcg_data               5.11
    slab.memcg_data               5.17
    slab.obj_exts                 6.10, struct slabobj_ext
    slab.obj_exts, slab.stride    7.0, the entries may lie between the objects

An obj_cgroup outlives its memory cgroup. When that is removed, the obj_cgroup is killed and passed to the parent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.cgroup_layout import CGROUP_FIELDS
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader
from memdiag_node.slab.census import SlabCensus

_FIELDS: tuple[Field, ...] = (
    ("OBJCG_COUNT", "obj_cgroup", "refcnt.percpu_count_ptr"),
    ("OBJCG_MEMCG", "obj_cgroup", "memcg"),
    ("MEMCG_CSS", "mem_cgroup", "css"),
    *CGROUP_FIELDS,
)
_VECTORS = (("slab", "obj_exts"), ("slab", "memcg_data"), ("page", "memcg_data"), ("page", "obj_cgroups"))
_FLAGS = 7
_DEAD = 2  # include/linux/percpu-refcount.h, __PERCPU_REF_DEAD
_U32 = 0xFFFFFFFF
_SEED = 1
_MAX_PLACES = 1 << 19
_MAX_PLACES_OF_CACHE = 1 << 16
_MAX_GROUPS = 1 << 14
_MAX_ENTRY_BYTES = 1 << 24

CHARGE_DTYPE = np.dtype([("cache", "<i4"), ("inode", "<u8"), ("objects", "<f8"), ("bytes", "<f8")])


@dataclass(frozen=True, slots=True)
class ObjectCharges:
    """Charged objects of the slabs that were read, scaled where only a part of their vectors was."""

    rows: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, CHARGE_DTYPE))
    """CHARGE_DTYPE: one row for each cache (its number) and cgroup (inode of the nearest one that still exists)."""
    removed_cgroups: int = 0
    """Removed memory cgroups with charged objects."""
    removed_bytes: int = 0
    sampled_share: float = 1.0
    """Of the places of slabs with charges."""


def charge_layout(btf: Btf) -> dict[str, int]:
    """The offsets that `read_charges` needs, with HAS_OBJECT_CHARGES; empty without memory cgroups of kernel memory."""
    vector = next(((struct, name) for struct, name in _VECTORS if btf.has_field(struct, name)), None)
    found = optional_offsets(btf, "HAS_OBJECT_CHARGES", _FIELDS)
    if not vector or not found:
        return {}
    found["SLAB_CHARGES"] = btf.offset_bytes(*vector)
    found["CHARGE_BYTES"], found["CHARGE_OBJCG"] = 8, 0
    if vector == ("slab", "obj_exts"):
        if not btf.has_field("slabobj_ext", "objcg"):
            return {}  # used for profiles of allocations only
        found["CHARGE_BYTES"] = btf.size_bytes("slabobj_ext")
        found["CHARGE_OBJCG"] = btf.offset_bytes("slabobj_ext", "objcg")
    if btf.has_field("slab", "stride"):
        found["SLAB_STRIDE"] = btf.offset_bytes("slab", "stride")
    return found


def read_charges(census: SlabCensus, at: Mapping[str, int]) -> ObjectCharges | None:
    """Read the charges of all objects, of a random sample of slabs in large caches. None if they cannot be read."""
    if "HAS_OBJECT_CHARGES" not in at:
        return None
    memory, table = census.memory, census.slabs.table
    pages, vectors = _vectors(census, at)
    chosen = np.flatnonzero((vectors != 0) & (table["objects"] != 0))
    caches, places = table["cache"][chosen], table["objects"][chosen].astype(np.int64)
    of_cache = np.bincount(caches, places, len(census.caches)).astype(np.float64)
    kept = _sample(caches, places, of_cache)
    chosen, caches, places = chosen[kept], caches[kept], places[kept]
    scale = np.divide(of_cache, np.bincount(caches, places, len(census.caches)), where=of_cache > 0, out=of_cache * 0)
    entry_bytes = np.full(len(chosen), at["CHARGE_BYTES"], "<u8")
    if "SLAB_STRIDE" in at:
        strides = memory.peek(pages[chosen] + np.uint64(at["SLAB_STRIDE"])) & np.uint64(_U32)
        entry_bytes = np.where((strides != 0) & (strides <= _MAX_ENTRY_BYTES), strides, entry_bytes)
    runs = _read_runs(memory, vectors[chosen] + np.uint64(at["CHARGE_OBJCG"]), entry_bytes, places, caches)
    total = float(of_cache.sum())
    return _by_cgroup(census, at, runs, scale, float(places.sum()) / total if total else 1.0)


def charge_vectors(census: SlabCensus, at: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """Addresses of the vectors, ascending: most are objects of kmalloc caches themselves."""
    return np.sort(_vectors(census, at)[1]) if "HAS_OBJECT_CHARGES" in at else np.empty(0, "<u8")


def _vectors(census: SlabCensus, at: Mapping[str, int]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The struct page and the vector of each slab; 0 for none."""
    frames = census.slabs.table["frame"]
    pages = frames * np.uint64(census.at["STRUCT_PAGE_BYTES"]) + np.uint64(census.first_page)
    return pages, census.memory.peek(pages + np.uint64(at["SLAB_CHARGES"])) & ~np.uint64(_FLAGS)


def _sample(
    caches: npt.NDArray[np.int32], places: npt.NDArray[np.int64], of_cache: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The numbers of slabs to read: at random, and of each cache no more places than a limit."""
    limit = _MAX_PLACES_OF_CACHE
    while np.minimum(of_cache, limit).sum() > _MAX_PLACES:
        limit //= 2
    order = np.random.default_rng(_SEED).permutation(len(caches))
    order = order[np.argsort(caches[order], kind="stable")]
    sorted_caches, sorted_places = caches[order], places[order]
    before = np.cumsum(sorted_places) - sorted_places
    first = np.searchsorted(sorted_caches, sorted_caches, side="left")
    return np.sort(order[before - before[first] < limit]) if len(order) else order


def _read_runs(
    memory: WordReader,
    vectors: npt.NDArray[np.uint64],
    entry_bytes: npt.NDArray[np.uint64],
    places: npt.NDArray[np.int64],
    caches: npt.NDArray[np.int32],
) -> npt.NDArray[np.void]:
    """Runs of adjacent places of a cache with the same obj_cgroup: cache, objcg, objects.

    `vectors` are the addresses of the first pointers to an obj_cgroup.
    """
    first = np.cumsum(places) - places
    within = np.arange(int(places.sum())) - np.repeat(first, places)
    entries = np.repeat(vectors, places)
    entries += within.astype("<u8") * np.repeat(entry_bytes, places)
    objcgs, owner = memory.peek(entries), np.repeat(caches, places)
    used = objcgs != 0
    objcgs, owner = objcgs[used], owner[used]
    starts = np.flatnonzero(np.concatenate(([True], (objcgs[1:] != objcgs[:-1]) | (owner[1:] != owner[:-1]))))
    starts = starts[: len(objcgs)]
    runs = np.zeros(len(starts), [("cache", "<i4"), ("objcg", "<u8"), ("objects", "<i8")])
    runs["cache"], runs["objcg"] = owner[starts], objcgs[starts]
    runs["objects"] = np.diff(np.append(starts, len(objcgs)))
    return runs


def _by_cgroup(
    census: SlabCensus,
    at: Mapping[str, int],
    runs: npt.NDArray[np.void],
    scale: npt.NDArray[np.float64],
    sampled_share: float,
) -> ObjectCharges:
    # Few distinct ones: to look each run up among them is faster than to sort the runs.
    objcgs = np.unique(runs["objcg"])
    number = np.searchsorted(objcgs, runs["objcg"])
    objcgs = objcgs[:_MAX_GROUPS]
    runs, number = runs[number < len(objcgs)], number[number < len(objcgs)]
    memory = census.memory
    groups = memory.peek(objcgs + np.uint64(at["OBJCG_MEMCG"]))
    inodes = cgroup_inodes(census, at, groups)
    is_removed = memory.peek(objcgs + np.uint64(at["OBJCG_COUNT"])) & np.uint64(_DEAD) != 0
    strides = np.array([cache.stride_bytes for cache in census.caches], np.float64)
    objects = runs["objects"] * scale[runs["cache"]]
    sizes = objects * strides[runs["cache"]]
    known, number_of_inode = np.unique(inodes, return_inverse=True)
    keys = runs["cache"].astype(np.int64) * len(known) + number_of_inode[number]
    unique = np.unique(keys)
    row = np.searchsorted(unique, keys)
    rows = np.zeros(len(unique), CHARGE_DTYPE)
    rows["cache"], rows["inode"] = unique // max(1, len(known)), known[unique % max(1, len(known))]
    rows["objects"] = np.bincount(row, objects, len(unique))
    rows["bytes"] = np.bincount(row, sizes, len(unique))
    return ObjectCharges(rows, int(is_removed.sum()), int(sizes[is_removed[number]].sum()), sampled_share)


def cgroup_inodes(census: SlabCensus, at: Mapping[str, int], groups: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The inode of the cgroup of each struct mem_cgroup; 0 if it has none."""
    memory = census.memory
    cgroups = memory.peek(groups + np.uint64(at["MEMCG_CSS"] + at["CSS_CGROUP"]))
    nodes = memory.peek(cgroups + np.uint64(at["CGROUP_NODE"]))
    return memory.peek(nodes + np.uint64(at["NODE_ID"]))
