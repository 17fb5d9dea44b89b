"""A census of the slabs of this machine, for tests."""

import mmap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memdiag_node.census.frames.block_heads import large_kmalloc_bytes, large_kmalloc_layout
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import KernelMemory, open_memory
from memdiag_node.procfs.cpulist import online_cpus
from memdiag_node.procfs.kpageflags import open_frame_table
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.slab.census import SlabCensus
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.page_scan import load_slab_programs
from memdiag_node.sockets.source import SocketSource


@contextmanager
def opened_memory(btf: Btf) -> Iterator[KernelMemory]:
    """Kernel memory, read by the programs of the socket scan."""
    with SocketSource(btf) as source:
        yield source.memory


@contextmanager
def lean_memory(at: Mapping[str, int]) -> Iterator[KernelMemory]:
    """Kernel memory, read as in a run without the socket scan. `at` is the result of `object_layout`."""
    with ExitStack() as parts:
        yield open_memory(at, parts)


def load_programs(at: Mapping[str, int]) -> BpfObject:
    """What a census loads itself otherwise."""
    return load_slab_programs(at, online_cpus(Path("/sys")))


def take_slab_census(
    memory: KernelMemory, btf: Btf, *, at: Mapping[str, int] | None = None, programs: BpfObject | None = None
) -> SlabCensus:
    """Read all slabs now. `at` is the result of `object_layout`, `programs` of `load_programs`: both take time."""
    with ExitStack() as files:
        flags = open_frame_table(Path("/proc/kpageflags"), files)
        assert flags
        return SlabCensus(
            memory,
            object_layout(btf) if at is None else at,
            ranges=read_memory_map(Path("/proc"), Path("/sys"), page_bytes=mmap.PAGESIZE),
            read_flags=flags.read,
            cpus=online_cpus(Path("/sys")),
            programs=programs,
        )


def large_kmalloc(census: SlabCensus, btf: Btf) -> int | None:
    """Bytes of large kmalloc, which meminfo counts as slab and which has no cache. None if the kernel marks none."""
    ranges = read_memory_map(Path("/proc"), Path("/sys"), page_bytes=mmap.PAGESIZE)
    return large_kmalloc_bytes(census, large_kmalloc_layout(btf), ranges)


def surviving_places(census: SlabCensus) -> list[int]:
    """The places of each cache in slabs of the census that are slabs of this cache still.

    Slabinfo, read between the census and this, counted them: it may count fewer than the census did if a cache
    grew and shrank, but not fewer than these.
    """
    table = census.slabs.table
    pages = table["frame"] * np.uint64(census.at["STRUCT_PAGE_BYTES"]) + np.uint64(census.first_page)
    addresses = np.array([cache.address for cache in census.caches], "<u8")
    is_same = census.memory.peek(pages + np.uint64(census.at["SLAB_CACHE"])) == addresses[table["cache"]]
    still = table[is_same]
    places: list[int] = np.bincount(still["cache"], still["objects"], len(addresses)).astype(np.int64).tolist()
    return places


COUNTED_SLABS = 10_000
"""mm/slub.c, MAX_PARTIAL_TO_SCAN: the kernel counts the free objects of so many slabs with free places."""


class SlabinfoRow(NamedTuple):
    """One cache, as /proc/slabinfo counts it."""

    active: int
    """Allocated objects, and the free ones on the CPUs' lists."""
    places: int
    uncertain: int
    """How much `active` may be wrong by: of a list longer than COUNTED_SLABS, Linux 6.10+ estimates the rest."""


def slabinfo_rows() -> dict[str, SlabinfoRow]:
    """Each cache, as /proc/slabinfo counts it."""
    rows = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
    return {row[0]: slabinfo_row(int(row[1]), int(row[2]), int(row[4])) for row in rows}


def slabinfo_row(active: int, places: int, places_per_slab: int) -> SlabinfoRow:
    """What slabinfo says, and how uncertain it is."""
    return SlabinfoRow(active, places, max(places - COUNTED_SLABS * places_per_slab, 0))
