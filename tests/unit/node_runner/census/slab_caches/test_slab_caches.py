"""Slab memory by cache and container in the evidence document."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memdiag_api import limits
from memdiag_node.census.slab_caches.object_charges import CHARGE_DTYPE, ObjectCharges, _sample
from memdiag_node.census.slab_caches.sizes import _pages
from memdiag_node.census.slab_caches.slab_caches import CacheFigures, SlabFigures, slab_record
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.meminfo import MemInfo, parse_meminfo
from memdiag_node.render.slab import slab_lines
from memdiag_node.slab.census import CacheCount

MIB = 1 << 20
CONTAINER = ContainerIdentity("c0ffee" * 10, "a-pod")
MEMINFO = parse_meminfo(Path("/proc/meminfo").read_bytes())


def meminfo(reclaimable: int, unreclaimable: int) -> MemInfo:
    return dataclasses.replace(MEMINFO, slab_reclaimable_bytes=reclaimable, slab_unreclaimable_bytes=unreclaimable)


def cache(name: str, size_bytes: int, *, reclaimable: bool = False, change: int | None = None) -> CacheFigures:
    count = CacheCount(
        slabs=size_bytes // 4096, objects=size_bytes // 64, in_use=size_bytes // 128, slab_bytes=size_bytes
    )
    return CacheFigures(name, reclaimable, False, 64, count, 0, change)


def test_objects_of_merged_caches_may_be_of_other_types() -> None:
    caches = {0: replace(cache("biovec-16", 8 * MIB), is_merged=True), 1: cache("biovec-max", 4 * MIB)}
    record = slab_record(SlabFigures(caches), meminfo(0, 12 * MIB), {})
    assert [
        ("or other objects" in one.purpose, "requests of block devices" in one.purpose) for one in record.caches
    ] == [
        (True, True),
        (False, True),
    ]


def test_caches_large_kmalloc_and_the_difference_add_up_to_the_kernels_own_figures() -> None:
    figures = SlabFigures(
        {0: cache("dentry", 8 * MIB, reclaimable=True), 1: cache("kmalloc-64", 4 * MIB, change=MIB)},
        large_kmalloc_bytes=2 * MIB,
    )
    record = slab_record(figures, meminfo(8 * MIB, 7 * MIB), {})
    assert [one.name for one in record.caches] == ["dentry", "kmalloc-64"]
    assert (record.reclaimable_bytes, record.unreclaimable_bytes) == (8 * MIB, 4 * MIB)
    assert record.difference_bytes == MIB
    assert record.charged is None
    text = "\n".join(slab_lines(record))
    assert "65,536 directory entries" in text
    assert "+1.00 MiB" in text
    assert "Large kmalloc blocks, in no cache: 2.00 MiB" in text


def test_the_smallest_caches_are_summed_up() -> None:
    names = [f"cache-{number}" for number in range(limits.MAX_SLAB_CACHES + 5)]
    figures = SlabFigures({number: cache(name, (number + 1) * 4096) for number, name in enumerate(names)})
    record = slab_record(figures, meminfo(0, 0), {})
    assert (record.other_caches, record.other_bytes) == (5, (1 + 2 + 3 + 4 + 5) * 4096)
    assert record.caches[0].name == names[-1]
    assert all(len(line) <= 100 for line in slab_lines(record))


def test_cgroups_of_one_container_are_one_charge_with_its_largest_caches() -> None:
    rows = [(0, 11, 10, 640), (0, 12, 5, 320), (1, 11, 100, 6400), (1, 99, 1, 64)]
    charges = ObjectCharges(np.array(rows, CHARGE_DTYPE), removed_cgroups=3, removed_bytes=64, sampled_share=0.5)
    figures = SlabFigures({0: cache("dentry", MIB), 1: cache("filp", MIB)}, charges, sampled_share=0.5)
    record = slab_record(figures, meminfo(0, 0), {11: CONTAINER, 12: CONTAINER})
    assert record.charged is not None
    first, other = record.charged
    assert (first.container_id, first.pod_uid, first.size_bytes, first.objects) == (
        CONTAINER.container_id,
        "a-pod",
        2 * 7360,
        2 * 115,
    )
    assert [(one.name, one.size_bytes) for one in first.caches] == [("filp", 12800), ("dentry", 1920)]
    assert (other.container_id, other.size_bytes) == ("", 128)
    assert (record.removed_cgroups, record.removed_cgroup_bytes, record.charges_sampled_share) == (3, 128, 0.5)
    assert record.caches[0].size_bytes == 2 * MIB, "half of memory was read"


def test_nothing_is_said_without_slabs() -> None:
    assert slab_lines(slab_record(SlabFigures(), meminfo(0, 0), {})) == []


@pytest.mark.parametrize(
    ("slabs", "objects", "pages"),
    [
        (10, 160, 80),
        (10, 146, 73),  # one small slab
        (10, 132, 66),  # two
        (10, 154, 80),  # some of an order between
        (0, 0, 0),
        (10, 0, 10),  # garbage: no more small slabs than slabs
        (10, 10**9, 80),
    ],
)
def test_pages_of_slabs_of_two_orders(slabs: int, objects: int, pages: int) -> None:
    """The usual slabs have 16 places in 8 pages, the smallest ones 2 in one."""
    assert _pages(slabs, objects, 3 << 16 | 16, 2) == pages


def test_of_a_large_cache_a_part_of_the_slabs_is_read_and_of_a_small_one_all() -> None:
    caches = np.repeat(np.array([0, 1], np.int32), [30_000, 10])
    places = np.full(len(caches), 32)
    kept = _sample(caches, places, np.bincount(caches, places).astype(np.float64))
    counts = np.bincount(caches[kept])
    assert counts[1] == 10
    assert 0 < counts[0] < 30_000 // 2
    assert len(np.unique(kept)) == len(kept)
    assert not len(_sample(caches[:0], places[:0], np.zeros(1)))
