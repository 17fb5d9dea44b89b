"""What is needed to read any slab of the node: where struct pages and slabs are, the caches, and the CPUs' copies."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.linear_map import partial_slabs
from memdiag_node.kernel.lists import WordReader
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import Fact, KernelMemory
from memdiag_node.kernel.page_array import alignment_bytes, first_page_by_slabs
from memdiag_node.kernel.per_cpu import locate_copies
from memdiag_node.procfs.kpageflags import ReadFrames
from memdiag_node.procfs.memory_map import FrameRange
from memdiag_node.slab.cache import Cache, read_caches
from memdiag_node.slab.free_lists import Encoding, encoding_of
from memdiag_node.slab.page_scan import load_slab_programs
from memdiag_node.slab.places import PIECE_OBJECTS, Places, SlabState
from memdiag_node.slab.sheaves import numa_nodes
from memdiag_node.slab.slabs import counts


class SlabAccess:
    """Reads slabs whose frames are known. Their rows are of SLAB_DTYPE, with numbers of `caches`."""

    def __init__(
        self,
        memory: WordReader,
        at: Mapping[str, int],
        caches: Sequence[Cache],
        *,
        first_page: int,
        linear_base: int,
        per_cpu: npt.NDArray[np.uint64],
    ) -> None:
        """`at` is the result of `object_layout`, `caches` of `read_caches`, `per_cpu` of `per_cpu_offsets`."""
        self.memory = memory
        self.at = at
        self.caches = caches
        self.first_page = first_page
        """Address of frame 0's struct page."""
        self.linear_base = linear_base
        """Address of frame 0 in the linear map."""
        self.per_cpu = per_cpu
        """Of each online CPU; empty if this kernel does not show them."""
        self.addresses = np.array([cache.address for cache in caches], "<u8")
        self.strides = np.array([cache.stride_bytes for cache in caches], "<u8")
        self.encoding = encoding_of(caches)
        self.nodes = numa_nodes(at, caches)
        self._pads = np.array([cache.left_pad_bytes for cache in caches], "<u8")

    def pages(self, frames: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The addresses of the struct pages of frames."""
        result: npt.NDArray[np.uint64] = frames * np.uint64(self.at["STRUCT_PAGE_BYTES"]) + np.uint64(self.first_page)
        return result

    def frames(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The frames of addresses of the linear map; of others, numbers beyond the end of memory."""
        return (addresses - np.uint64(self.linear_base)) >> np.uint64(self.at["PAGE_SHIFT"])

    def first_objects(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
        """The address of the first place of each slab."""
        bases = (rows["frame"] << np.uint64(self.at["PAGE_SHIFT"])) + np.uint64(self.linear_base)
        result: npt.NDArray[np.uint64] = bases + self._pads[rows["cache"]]
        return result

    def is_of(self, frames: npt.NDArray[np.uint64], cache: int | npt.NDArray[np.int_]) -> npt.NDArray[np.bool_]:
        """Whether each frame heads a slab of a cache (its number) now, or of the one at the same place in `cache`."""
        owners = self.memory.peek(self.pages(frames) + np.uint64(self.at["SLAB_CACHE"]))
        result: npt.NDArray[np.bool_] = owners == self.addresses[cache]
        return result

    def find(
        self, table: npt.NDArray[np.void], addresses: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The object that each address points into, and the index of its slab in `table`; 0 and -1 for none.

        `table` is ordered by frame. The object need not be allocated.
        """
        starts, numbers = np.zeros(len(addresses), "<u8"), np.full(len(addresses), -1, np.int64)
        for start in range(0, len(addresses) if len(table) else 0, PIECE_OBJECTS):
            piece = slice(start, start + PIECE_OBJECTS)
            starts[piece], numbers[piece] = self._find(table, addresses[piece])
        return starts, numbers

    def _find(
        self, table: npt.NDArray[np.void], addresses: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        frames = self.frames(addresses)
        numbers = np.searchsorted(table["frame"], frames, side="right") - 1
        rows = table[np.maximum(numbers, 0)]
        strides, bases = self.strides[rows["cache"]], self.first_objects(rows)
        places = (addresses - bases) // strides
        is_inside = (
            (numbers >= 0)
            & (frames - rows["frame"] < np.left_shift(np.uint64(1), rows["order"].astype("<u8")))
            & (addresses >= bases)
            & (places < rows["objects"])
        )
        return np.where(is_inside, bases + places * strides, np.uint64(0)), np.where(is_inside, numbers, -1)

    def places_of_cache(self, cache: int, rows: npt.NDArray[np.void]) -> Places:
        """The places of those of these slabs that still belong to the cache, with what their lists say is free now."""
        _, objects = counts(self.memory.peek(self.pages(rows["frame"]) + np.uint64(self.at["SLAB_COUNTERS"])))
        # With another number of objects, it is made again, of another size.
        rows = rows[self.is_of(rows["frame"], cache) & (objects == rows["objects"])]
        return self._places(rows, self.strides[cache], self.encoding.of(np.array([cache])))

    def places(self, rows: npt.NDArray[np.void]) -> Places:
        """The places of slabs of any caches, ordered by frame, with what their lists say is free now."""
        caches = rows["cache"].astype(np.int64)
        return self._places(rows, self.strides[caches], self.encoding.of(caches))

    def _places(self, rows: npt.NDArray[np.void], strides: npt.ArrayLike, encoding: Encoding) -> Places:
        pages = self.pages(rows["frame"])

        def read_states(chosen: npt.NDArray[np.int64]) -> SlabState:
            freelist = self.memory.peek(pages[chosen] + np.uint64(self.at["SLAB_FREELIST"]))
            in_use, _ = counts(self.memory.peek(pages[chosen] + np.uint64(self.at["SLAB_COUNTERS"])))
            return SlabState(freelist, in_use.astype(np.int64))

        places = Places(self.first_objects(rows), rows["objects"].astype(np.int64), strides)
        places.mark_lists(self.memory, encoding, read_states)
        return places


def open_access(
    memory: KernelMemory,
    at: Mapping[str, int],
    *,
    ranges: Sequence[FrameRange],
    read_flags: ReadFrames,
    cpus: Sequence[int],
    programs: BpfObject | None,
    own: ExitStack,
) -> tuple[SlabAccess, BpfObject | None]:
    """Find the caches and where slabs are; returns the programs too. `cpus` are the online ones.

    `programs` is the result of `load_slab_programs`. Without them they are loaded here, and closed with `own`; they are
    None if this kernel or compiler refuses them, and reading is slower and less exact. Raises BpfError if this kernel
    has another slab allocator, or if its linear map and its array of struct pages cannot be found.
    """
    if "HAS_SLAB_OBJECTS" not in at:
        raise BpfError("this kernel's slabs cannot be read: their layout is not one of SLUB's that are known")
    first_page, linear_base = _find_bases(memory, at, ranges, read_flags)
    caches, per_cpu = read_caches(memory, at), np.empty(0, "<u8")
    if programs is None:
        with suppress(BpfError):
            programs = own.enter_context(load_slab_programs(at, cpus))
    if programs is not None:
        with suppress(BpfError):
            per_cpu = locate_copies(programs, memory, at, cpus)
    access = SlabAccess(memory, at, caches, first_page=first_page, linear_base=linear_base, per_cpu=per_cpu)
    return access, programs


def _find_bases(
    memory: KernelMemory, at: Mapping[str, int], ranges: Sequence[FrameRange], read_flags: ReadFrames
) -> tuple[int, int]:
    """The addresses of frame 0's struct page, and of frame 0 in the linear map."""
    linear_to_page, page_bytes = memory.fact(Fact.LINEAR_TO_PAGE), at["STRUCT_PAGE_BYTES"]
    if not linear_to_page:
        raise BpfError("this kernel's linear map was not found: no partly used slab shows where it is")
    first_page = first_page_by_slabs(
        partial_slabs(memory, at, cache=memory.any_slab_cache()),
        read_flags,
        frame_count=max(one.end for one in ranges),
        struct_page_bytes=page_bytes,
        alignment=alignment_bytes(),
    )
    frames = (first_page - linear_to_page) % (1 << 64) // page_bytes
    return first_page, frames << at["PAGE_SHIFT"]
