"""Which slab cache given objects and page frames are in, and which of the objects are allocated now.

Only the slabs that contain them are read. So the answer takes a moment and is exact on a machine of any size, where a
census reads a sample of memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import KernelMemory, open_memory
from memdiag_node.procfs.kpageflags import ReadFrames
from memdiag_node.procfs.memory_map import FrameRange
from memdiag_node.slab.access import SlabAccess, open_access
from memdiag_node.slab.cache import Cache
from memdiag_node.slab.frames import slabs_of_frames
from memdiag_node.slab.free_lists import cpu_lists
from memdiag_node.slab.guarded import guarded_objects
from memdiag_node.slab.page_scan import load_slab_programs
from memdiag_node.slab.places import Places
from memdiag_node.slab.sheaves import sheaf_objects
from memdiag_node.slab.slabs import is_consistent, is_guarded_page

_MAX_PLACES = 1 << 21
"""Of slabs that are read at once, which takes 3 bytes for each place."""
_MAX_COPIES = 1 << 8
"""CPUs times caches whose lists are read at once: each CPU may have some hundred free objects of a cache."""
_GUARDED_PAGES = 1 << 7
"""As many are read at once, of 4 KiB each."""


@dataclass(frozen=True, slots=True)
class SlabMemory:
    """Kernel memory through which slabs are read."""

    memory: KernelMemory
    at: Mapping[str, int]
    """The result of object_layout."""
    programs: BpfObject | None


def open_slab_memory(at: Mapping[str, int], cpus: Sequence[int], opened: ExitStack) -> SlabMemory:
    """Load what reads kernel memory and slabs, until `opened` is closed. For `cpus` see `load_slab_programs`.

    The programs are loaded here rather than when they are needed: compiling takes much memory, of which there is most
    before a window. Raises BpfError if memory cannot be read; slabs are read without the programs where those fail.
    """
    memory = open_memory(at, opened)
    programs = None
    with suppress(BpfError):
        programs = opened.enter_context(load_slab_programs(at, cpus))
    return SlabMemory(memory, at, programs)


@dataclass(frozen=True, slots=True)
class LocatedObjects:
    """What is known about each of some addresses."""

    caches: Sequence[Cache]
    cache: npt.NDArray[np.int32]
    """The index in `caches`; -1 for an address in no slab, or one that does not start an object."""
    is_allocated: npt.NDArray[np.bool_]
    """False also where `cache` is -1. Objects on a list of free objects, of a slab, a CPU or a node, are free."""
    is_gone: npt.NDArray[np.bool_]
    """Whether a slab object that was there must have been freed with its slab: the memory is of another kind now, or of
    a slab in which no object starts there."""


class SlabLookup:
    """Looks up objects and frames in the slabs of the node, as they are when a method is called.

    The parameters are those of `SlabCensus`; caches that are created later are not known. Raises BpfError if this
    kernel has another slab allocator, or if its linear map and its array of struct pages cannot be found.
    """

    def __init__(
        self,
        memory: KernelMemory,
        at: Mapping[str, int],
        *,
        ranges: Sequence[FrameRange],
        read_flags: ReadFrames,
        cpus: Sequence[int],
        programs: BpfObject | None = None,
    ) -> None:
        with ExitStack() as own:
            self._access, _ = open_access(
                memory, at, ranges=ranges, read_flags=read_flags, cpus=cpus, programs=programs, own=own
            )
        self._read_flags = read_flags
        self._frame_count = max(one.end for one in ranges)
        self.caches = self._access.caches
        self.sees_cpu_lists = len(self._access.per_cpu) > 0
        """Whether free objects on the CPUs' own lists are known; if not, they look allocated."""

    def objects(self, addresses: npt.ArrayLike) -> LocatedObjects:
        """The cache of the object that starts at each address, and whether it is allocated now."""
        return located_objects(
            self._access, np.asarray(addresses, "<u8"), frame_count=self._frame_count, read_flags=self._read_flags
        )

    def caches_of_frames(self, frames: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """The cache of the slab that each frame is in, as index in `caches`; -1 if it is in no slab now."""
        found = slabs_of_frames(
            self._access, np.asarray(frames, "<u8"), frame_count=self._frame_count, read_flags=self._read_flags
        )
        caches = np.append(found.table["cache"], np.int32(-1)).astype(np.int32)
        return caches[found.numbers]


def located_objects(
    access: SlabAccess, addresses: npt.NDArray[np.uint64], *, frame_count: int, read_flags: ReadFrames
) -> LocatedObjects:
    """See `SlabLookup.objects`; the other parameters are those of `slabs_of_frames`."""
    frames = access.frames(addresses)
    table, numbers, is_gone = slabs_of_frames(access, frames, frame_count=frame_count, read_flags=read_flags)
    is_allocated = np.zeros(len(addresses), np.bool_)
    result = LocatedObjects(access.caches, np.full(len(addresses), -1, np.int32), is_allocated, is_gone)
    shape = {"page_shift": access.at["PAGE_SHIFT"]}
    is_guarded = is_guarded_page(table, access.strides, access.linear_base, **shape)
    is_slab = is_consistent(table, access.strides, **shape) & ~is_guarded
    _locate_guarded(access, addresses, result, table, np.where(_at(is_guarded, numbers), numbers, -1))
    # The objects of slabs that are read together follow each other if they are ordered.
    chosen = np.flatnonzero(_at(is_slab, numbers))
    chosen = chosen[np.argsort(numbers[chosen], kind="stable")]
    for first, end in _pieces(table["objects"] * is_slab.astype(np.int64)):
        piece = chosen[slice(*np.searchsorted(numbers[chosen], (first, end)))]
        rows = table[first:end][is_slab[first:end]]
        result.cache[piece], result.is_allocated[piece] = _locate(access, addresses[piece], rows)
        result.is_gone[piece] = result.cache[piece] < 0
    return result


def _at(values: npt.NDArray[np.bool_], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """The value with each number; False for -1."""
    return np.append(values, False)[numbers]


def _pieces(places: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The first and the end of runs of slabs with at most _MAX_PLACES places each."""
    ends = np.cumsum(places)
    first = 0
    while first < len(places):
        before = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + _MAX_PLACES, side="right")))
        yield first, end
        first = end


def _locate(
    access: SlabAccess, addresses: npt.NDArray[np.uint64], rows: npt.NDArray[np.void]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """The cache of the object that starts at each address in these slabs, -1 for none; and whether it is allocated."""
    starts, numbers = access.find(rows, addresses)
    is_object = (starts == addresses) & (numbers >= 0)
    cache = np.where(is_object, rows["cache"][numbers] if len(rows) else -1, -1).astype(np.int32)
    places = access.places(rows)
    _mark_free_on_cpus(access, rows, places)
    slots = places.slots(addresses[is_object])
    is_allocated = np.zeros(len(addresses), np.bool_)
    # A slab that was freed meanwhile has no objects.
    is_there = access.is_of(rows["frame"], rows["cache"])[numbers[is_object]]
    is_allocated[is_object] = ~places.is_free[slots] & is_there
    return cache, is_allocated


def _mark_free_on_cpus(access: SlabAccess, rows: npt.NDArray[np.void], places: Places) -> None:
    """Mark free objects on lists and in sheaves of CPUs and nodes, of some caches at a time."""
    numbers = np.unique(rows["cache"])
    at_once = max(1, _MAX_COPIES // max(1, len(access.per_cpu)))
    for first in range(0, len(numbers), at_once):
        group = numbers[first : first + at_once]
        caches = [access.caches[number] for number in group.tolist()]

        def is_possible(
            owners: npt.NDArray[np.int64], objects: npt.NDArray[np.uint64], group: npt.NDArray[np.int32] = group
        ) -> npt.NDArray[np.bool_]:
            """Not an object in a slab of another cache. Most lists are of slabs that are not looked at."""
            _, slabs = access.find(rows, objects)
            result: npt.NDArray[np.bool_] = (slabs < 0) | (rows["cache"][slabs] == group[owners])
            return result

        on_lists = cpu_lists(
            access.memory, access.at, caches, access.per_cpu, is_possible, max_steps=places.most_places
        )
        owners, in_sheaves = sheaf_objects(access.memory, access.at, caches, access.per_cpu, nodes=access.nodes)
        places.mark_free(on_lists.objects)
        places.mark_free(in_sheaves[is_possible(owners, in_sheaves)])


def _locate_guarded(
    access: SlabAccess,
    addresses: npt.NDArray[np.uint64],
    result: LocatedObjects,
    table: npt.NDArray[np.void],
    numbers: npt.NDArray[np.int64],
) -> None:
    """Complete `result` for addresses in pages of KFENCE: `numbers` are indexes in `table`, -1 for all others.

    A page whose object is freed cannot be read: an address in it is taken as the object's.
    """
    chosen = np.flatnonzero(numbers >= 0)
    pages, at = np.unique(numbers[chosen], return_inverse=True)
    found = [np.empty(0, "<u8")]
    for first in range(0, len(pages), _GUARDED_PAGES):
        frames = table["frame"][pages[first : first + _GUARDED_PAGES]]
        found.append(guarded_objects(access.memory, access.at, frames, access.linear_base))
    objects = np.concatenate(found)[at]
    is_object = (objects == 0) | (objects == addresses[chosen])
    result.cache[chosen[is_object]] = table["cache"][numbers[chosen[is_object]]]
    result.is_allocated[chosen] = objects == addresses[chosen]
