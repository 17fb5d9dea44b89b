"""Slab memory by cache and by the container that it is charged to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.census.slab import ChargedCache, SlabCache, SlabCaches, SlabCharge
from memdiag_node.census.frames.block_heads import large_kmalloc_bytes, large_kmalloc_layout
from memdiag_node.census.slab_caches import sizes as sizes_by_counter
from memdiag_node.census.slab_caches.object_charges import ObjectCharges, charge_layout, read_charges
from memdiag_node.census.slab_caches.purposes import purpose
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.meminfo import MemInfo
from memdiag_node.procfs.memory_map import FrameRange
from memdiag_node.slab.census import CacheCount, SlabCensus

_NO_CONTAINER = ContainerIdentity("", "")
_NAME_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """One cache, in the slabs that were read."""

    name: str
    is_reclaimable: bool
    is_merged: bool
    stride_bytes: int
    count: CacheCount
    error_bytes: int
    """Standard error of its size when scaled to the node."""
    change_bytes: int | None
    """Over the window, by the kernel's counters, of the whole node."""


@dataclass(frozen=True, slots=True)
class SlabFigures:
    """The caches with any slab, and what was read beside them. Not scaled."""

    caches: dict[int, CacheFigures] = field(default_factory=dict)
    """By the number of the cache in the census."""
    charges: ObjectCharges | None = None
    large_kmalloc_bytes: int | None = None
    sampled_share: float = 1.0
    error_bytes: int = 0
    """Standard error of the sum of all caches when scaled to the node."""


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_slab_caches` and `cache_sizes` need, as far as this kernel has them."""
    return sizes_by_counter.fields(btf) | charge_layout(btf) | large_kmalloc_layout(btf)


cache_sizes = sizes_by_counter.cache_sizes


def read_slab_caches(
    census: SlabCensus,
    at: Mapping[str, int],
    *,
    sizes_at_start: Mapping[str, int],
    ranges: Sequence[FrameRange],
) -> SlabFigures:
    """The size and the charges of every cache. `at` is the result of `fields`.

    `sizes_at_start` is the result of `cache_sizes` at the start of the window, empty if it was not read. `ranges` are
    those of the census.
    """
    now = cache_sizes(census.memory, at) if sizes_at_start else {}
    errors, error_of_all = _standard_errors(census)

    def change(name: str) -> int | None:
        return now[name] - sizes_at_start.get(name, 0) if name in now else None

    caches = {
        number: CacheFigures(
            name=cache.name[:_NAME_CHARACTERS],
            is_reclaimable=cache.is_reclaimable,
            is_merged=cache.is_merged,
            stride_bytes=cache.stride_bytes,
            count=count,
            error_bytes=error,
            change_bytes=change(cache.name),
        )
        for number, (cache, count, error) in enumerate(zip(census.caches, census.count(), errors, strict=True))
        if count.slabs
    }
    large = large_kmalloc_bytes(census, at, ranges)
    return SlabFigures(caches, read_charges(census, at), large, census.sampled_share, error_of_all)


def _standard_errors(census: SlabCensus) -> tuple[list[int], int]:
    """The standard errors of the bytes of each cache, and of all, in a census of a sample of memory."""
    table = census.slabs.table
    if census.sampled_share >= 1:
        return [0] * len(census.caches), 0
    sizes = np.left_shift(1, table["order"].astype(np.int64) + census.at["PAGE_SHIFT"]).astype(np.float64)

    def error(numbers: npt.NDArray[np.int64]) -> int:
        estimate = census.slabs.estimate(numbers, sizes[numbers])
        # One piece of memory does not show how much others differ: then the error may be all of it.
        return round(estimate.standard_error if math.isfinite(estimate.standard_error) else estimate.total)

    by_cache = [error(np.flatnonzero(table["cache"] == number)) for number in range(len(census.caches))]
    return by_cache, error(np.arange(len(table)))


def slab_record(figures: SlabFigures, meminfo: MemInfo, containers: Mapping[int, ContainerIdentity]) -> SlabCaches:
    """The record, scaled to the node. `containers`: the container of each memory cgroup, by its inode."""
    scale = 1 / figures.sampled_share if figures.sampled_share > 0 else 0.0
    ordered = sorted(figures.caches.values(), key=lambda one: -one.count.slab_bytes)
    listed, others = ordered[: limits.MAX_SLAB_CACHES], ordered[limits.MAX_SLAB_CACHES :]

    def total(caches: list[CacheFigures]) -> int:
        return round(scale * sum(one.count.slab_bytes for one in caches))

    reclaimable = total([one for one in ordered if one.is_reclaimable])
    unreclaimable = total([one for one in ordered if not one.is_reclaimable])
    large = None if figures.large_kmalloc_bytes is None else round(scale * figures.large_kmalloc_bytes)
    kernels_own = meminfo.slab_reclaimable_bytes + meminfo.slab_unreclaimable_bytes
    charges = figures.charges
    return SlabCaches(
        caches=[_cache_record(one, scale) for one in listed],
        other_caches=len(others),
        other_bytes=total(others),
        reclaimable_bytes=reclaimable,
        unreclaimable_bytes=unreclaimable,
        large_kmalloc_bytes=large,
        difference_bytes=kernels_own - reclaimable - unreclaimable - (large or 0),
        charged=None if charges is None else _charges(figures, charges, containers, scale),
        removed_cgroups=charges.removed_cgroups if charges else 0,
        removed_cgroup_bytes=round(scale * charges.removed_bytes) if charges else 0,
        charges_sampled_share=min(1.0, charges.sampled_share) if charges else 1,
        sampled_share=min(1.0, figures.sampled_share),
        error_bytes=figures.error_bytes,
    )


def _cache_record(one: CacheFigures, scale: float) -> SlabCache:
    objects = round(scale * one.count.in_use)
    meaning = purpose(one.name, objects)
    if meaning and one.is_merged:
        meaning += "; or other objects, of caches that are merged with it"
    return SlabCache(
        name=one.name,
        size_bytes=round(scale * one.count.slab_bytes),
        slabs=round(scale * one.count.slabs),
        objects=objects,
        places=round(scale * one.count.objects),
        object_bytes=one.stride_bytes,
        reclaimable=one.is_reclaimable,
        merged=one.is_merged,
        change_bytes=one.change_bytes,
        error_bytes=one.error_bytes,
        purpose=meaning,
    )


def _charges(
    figures: SlabFigures, charges: ObjectCharges, containers: Mapping[int, ContainerIdentity], scale: float
) -> list[SlabCharge]:
    """One charge for each container with all its cgroups, and one for all other cgroups, largest first."""
    objects: dict[ContainerIdentity, float] = {}
    by_cache: dict[ContainerIdentity, dict[str, float]] = {}
    for number, inode, count, size in charges.rows.tolist():
        identity = containers.get(inode, _NO_CONTAINER)
        objects[identity] = objects.get(identity, 0) + count
        caches = by_cache.setdefault(identity, {})
        name = figures.caches[number].name if number in figures.caches else ""
        caches[name] = caches.get(name, 0) + size
    records = [
        SlabCharge(
            container_id=identity.container_id,
            pod_uid=identity.pod_uid,
            size_bytes=round(scale * sum(caches.values())),
            objects=round(scale * objects[identity]),
            caches=[
                ChargedCache(name=name, size_bytes=round(scale * size))
                for name, size in sorted(caches.items(), key=lambda item: -item[1])[: limits.MAX_CHARGED_CACHES]
            ],
        )
        for identity, caches in by_cache.items()
    ]
    return sorted(records, key=lambda record: -record.size_bytes)[: limits.MAX_SLAB_CHARGES]
