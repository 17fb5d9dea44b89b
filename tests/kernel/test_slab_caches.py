"""Slab memory by cache and by container on this machine, against the kernel's own figures and planted objects."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.census.slab import SlabCaches
from memdiag_node.census.slab_caches import slab_caches
from memdiag_node.cgroups.tree import container_cgroups, memory_cgroup_layout
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.memory_map import read_memory_map
from planted.allocations import Allocator
from support.memory_cgroup import container_cgroup
from support.slab_census import opened_memory, take_slab_census

_SOCKETS = 2_000
_MANY_SOCKETS = 15_000  # much more than the sampling error of all charges of the node
_LARGE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def memory(btf: Btf) -> Iterator[KernelMemory]:
    with opened_memory(btf) as opened:
        yield opened


@pytest.fixture(scope="module")
def at(btf: Btf) -> dict[str, int]:
    return slab_caches.fields(btf)


def _record(memory: KernelMemory, btf: Btf, at: dict[str, int], before: dict[str, int]) -> SlabCaches:
    census = take_slab_census(memory, btf)
    ranges = read_memory_map(Path("/proc"), Path("/sys"), page_bytes=mmap.PAGESIZE)
    figures = slab_caches.read_slab_caches(census, at, sizes_at_start=before, ranges=ranges)
    meminfo = parse_meminfo(Path("/proc/meminfo").read_bytes())
    return slab_caches.slab_record(figures, meminfo, container_cgroups(memory, memory_cgroup_layout(btf)))


def test_the_sum_with_large_kmalloc_agrees_with_meminfo(memory: KernelMemory, btf: Btf, at: dict[str, int]) -> None:
    record = _record(memory, btf, at, {})
    counted = record.reclaimable_bytes + record.unreclaimable_bytes + (record.large_kmalloc_bytes or 0)
    assert abs(record.difference_bytes) < 0.01 * counted
    assert counted == pytest.approx(
        sum(cache.size_bytes for cache in record.caches) + record.other_bytes + (record.large_kmalloc_bytes or 0)
    )


def test_a_merged_cache_is_known_as_the_kernel_shows_it(memory: KernelMemory, btf: Btf) -> None:
    """/sys/kernel/slab has the number of other caches that were merged into each (mm/slub.c, aliases_show)."""
    aliases = {path.parent.name: int(path.read_text()) for path in Path("/sys/kernel/slab").glob("*/aliases")}
    seen = {cache.name: cache.is_merged for cache in take_slab_census(memory, btf).caches if cache.name in aliases}
    assert seen == {name: aliases[name] > 0 for name in seen}
    assert len(set(seen.values())) == 2


def test_counters_of_the_kernel_agree_with_the_census(memory: KernelMemory, btf: Btf, at: dict[str, int]) -> None:
    """Of caches that others on this machine do not change meanwhile."""
    before = slab_caches.cache_sizes(memory, at)
    census = take_slab_census(memory, btf)
    after = slab_caches.cache_sizes(memory, at)
    compared = 0
    for cache, count in zip(census.caches, census.count(), strict=True):
        if count.slab_bytes >= _LARGE_BYTES and after[cache.name] == pytest.approx(before[cache.name], rel=0.005):
            assert before[cache.name] == pytest.approx(count.slab_bytes, rel=0.05), cache.name
            compared += 1
    assert compared


def test_sockets_of_a_container_are_charged_to_it_and_their_cache_grows(
    memory: KernelMemory, btf: Btf, at: dict[str, int]
) -> None:
    before = slab_caches.cache_sizes(memory, at)
    with container_cgroup() as container, Allocator() as child:
        container.add(child.pid)
        child.do("slab", _SOCKETS)
        record = _record(memory, btf, at, before)
    assert record.charged is not None
    (charge,) = [one for one in record.charged if one.container_id == container.container_id]
    assert charge.pod_uid == container.pod_uid
    charged = {cache.name: cache.size_bytes for cache in charge.caches}
    (cache,) = [cache for cache in record.caches if cache.name == "TCPv6"]
    assert charged["TCPv6"] == pytest.approx(_SOCKETS * cache.object_bytes, rel=0.02)
    assert cache.objects >= _SOCKETS
    assert cache.purpose.startswith(f"{cache.objects:,} sockets")
    assert cache.change_bytes is not None
    assert cache.change_bytes >= 0.5 * _SOCKETS * cache.object_bytes


def test_objects_outlive_their_removed_cgroup(memory: KernelMemory, btf: Btf, at: dict[str, int]) -> None:
    with Allocator() as child:
        with container_cgroup() as container:
            container.add(child.pid)
            child.do("slab", _MANY_SOCKETS)
            before = _record(memory, btf, at, {})
            (container.path.parents[1] / "cgroup.procs").write_text(str(child.pid))
        after = _record(memory, btf, at, {})
    assert before.charged is not None
    (charge,) = [one for one in before.charged if one.container_id == container.container_id]
    assert charge.size_bytes > _MANY_SOCKETS * 2_000
    # Some objects of the node's own removed cgroups may vanish meanwhile.
    assert after.removed_cgroup_bytes - before.removed_cgroup_bytes > 0.8 * charge.size_bytes
    assert container.container_id not in [one.container_id for one in after.charged or ()]
