"""Objects and frames looked up in this machine's slabs, against planted objects and the census, while loads run."""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.cpulist import online_cpus
from memdiag_node.procfs.kpageflags import FrameTable, ReadFrames, is_slab
from memdiag_node.procfs.memory_map import FrameRange, read_memory_map
from memdiag_node.slab.cache import Cache
from memdiag_node.slab.census import SlabCensus
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.lookup import LocatedObjects, SlabLookup
from support.slab_census import lean_memory, load_programs, take_slab_census

PLANTED = 1_000
_RUNS = 20
_DEADLINE_SECONDS = 30
_OTHERS_SHARE = 0.1
"""Of freed places, others may allocate some again."""
_SLABS, _FRAMES = 20_000, 100_000
_CHANGED_SHARE = 0.1
"""Of slabs and objects of this machine, others may make or free as many during a test."""
_WRONG_SHARE = 0.001
"""Of what is looked up, as much may have changed during the look-up, and back."""
_ROUNDS = 3
_CHURN = Path(__file__).parents[1] / "planted/churn.py"

Addresses = npt.NDArray[np.uint64]


@pytest.fixture(scope="module")
def at(btf: Btf) -> dict[str, int]:
    return object_layout(btf)


@pytest.fixture(scope="module")
def memory(at: dict[str, int]) -> Iterator[KernelMemory]:
    with lean_memory(at) as opened:
        yield opened


@pytest.fixture(scope="module")
def programs(at: dict[str, int]) -> Iterator[BpfObject]:
    with load_programs(at) as loaded:
        yield loaded


class Frames(NamedTuple):
    """The page frames of this machine."""

    ranges: list[FrameRange]
    read_flags: ReadFrames


@pytest.fixture(scope="module")
def frames() -> Iterator[Frames]:
    with FrameTable(Path("/proc/kpageflags")) as opened:
        yield Frames(list(read_memory_map(Path("/proc"), Path("/sys"), page_bytes=mmap.PAGESIZE)), opened.read)


@pytest.fixture(scope="module", params=["page types", "kpageflags"])
def lookup(
    request: pytest.FixtureRequest, memory: KernelMemory, at: dict[str, int], programs: BpfObject, frames: Frames
) -> SlabLookup:
    """With the kernel's page types, as on this machine, and as where they are not known."""
    unknown = () if request.param == "page types" else ("SLAB_TYPE", "SLAB_BIT")
    layout = {name: value for name, value in at.items() if name not in unknown}
    ranges, read_flags = frames
    cpus = online_cpus(Path("/sys"))
    return SlabLookup(memory, layout, ranges=ranges, read_flags=read_flags, cpus=cpus, programs=programs)


@contextmanager
def churn(*kinds: str) -> Iterator[None]:
    """Healthy loads: processes, files and sockets that come and go."""
    with ExitStack() as loads:
        for kind in kinds:
            load = loads.enter_context(subprocess.Popen([sys.executable, _CHURN, kind], stdout=subprocess.PIPE))
            loads.callback(load.kill)
            assert load.stdout is not None
            assert load.stdout.readline() == b"ready\n"
        yield


class Eventfds:
    """PLANTED eventfds: each has a struct file and a struct eventfd_ctx, by kmem_cache_alloc and kmalloc."""

    def __init__(self, memory: KernelMemory, btf: Btf) -> None:
        self.open = [os.eventfd(0) for _ in range(PLANTED)]
        self.files = np.array([memory.file(fd) for fd in self.open], "<u8")
        self.contexts = memory.peek(self.files + np.uint64(btf.offset_bytes("file", "private_data")))

    def close(self, kept: int = 0) -> None:
        """Close all but the first ones."""
        while len(self.open) > kept:
            os.close(self.open.pop())


@contextmanager
def eventfds(memory: KernelMemory, btf: Btf) -> Iterator[Eventfds]:
    planted = Eventfds(memory, btf)
    try:
        yield planted
    finally:
        planted.close()


def caches_of(found: LocatedObjects) -> set[Cache]:
    assert (found.cache >= 0).all()
    return {found.caches[number] for number in found.cache.tolist()}


def test_planted_objects_are_found_with_their_caches(lookup: SlabLookup, memory: KernelMemory, btf: Btf) -> None:
    with eventfds(memory, btf) as planted:
        files, contexts = lookup.objects(planted.files), lookup.objects(planted.contexts)
    (filp,), (kmalloc,) = caches_of(files), caches_of(contexts)
    assert filp.name == "filp"
    assert filp.stride_bytes >= btf.size_bytes("file")
    assert kmalloc.name.startswith("kmalloc-")
    assert btf.size_bytes("eventfd_ctx") <= kmalloc.stride_bytes <= 2 * btf.size_bytes("eventfd_ctx")
    assert not filp.is_reclaimable
    assert files.is_allocated.all()
    assert contexts.is_allocated.all()


def test_freed_objects_become_free_and_those_beside_them_do_not(
    lookup: SlabLookup, memory: KernelMemory, btf: Btf
) -> None:
    with eventfds(memory, btf) as planted:
        addresses = np.concatenate((planted.files, planted.contexts))
        is_kept = np.tile(np.arange(PLANTED) < PLANTED // 2, 2)
        planted.close(kept=PLANTED // 2)
        end = time.monotonic() + _DEADLINE_SECONDS
        found = lookup.objects(addresses)
        # The kernel frees some of them after a grace period.
        while found.is_allocated[~is_kept].mean() > _OTHERS_SHARE and time.monotonic() < end:
            time.sleep(0.1)
            found = lookup.objects(addresses)
    assert found.is_allocated[is_kept].all()
    assert found.is_allocated[~is_kept].mean() <= _OTHERS_SHARE


def test_planted_objects_are_allocated_in_every_run_while_others_come_and_go(
    lookup: SlabLookup, memory: KernelMemory, btf: Btf
) -> None:
    with churn("fork", "files", "sockets"), eventfds(memory, btf) as planted:
        addresses = np.concatenate((planted.files, planted.contexts))
        found = [lookup.objects(addresses).is_allocated for _ in range(_RUNS)]
    assert [int(one.sum()) for one in found] == [len(addresses)] * _RUNS


def test_what_starts_no_object_of_a_slab_is_in_none(lookup: SlabLookup, memory: KernelMemory, btf: Btf) -> None:
    with eventfds(memory, btf) as planted:
        middle = planted.files + np.uint64(8)
        stack = memory.word(memory.current_task() + btf.offset_bytes("task_struct", "stack"))  # vmalloc
        code = memory.word(int(planted.files[0]) + btf.offset_bytes("file", "f_op"))
        outside = lookup.objects([0, 1, stack, code, 2**64 - 1, *middle.tolist()])
        inside = lookup.objects(planted.files)
    assert (outside.cache == -1).all()
    assert not outside.is_allocated.any()
    assert (inside.cache >= 0).all()


@pytest.fixture
def census(memory: KernelMemory, btf: Btf, at: dict[str, int], programs: BpfObject) -> SlabCensus:
    return take_slab_census(memory, btf, at=at, programs=programs)


def places_of(census: SlabCensus, cache: int, most: int) -> Addresses:
    """Places of some slabs of a cache, allocated or not."""
    table = census.slabs.table
    rows = table[table["cache"] == cache][:most]
    pads, stride = np.uint64(census.caches[cache].left_pad_bytes), np.uint64(census.caches[cache].stride_bytes)
    starts = rows["frame"] * np.uint64(mmap.PAGESIZE) + np.uint64(census.linear_base) + pads
    places = [
        start + np.arange(count, dtype="<u8") * stride for start, count in zip(starts, rows["objects"], strict=True)
    ]
    return np.concatenate([np.empty(0, "<u8"), *places])


def test_the_places_of_all_caches_agree_with_the_census(lookup: SlabLookup, census: SlabCensus) -> None:
    """One look-up has all caches, in no order. What the census says before and after may still change between.

    Processes come and go on this machine, and use the same places again and again: a place counts as wrong if it is
    wrong in all of _ROUNDS, and the census agreed with itself in each.
    """
    chosen = {number: places_of(census, number, 20) for number in range(len(census.caches))}
    places = np.concatenate(list(chosen.values()))
    owner = np.concatenate([np.full(len(some), number) for number, some in chosen.items()])
    order = np.random.default_rng(1).permutation(len(places))
    place_of = np.argsort(order)

    def by_census() -> npt.NDArray[np.bool_]:
        return np.concatenate([census.still_allocated(number, some) for number, some in chosen.items()])

    is_wrong = np.ones(len(places), np.bool_)
    for _ in range(_ROUNDS):
        before = by_census()
        found = lookup.objects(places[order])
        is_steady = before == by_census()
        is_of_cache = found.cache[place_of] == owner
        is_wrong &= is_steady & ((found.is_allocated[place_of] != before) | (before & ~is_of_cache))
    assert [cache.address for cache in found.caches] == [cache.address for cache in census.caches]
    assert np.mean(is_wrong) <= _WRONG_SHARE
    assert min(np.mean(before), np.mean(~before)) > 10 * _WRONG_SHARE  # many are allocated, and many are free
    assert np.mean(is_steady) > 1 - _CHANGED_SHARE
    assert np.mean(is_of_cache) > 1 - _CHANGED_SHARE  # of free places too


def test_all_frames_of_slabs_have_the_cache_of_the_census(lookup: SlabLookup, census: SlabCensus) -> None:
    table = census.slabs.table
    rows = table[np.unique(np.linspace(0, len(table) - 1, _SLABS).astype(np.int64))]
    sizes = np.left_shift(1, rows["order"].astype(np.int64))
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    assert within.any()
    found = lookup.caches_of_frames(np.repeat(rows["frame"], sizes) + within.astype("<u8"))
    pages = rows["frame"] * np.uint64(census.at["STRUCT_PAGE_BYTES"]) + np.uint64(census.first_page)
    addresses = np.array([cache.address for cache in census.caches], "<u8")[rows["cache"]]
    is_left = census.memory.peek(pages + np.uint64(census.at["SLAB_CACHE"])) == addresses
    assert np.mean(is_left) > 1 - _CHANGED_SHARE
    assert np.mean((found != np.repeat(rows["cache"], sizes))[np.repeat(is_left, sizes)]) <= _WRONG_SHARE


def test_only_frames_of_slabs_have_a_cache(lookup: SlabLookup, frames: Frames) -> None:
    """Most frames between slabs are of files and processes."""
    last = frames.ranges[-1]
    count = min(_FRAMES, last.end - last.first)
    before = is_slab(frames.read_flags(last.first, count))
    found = lookup.caches_of_frames(np.arange(last.first, last.first + count)) >= 0
    after = is_slab(frames.read_flags(last.first, count))
    assert np.mean(found & ~before & ~after) <= _WRONG_SHARE
    assert np.mean(~found & before & after) <= _WRONG_SHARE
    assert np.count_nonzero(before) > 1_000
    assert (lookup.caches_of_frames([last.end, last.end + 2**40]) == -1).all()
