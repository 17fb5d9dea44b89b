"""The objects of all slab caches: how many there are, where each allocated one is, and what its fields say.

The contents of objects are read to be counted: addresses stay inside the runner.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.kpageflags import ReadFrames
from memdiag_node.procfs.memory_map import FrameRange
from memdiag_node.slab.access import open_access
from memdiag_node.slab.free_lists import cpu_lists
from memdiag_node.slab.guarded import guarded_objects
from memdiag_node.slab.page_scan import page_scanner
from memdiag_node.slab.places import PIECE_OBJECTS, Places, spread
from memdiag_node.slab.sheaves import MAX_SHEAF_OBJECTS, sheaf_objects
from memdiag_node.slab.slabs import MAX_SLABS, ReadPiece, Slabs, piece_reader, read_slabs


@dataclass(frozen=True, slots=True)
class CacheCount:
    """The size of one cache in the slabs that were read. Multiply by 1 / `sampled_share` for the node."""

    slabs: int
    objects: int
    """Places for objects."""
    in_use: int
    """Allocated objects."""
    slab_bytes: int
    """All its slabs, with their unused places and remainders."""
    uncertain: int = 0
    """How much `in_use` may be wrong by: objects on lists of the CPUs that could not be read, or kept changing."""
    vanished: int = 0
    """Places of slabs that were freed during the search: others may have taken their place, and are counted too."""


class SlabCensus:
    """A census of the slabs of the node, taken when it is constructed.

    `at` is the result of `object_layout`, `cpus` the online CPUs. `late` and `max_slabs` are those of `read_slabs`.
    `programs` is the result of `load_slab_programs` for the same CPUs, where several censuses are taken.
    Raises BpfError if this kernel has another slab allocator, or if its linear map and its array of struct pages cannot
    be found.
    """

    def __init__(
        self,
        memory: KernelMemory,
        at: Mapping[str, int],
        *,
        ranges: Sequence[FrameRange],
        read_flags: ReadFrames,
        cpus: Sequence[int],
        late: Callable[[], bool] = lambda: False,
        max_slabs: int = MAX_SLABS,
        programs: BpfObject | None = None,
    ) -> None:
        self.memory = memory
        self.at = at
        with ExitStack() as own:
            self._access, bpf = open_access(
                memory, at, ranges=ranges, read_flags=read_flags, cpus=cpus, programs=programs, own=own
            )
            self.caches = self._access.caches
            self.first_page = self._access.first_page
            """Address of frame 0's struct page."""
            self.linear_base = self._access.linear_base
            """Address of frame 0 in the linear map."""
            self.sees_cpu_lists = len(self._access.per_cpu) > 0
            """Whether free objects on the CPUs' own lists could be excluded."""
            self._slabs = read_slabs(
                self._piece_reader(bpf, read_flags),
                self._access.strides,
                ranges=ranges,
                linear_base=self.linear_base,
                page_shift=at["PAGE_SHIFT"],
                late=late,
                max_slabs=max_slabs,
            )
        self._by_cache = np.argsort(self._slabs.table["cache"], kind="stable").astype(np.int32)
        self._cache_ends = np.bincount(self._slabs.table["cache"], minlength=len(self.caches)).cumsum()
        self._vanished = self._count_vanished()
        self._guarded = self._read_guarded()
        self._uncertain = np.zeros(len(self.caches), np.int64)
        self._uncertain_now: dict[int, int] = {}
        self._subtract_free_on_cpus(len(cpus))
        self._counts = self._count()

    def _count_vanished(self) -> npt.NDArray[np.int64]:
        table = self._slabs.table
        gone = table[~self._access.is_of(table["frame"], table["cache"])]
        return np.bincount(gone["cache"], gone["objects"], len(self.caches)).astype(np.int64)

    def _piece_reader(self, bpf: BpfObject | None, read_flags: ReadFrames) -> ReadPiece:
        """Reads the types of struct pages; where that is not possible, /proc/kpageflags."""
        addresses = self._access.addresses
        if bpf is not None and "HAS_PAGE_SCAN" in self.at:
            with suppress(BpfError):
                return page_scanner(bpf, self.at, addresses, first_page=self.first_page)
        return piece_reader(self.memory, self.at, addresses, first_page=self.first_page, read_flags=read_flags)

    @property
    def sampled_share(self) -> float:
        """Of the node's memory that was read: below 1, what was counted is a random sample."""
        return self._slabs.sampled_share

    @property
    def slabs(self) -> Slabs:
        """The slabs; `cache` in their table is an index of `caches`."""
        return self._slabs

    @property
    def uncertain_objects(self) -> int:
        """Objects in the results of `objects`, or missing there, that may be free or not."""
        return sum(self._uncertain_now.values())

    def count(self) -> list[CacheCount]:
        """The size of each cache, in the order of `caches`."""
        return self._counts

    def _count(self) -> list[CacheCount]:
        table, size = self._slabs.table, len(self.caches)
        frames = np.left_shift(1, table["order"].astype(np.int64))
        slabs = np.bincount(table["cache"], minlength=size)
        places = np.bincount(table["cache"], table["objects"], size).astype(np.int64)
        in_use = np.bincount(table["cache"], table["in_use"], size).astype(np.int64)
        in_use += np.bincount(self._guarded_caches(), minlength=size)
        slab_frames = np.bincount(table["cache"], frames, size).astype(np.int64)
        columns = (slabs, places, in_use, slab_frames << self.at["PAGE_SHIFT"], self._uncertain, self._vanished)
        return [CacheCount(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def named(self, *names: str) -> list[int]:
        """The numbers of the caches with these names."""
        return [number for number, cache in enumerate(self.caches) if cache.name in names]

    def _slabs_of(self, cache: int) -> npt.NDArray[np.int64]:
        """The indexes in `slabs.table` of the slabs of a cache, ascending."""
        first = int(self._cache_ends[cache - 1]) if cache else 0
        return self._by_cache[first : int(self._cache_ends[cache])].astype(np.int64)

    def objects(self, cache: int) -> npt.NDArray[np.uint64]:
        """Addresses of the allocated objects of a cache (its number), ascending.

        Objects that are allocated or freed meanwhile may be missing or extra: `still_allocated` checks afterwards.
        """
        places = self._places(cache, self._slabs_of(cache))
        guarded = self._guarded_of(cache)
        return np.sort(np.concatenate((places.allocated(), guarded))) if len(guarded) else places.allocated()

    def spread_objects(self, cache: int, limit: int) -> tuple[npt.NDArray[np.uint64], int]:
        """Up to `limit` of the allocated objects of a cache, spread evenly over all, ascending; and how many all are.

        See `objects`. If some are left out, so are all objects of KFENCE.
        """
        places = self._places(cache, self._slabs_of(cache))
        guarded, total = self._guarded_of(cache), places.allocated_objects
        if total > limit:
            return places.allocated(spread(total, limit)), total + len(guarded)
        return np.sort(np.concatenate((places.allocated(), guarded))), total + len(guarded)

    def sample(self, cache: int, slabs: int, rng: np.random.Generator) -> npt.NDArray[np.uint64]:
        """Addresses of the allocated objects in up to `slabs` slabs of a cache, chosen at random; see `objects`."""
        numbers = self._slabs_of(cache)
        if len(numbers) > slabs:
            numbers = np.sort(rng.choice(numbers, slabs, replace=False))
        return self._places(cache, numbers, remember=False).allocated()

    def still_allocated(self, cache: int, objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether each of these objects of a cache is in a slab of it, and in use, when this is called."""
        is_used = np.zeros(len(self._slabs.table), np.bool_)
        for start in range(0, len(objects), PIECE_OBJECTS):
            _, numbers = self.find(objects[start : start + PIECE_OBJECTS])
            is_used[numbers[numbers >= 0]] = True
        places = self._places(cache, np.flatnonzero(is_used), remember=False)
        result = np.zeros(len(objects), np.bool_)
        for start in range(0, len(objects) if len(places.is_free) else 0, PIECE_OBJECTS):
            slots = places.slots(objects[start : start + PIECE_OBJECTS])
            result[start : start + len(slots)] = (slots >= 0) & ~places.is_free[np.maximum(slots, 0)]
        guarded = self._guarded_of(cache)
        return result | np.isin(objects, guarded) if len(guarded) else result

    def find(self, addresses: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The object that each address points into, and the index of its slab in `slabs.table`; 0 and -1 for none.

        The object need not be allocated. Objects of KFENCE are not found: they are in no slab.
        """
        return self._access.find(self._slabs.table, addresses)

    def read(self, objects: npt.NDArray[np.uint64], offset_bytes: int, width_bytes: int = 8) -> npt.NDArray[np.uint64]:
        """A field of 1 to 8 bytes of each object; 0 where it cannot be read."""
        words = self.memory.peek(objects + np.uint64(offset_bytes))
        return words if width_bytes == 8 else words & np.uint64((1 << 8 * width_bytes) - 1)  # noqa: PLR2004 - a word

    def _places(self, cache: int, numbers: npt.NDArray[np.int64], *, remember: bool = True) -> Places:
        """The places of those of these slabs that still belong to a cache, with what is free now marked.

        With `remember`, the objects of lists that could not be followed are counted.
        """
        places = self._access.places_of_cache(cache, self._slabs.table[numbers])
        self._mark_free_on_cpus(cache, places)
        if remember:
            self._uncertain_now[cache] = places.uncertain_objects + int(self._uncertain[cache])
        return places

    def _mark_free_on_cpus(self, cache: int, places: Places) -> None:
        caches = [self.caches[cache]]
        on_lists = cpu_lists(
            self.memory,
            self.at,
            caches,
            self._access.per_cpu,
            lambda _, objects: places.slots(objects) >= 0,
            max_steps=places.most_places,
        )
        places.mark_free(on_lists.objects)
        per_cpu, nodes = self._access.per_cpu, self._access.nodes
        places.mark_free(sheaf_objects(self.memory, self.at, caches, per_cpu, nodes=nodes)[1])

    def _subtract_free_on_cpus(self, cpus: int) -> None:
        """Count free objects on the CPUs' lists and in sheaves as free: their slabs count them as in use."""
        table = self._slabs.table
        most_places = int(table["objects"].max(initial=0))

        def is_object(caches: npt.NDArray[np.int64], objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
            starts, numbers = self.find(objects)
            result: npt.NDArray[np.bool_] = (starts == objects) & (numbers >= 0)
            result[result] = table["cache"][numbers[result]] == caches[result]
            return result

        per_cpu, nodes = self._access.per_cpu, self._access.nodes
        on_lists = cpu_lists(self.memory, self.at, self.caches, per_cpu, is_object, max_steps=most_places)
        owners, in_sheaves = sheaf_objects(self.memory, self.at, self.caches, per_cpu, nodes=nodes)
        free = np.unique(np.concatenate((on_lists.objects, in_sheaves[is_object(owners, in_sheaves)])))
        numbers, free_in_slab = np.unique(self.find(free)[1], return_counts=True)
        table["in_use"][numbers] -= np.minimum(free_in_slab, table["in_use"][numbers]).astype("<u2")
        most_of_cache = np.zeros(len(self.caches), np.int64)
        np.maximum.at(most_of_cache, table["cache"], table["objects"].astype(np.int64))
        np.add.at(self._uncertain, on_lists.unfollowed, most_of_cache[on_lists.unfollowed])
        if not self.sees_cpu_lists:
            in_sheaf = MAX_SHEAF_OBJECTS if "HAS_SHEAVES" in self.at else 0
            self._uncertain += cpus * (most_of_cache + in_sheaf)

    def _read_guarded(self) -> npt.NDArray[np.uint64]:
        """The object of each page of `slabs.guarded`; 0 if it is freed."""
        frames = self._slabs.guarded["frame"]
        objects = np.zeros(len(frames), "<u8")
        found = guarded_objects(self.memory, self.at, frames, self.linear_base)
        objects[: len(found)] = found
        return objects

    def _guarded_caches(self) -> npt.NDArray[np.int64]:
        caches: npt.NDArray[np.int64] = self._slabs.guarded["cache"][self._guarded != 0].astype(np.int64)
        return caches

    def _guarded_of(self, cache: int) -> npt.NDArray[np.uint64]:
        """The allocated objects of a cache in KFENCE's pages that are still there."""
        chosen = self._slabs.guarded["cache"] == cache
        if not chosen.any():
            return np.empty(0, "<u8")
        frames, before = self._slabs.guarded["frame"][chosen], self._guarded[chosen]
        is_same = self._access.is_of(frames, cache)
        now = np.zeros(len(frames), "<u8")
        found = guarded_objects(self.memory, self.at, frames, self.linear_base)
        now[: len(found)] = found
        result: npt.NDArray[np.uint64] = before[is_same & (now == before) & (now != 0)]
        return result
