"""The objects of all slab caches: how many there are, where each allocated one is, and what its fields say.

The contents of objects are read to be counted: addresses stay inside the runner.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.linear_map import partial_slabs
from memdiag_node.kernel.memory import Fact, KernelMemory
from memdiag_node.kernel.page_array import alignment_bytes, first_page_by_slabs
from memdiag_node.kernel.per_cpu import per_cpu_offsets
from memdiag_node.procfs.kpageflags import ReadFrames
from memdiag_node.procfs.memory_map import FrameRange
from memdiag_node.slab.cache import read_caches
from memdiag_node.slab.free_lists import cpu_list_heads, follow, sheaf_objects
from memdiag_node.slab.slabs import MAX_SLABS, Slabs, read_slabs

_PIECE_OBJECTS = 1 << 18


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


class SlabCensus:
    """A census of the slabs of the node, taken when it is constructed.

    `at` is the result of `object_layout`, `cpus` the online CPUs. `late` and `max_slabs` are those of `read_slabs`.
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
    ) -> None:
        if "HAS_SLAB_OBJECTS" not in at:
            raise BpfError("this kernel's slab allocator is not SLUB (CONFIG_SLAB or CONFIG_SLOB): it is not read")
        self.memory = memory
        self.at = at
        self._find_bases(ranges, read_flags)
        self.caches = read_caches(memory, at)
        addresses = np.array([cache.address for cache in self.caches], "<u8")
        self._free_pointers = np.array([cache.free_pointer_bytes for cache in self.caches], "<u8")
        self._randoms = np.array([cache.random for cache in self.caches], "<u8")
        self._strides = np.array([cache.stride_bytes for cache in self.caches], "<u8")
        self._pads = np.array([cache.left_pad_bytes for cache in self.caches], "<u8")
        self._per_cpu = self._read_per_cpu_offsets(cpus)
        self._slabs = read_slabs(
            memory,
            at,
            addresses,
            first_page=self.first_page,
            ranges=ranges,
            read_flags=read_flags,
            late=late,
            max_slabs=max_slabs,
        )
        self._on_cpus = self._count_on_cpus()

    def _find_bases(self, ranges: Sequence[FrameRange], read_flags: ReadFrames) -> None:
        linear_to_page, page_bytes = self.memory.fact(Fact.LINEAR_TO_PAGE), self.at["STRUCT_PAGE_BYTES"]
        if not linear_to_page:
            raise BpfError("this kernel's linear map was not found: no partly used slab shows where it is")
        slabs = partial_slabs(self.memory, self.at, cache=self.memory.any_slab_cache())
        self.first_page = first_page_by_slabs(
            slabs,
            read_flags,
            frame_count=max(one.end for one in ranges),
            struct_page_bytes=page_bytes,
            alignment=alignment_bytes(),
        )
        """Address of frame 0's struct page."""
        frames = (self.first_page - linear_to_page) % (1 << 64) // page_bytes
        self.linear_base = frames << self.at["PAGE_SHIFT"]
        """Address of frame 0 in the linear map."""

    def _read_per_cpu_offsets(self, cpus: Sequence[int]) -> npt.NDArray[np.uint64]:
        """Of these CPUs; empty if this kernel does not show them."""
        self.sees_cpu_lists = True
        """Whether free objects on the CPUs' own lists could be excluded."""
        try:
            return per_cpu_offsets(self.memory, self.at, cpus)
        except BpfError:
            self.sees_cpu_lists = False
            return np.empty(0, "<u8")

    @property
    def sampled_share(self) -> float:
        """Of the node's memory that was read: below 1, what was counted is a random sample."""
        return self._slabs.sampled_share

    @property
    def slabs(self) -> Slabs:
        """The slabs; `cache` in their table is an index of `caches`."""
        return self._slabs

    def count(self) -> list[CacheCount]:
        """The size of each cache, in the order of `caches`."""
        table, size = self._slabs.table, len(self.caches)
        frames = np.left_shift(1, table["order"].astype(np.int64))
        slabs = np.bincount(table["cache"], minlength=size)
        places = np.bincount(table["cache"], table["objects"], size).astype(np.int64)
        in_use = np.bincount(table["cache"], table["in_use"], size).astype(np.int64) - self._on_cpus
        slab_frames = np.bincount(table["cache"], frames, size).astype(np.int64)
        return [
            CacheCount(*row)
            for row in zip(
                slabs.tolist(),
                places.tolist(),
                np.maximum(in_use, 0).tolist(),
                (slab_frames << self.at["PAGE_SHIFT"]).tolist(),
                strict=True,
            )
        ]

    def named(self, *names: str) -> list[int]:
        """The numbers of the caches with these names."""
        return [number for number, cache in enumerate(self.caches) if cache.name in names]

    def objects(self, cache: int) -> npt.NDArray[np.uint64]:
        """Addresses of the allocated objects of a cache (its number), ascending.

        Objects that are allocated or freed meanwhile may be missing or extra: `still_allocated` checks afterwards.
        """
        rows = self._rows(cache)
        rows = rows[(rows["in_use"] != 0) | (rows["freelist"] != 0)]  # else an object of KFENCE, somewhere in its page
        return self._allocated(cache, rows)

    def sample(self, cache: int, slabs: int, rng: np.random.Generator) -> npt.NDArray[np.uint64]:
        """Addresses of the allocated objects in up to `slabs` slabs of a cache, chosen at random; see `objects`."""
        rows = self._rows(cache)
        rows = rows[(rows["in_use"] != 0) | (rows["freelist"] != 0)]
        if len(rows) > slabs:
            rows = rows[np.sort(rng.choice(len(rows), slabs, replace=False))]
        return self._allocated(cache, rows)

    def still_allocated(self, cache: int, objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether each of these objects of a cache is in a slab of it, and in use, when this is called."""
        _, numbers = self.find(objects)
        is_used = np.zeros(len(self._slabs.table), np.bool_)
        is_used[numbers[numbers >= 0]] = True
        rows = self._slabs.table[is_used]
        pages = rows["frame"] * np.uint64(self.at["STRUCT_PAGE_BYTES"]) + np.uint64(self.first_page)
        same = self.memory.peek(pages + np.uint64(self.at["SLAB_CACHE"])) == np.uint64(self.caches[cache].address)
        rows, pages = rows[same].copy(), pages[same]
        rows["freelist"] = self.memory.peek(pages + np.uint64(self.at["SLAB_FREELIST"]))
        allocated = np.append(self._allocated(cache, rows), np.uint64(0))  # 0 never is an object
        places = np.searchsorted(allocated[:-1], objects)  # both ascend: much faster than isin
        result: npt.NDArray[np.bool_] = (allocated[places] == objects) & (objects != 0)
        return result

    def find(self, addresses: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The object that each address points into, and the index of its slab in `slabs.table`; 0 and -1 for none.

        The object need not be allocated.
        """
        table = self._slabs.table
        starts = np.zeros(len(addresses), "<u8")
        if not len(table):
            return starts, np.full(len(addresses), -1, np.int64)
        frames = (addresses - np.uint64(self.linear_base)) >> np.uint64(self.at["PAGE_SHIFT"])
        numbers = np.searchsorted(table["frame"], frames, side="right") - 1
        rows = table[np.maximum(numbers, 0)]
        caches = rows["cache"]
        bases = self._first_objects(rows)
        places = (addresses - bases) // self._strides[caches]
        is_inside = (
            (numbers >= 0)
            & (frames - rows["frame"] < np.left_shift(np.uint64(1), rows["order"].astype("<u8")))
            & (addresses >= bases)
            & (places < rows["objects"])
        )
        starts[is_inside] = (bases + places * self._strides[caches])[is_inside]
        numbers[~is_inside] = -1
        return starts, numbers

    def read(self, objects: npt.NDArray[np.uint64], offset_bytes: int, width_bytes: int = 8) -> npt.NDArray[np.uint64]:
        """A field of 1 to 8 bytes of each object; 0 where it cannot be read."""
        words = self.memory.peek(objects + np.uint64(offset_bytes))
        return words if width_bytes == 8 else words & np.uint64((1 << 8 * width_bytes) - 1)  # noqa: PLR2004 - a word

    def _rows(self, cache: int) -> npt.NDArray[np.void]:
        table = self._slabs.table
        rows: npt.NDArray[np.void] = table[table["cache"] == cache]
        return rows

    def _first_objects(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
        bases = (rows["frame"] << np.uint64(self.at["PAGE_SHIFT"])) + np.uint64(self.linear_base)
        result: npt.NDArray[np.uint64] = bases + self._pads[rows["cache"]]
        return result

    def _allocated(self, cache: int, rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
        """The addresses of the places of these slabs of a cache that are on no list of free objects."""
        places = rows["objects"].astype(np.int64)
        first_place = np.cumsum(places) - places
        bases, stride = self._first_objects(rows), np.uint64(self.caches[cache].stride_bytes)
        is_free = np.zeros(int(places.sum()), np.bool_)

        def accept(_: npt.NDArray[np.int64], objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
            row = np.searchsorted(bases, objects, side="right") - 1
            inside = np.maximum(row, 0)
            place, remainder = np.divmod(objects - bases[inside], stride)
            good = (row >= 0) & (remainder == 0) & (place < rows["objects"][inside])
            slot = first_place[inside[good]] + place[good].astype(np.int64)
            good[good] = ~is_free[slot]  # an object that is met again: the list changed
            is_free[slot] = True
            return np.asarray(good, np.bool_)

        self._visit_free(rows["freelist"], np.full(len(rows), cache), accept)
        on_cpus = cpu_list_heads(self.memory, self.at, [self.caches[cache]], self._per_cpu).reshape(-1)
        self._visit_free(on_cpus, np.full(len(on_cpus), cache), accept)
        _, in_sheaves = sheaf_objects(self.memory, self.at, [self.caches[cache]], self._per_cpu)
        accept(np.empty(0, np.int64), in_sheaves)
        return _addresses(bases, first_place, stride, np.flatnonzero(~is_free))

    def _visit_free(
        self,
        heads: npt.NDArray[np.uint64],
        caches: npt.NDArray[np.int64],
        accept: Callable[[npt.NDArray[np.int64], npt.NDArray[np.uint64]], npt.NDArray[np.bool_]],
    ) -> None:
        follow(self.memory, np.asarray(heads, "<u8"), self._free_pointers[caches], self._randoms[caches], accept)

    def _count_on_cpus(self) -> npt.NDArray[np.int64]:
        """Free objects of each cache on the CPUs' own lists and in sheaves: their slabs count them as in use."""
        counts = np.zeros(len(self.caches), np.int64)
        heads = cpu_list_heads(self.memory, self.at, self.caches, self._per_cpu)
        owner = np.repeat(np.arange(len(self.caches)), heads.shape[1])

        def accept(lists: npt.NDArray[np.int64], objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
            return add(owner[lists], objects)

        def add(caches: npt.NDArray[np.int64], objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
            starts, numbers = self.find(objects)
            good: npt.NDArray[np.bool_] = (starts == objects) & (numbers >= 0)
            good &= self._slabs.table["cache"][numbers] == caches if len(self._slabs.table) else False
            np.add.at(counts, caches[good], 1)
            return good

        self._visit_free(heads.reshape(-1), owner, accept)
        add(*sheaf_objects(self.memory, self.at, self.caches, self._per_cpu))
        return counts


def _addresses(
    bases: npt.NDArray[np.uint64],
    first_place: npt.NDArray[np.int64],
    stride: np.uint64,
    chosen: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint64]:
    """The addresses of the chosen places, in pieces: the intermediate arrays are several times as large."""
    result = np.empty(len(chosen), "<u8")
    for start in range(0, len(chosen), _PIECE_OBJECTS):
        places = chosen[start : start + _PIECE_OBJECTS]
        row = np.searchsorted(first_place, places, side="right") - 1
        # A slab without places has the same first place as the next one, which `right` skips.
        result[start : start + len(places)] = bases[row] + (places - first_place[row]).astype("<u8") * stride
    return result
