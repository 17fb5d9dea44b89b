"""io_uring: the pages of submission and completion rings, of regions, and of rings of provided buffers (io_uring/).

The layout changed several times, so the fields decide: arrays of pages since Linux 6.10, in a struct io_mapped_region
since 6.14; before, one block for each ring. Memory that the process provided itself (IORING_SETUP_NO_MMAP, registered
buffers) is its own: only the size of registered buffers is mentioned, except for what no process maps any more.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.units import format_bytes
from memdiag_node.holders.context import HolderContext
from memdiag_node.holders.fields import WORD_BYTES, numbers, pointers, words
from memdiag_node.holders.unmapped_pages import mapcount_fields, unmapped_blocks
from memdiag_node.holding import PINNED_DTYPE, Holding, pinned_blocks, sizes_bytes, unique_blocks
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader
from memdiag_node.kernel.xarray import xarray_entries, xarray_fields
from memdiag_node.sockets.file_kinds import FileKind
from memdiag_node.walker.walker import ITEM_DTYPE, ITEM_PAGES, Kind

_MAX_RINGS = 1 << 16
_MAX_PAGES = 1 << 18
_MAX_BUFFERS = 1 << 14  # io_uring/rsrc.c, IORING_MAX_REG_BUFFERS
_MAX_BUFFER_BYTES = 1 << 30  # the kernel registers at most 1 GiB as one buffer
_MAX_ENTRIES = 1 << 16

_BLOCKS: tuple[Field, ...] = (("RING_POINTER", "io_ring_ctx", "rings"), ("SQES_POINTER", "io_ring_ctx", "sq_sqes"))
_ENTRIES: tuple[Field, ...] = (("URING_ENTRIES", "io_ring_ctx", "sq_entries"),)
_PAGES: tuple[Field, ...] = (  # 6.5, 03d89a2de25b, for memory of the process; 6.10, 1943f96b3816, for all
    ("RING_PAGES", "io_ring_ctx", "ring_pages"),
    ("RING_PAGE_COUNT", "io_ring_ctx", "n_ring_pages"),
    ("SQE_PAGES", "io_ring_ctx", "sqe_pages"),
    ("SQE_PAGE_COUNT", "io_ring_ctx", "n_sqe_pages"),
)
_REGIONS: tuple[Field, ...] = (  # 6.14
    ("RING_REGION", "io_ring_ctx", "ring_region"),
    ("SQE_REGION", "io_ring_ctx", "sq_region"),
    ("REGION_PAGES", "io_mapped_region", "pages"),
    ("REGION_PAGE_COUNT", "io_mapped_region", "nr_pages"),
)
_PARAMETER_REGION: tuple[Field, ...] = (("PARAMETER_REGION", "io_ring_ctx", "param_region"),)  # 6.13
_BUFFER_LISTS: tuple[Field, ...] = (("BUFFER_LISTS", "io_ring_ctx", "io_bl_xa"),)
_BUFFER_REGION: tuple[Field, ...] = (("BUFFER_REGION", "io_buffer_list", "region"),)  # 6.14
_BUFFER_PAGES: tuple[Field, ...] = (
    ("BUFFER_PAGES", "io_buffer_list", "buf_pages"),
    ("BUFFER_PAGE_COUNT", "io_buffer_list", "buf_nr_pages"),
)
_USER_BUFFERS: tuple[Field, ...] = (
    ("USER_BUFFERS", "io_ring_ctx", "user_bufs"),
    ("USER_BUFFER_COUNT", "io_ring_ctx", "nr_user_bufs"),
)
_BUFFER_NODES: tuple[Field, ...] = (  # 6.13
    ("BUFFER_NODES", "io_ring_ctx", "buf_table.nodes"),
    ("BUFFER_NODE_COUNT", "io_ring_ctx", "buf_table.nr"),
    ("NODE_BUFFER", "io_rsrc_node", "buf"),
)
_BUFFER_LENGTH: tuple[Field, ...] = (("BUFFER_LENGTH", "io_mapped_ubuf", "len"),)  # 6.11
_BUFFER_VECTORS: tuple[Field, ...] = (
    ("BUFFER_VECTORS", "io_mapped_ubuf", "bvec"),
    ("BUFFER_VECTOR_COUNT", "io_mapped_ubuf", "nr_bvecs"),
    ("VECTOR_PAGE", "bio_vec", "bv_page"),
)
_BUFFER_ENDS: tuple[Field, ...] = (
    ("BUFFER_START", "io_mapped_ubuf", "ubuf"),
    ("BUFFER_END", "io_mapped_ubuf", "ubuf_end"),
)


def fields(btf: Btf) -> dict[str, int]:
    """The offsets of a ring's memory, in whichever form this kernel has."""
    found = xarray_fields(btf) | mapcount_fields(btf)
    for switch, wanted in (
        ("HAS_RING_BLOCKS", _BLOCKS),
        ("HAS_URING_ENTRIES", _ENTRIES),
        ("HAS_RING_PAGES", _PAGES),
        ("HAS_RING_REGIONS", _REGIONS),
        ("HAS_PARAMETER_REGION", _PARAMETER_REGION),
        ("HAS_BUFFER_LISTS", _BUFFER_LISTS),
        ("HAS_BUFFER_REGION", _BUFFER_REGION),
        ("HAS_BUFFER_PAGES", _BUFFER_PAGES),
        ("HAS_USER_BUFFERS", _USER_BUFFERS),
        ("HAS_BUFFER_NODES", _BUFFER_NODES),
        ("HAS_BUFFER_LENGTH", _BUFFER_LENGTH),
        ("HAS_BUFFER_ENDS", _BUFFER_ENDS),
        ("HAS_BUFFER_VECTORS", _BUFFER_VECTORS),
    ):
        found |= optional_offsets(btf, switch, wanted)
    if "HAS_BUFFER_VECTORS" in found:
        found["VECTOR_BYTES"] = btf.size_bytes("bio_vec")
    return found


@dataclass(slots=True)
class _Rings:
    """All rings with an fd."""

    rings: npt.NDArray[np.uint64]
    """Addresses of struct io_ring_ctx."""
    of: npt.NDArray[np.intp]
    """The number of the ring of each item."""
    items: npt.NDArray[np.void]


def find(context: HolderContext) -> list[Holding]:
    """The rings of each process together; rings that several processes share, apart."""
    files = context.scan.files[context.scan.files["kind"] == FileKind.IO_URING]
    if "HAS_RING_BLOCKS" not in context.at or not len(files):
        return []
    memory, at = context.scanner.source.memory, context.at
    rings = np.unique(files["socket"])
    if len(rings) > _MAX_RINGS:
        context.not_seen.append(f"{len(rings) - _MAX_RINGS} io_urings beyond {_MAX_RINGS}")
        rings = rings[:_MAX_RINGS]
    every = _items(memory, at, rings)
    walked = context.walk(every.items, "io_urings")
    kernel = walked.blocks[~walked.blocks["user"]]
    ring_of_block = every.of[kernel["owner"]]
    buffers = [_buffers(memory, at, int(ring)) for ring in rings]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    pairs_of = [[(int(one["pid"]), int(one["fd"])) for one in files[files["socket"] == ring]] for ring in rings]
    for number, pairs in enumerate(pairs_of):
        groups[tuple(sorted({pid for pid, _ in pairs}))].append(number)
    return [
        _holding(
            context,
            rings[members],
            [pair for number in members for pair in pairs_of[number]],
            unique_blocks(pinned_blocks(kernel[np.isin(ring_of_block, members)])),
            np.concatenate([buffers[number] for number in members]),
        )
        for members in groups.values()
    ]


def _holding(
    context: HolderContext,
    rings: npt.NDArray[np.uint64],
    pairs: list[tuple[int, int]],
    blocks: npt.NDArray[np.void],
    buffers: npt.NDArray[np.uint64],
) -> Holding:
    memory, at = context.scanner.source.memory, context.at
    owners, total = context.owners(pairs)
    description = f"{len(rings)} io_urings" if len(rings) > 1 else "an io_uring"
    entries = int(numbers(memory, rings, at["URING_ENTRIES"]).max()) if "HAS_URING_ENTRIES" in at else 0
    if 0 < entries <= _MAX_ENTRIES:
        description += f", up to {entries} entries"
    if registered_bytes := _sizes_bytes(memory, at, buffers):
        description += f", with {format_bytes(registered_bytes)} of registered buffers (memory of the process)"
    unmapped = _unmapped_buffers(context, buffers)
    if len(unmapped):
        blocks = unique_blocks(np.concatenate([blocks, unmapped]))
        description += f", {format_bytes(int(sizes_bytes(unmapped).sum()))} of which no process maps any more"
    holder = Holder(
        kind=HolderKind.IO_URING,
        description=description,
        owners=owners,
        owners_total=total,
        summed=len(rings),
        pinned_bytes=int(sizes_bytes(blocks).sum()),
        pinned_blocks=len(blocks),
    )
    return Holding(holder, blocks)


def _items(memory: WordReader, at: Mapping[str, int], rings: npt.NDArray[np.uint64]) -> _Rings:
    """An item for each part of each ring that has memory of its own."""
    everyone = np.arange(len(rings))
    of, items = [np.empty(0, np.intp)], [np.empty(0, ITEM_DTYPE)]
    for numbers_, tables, counts, flags in _parts(memory, at, rings, everyone):
        used = (tables != 0) & (counts > 0) & (counts <= _MAX_PAGES)
        part = np.zeros(int(np.count_nonzero(used)), ITEM_DTYPE)
        part["head"], part["count"] = tables[used], counts[used]
        part["stride"], part["kind"], part["flags"] = WORD_BYTES, Kind.BLOCKS, flags
        of.append(numbers_[used])
        items.append(part)
    return _Rings(rings, np.concatenate(of), np.concatenate(items))


_Part = tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64], npt.NDArray[np.int64], int]
"""Numbers of rings, addresses of tables with pointers, numbers of pointers, and the flags of the items."""


def _parts(
    memory: WordReader, at: Mapping[str, int], rings: npt.NDArray[np.uint64], everyone: npt.NDArray[np.intp]
) -> Iterator[_Part]:
    if "HAS_RING_REGIONS" in at:
        for name in ("RING_REGION", "SQE_REGION"):
            yield everyone, *_region(memory, at, rings + np.uint64(at[name])), ITEM_PAGES
    else:
        yield from _parts_before_regions(memory, at, rings, everyone)
    if "HAS_PARAMETER_REGION" in at and "HAS_RING_REGIONS" in at:
        yield everyone, *_region(memory, at, rings + np.uint64(at["PARAMETER_REGION"])), ITEM_PAGES
    if "HAS_BUFFER_LISTS" not in at or "HAS_XARRAY" not in at:
        return
    for number, ring in enumerate(rings):
        lists = xarray_entries(memory, at, np.array([ring + np.uint64(at["BUFFER_LISTS"])]))
        mine = np.full(len(lists), number)
        if "HAS_BUFFER_REGION" in at and "HAS_RING_REGIONS" in at:
            yield mine, *_region(memory, at, lists + np.uint64(at["BUFFER_REGION"])), ITEM_PAGES
        elif "HAS_BUFFER_PAGES" in at:
            counts = numbers(memory, lists, at["BUFFER_PAGE_COUNT"], bits=16)
            yield mine, words(memory, lists, at["BUFFER_PAGES"]), counts, ITEM_PAGES


def _parts_before_regions(
    memory: WordReader, at: Mapping[str, int], rings: npt.NDArray[np.uint64], everyone: npt.NDArray[np.intp]
) -> Iterator[_Part]:
    """Arrays of pages, or where there are none, a pointer to one block."""
    for array, count, pointer in (
        ("RING_PAGES", "RING_PAGE_COUNT", "RING_POINTER"),
        ("SQE_PAGES", "SQE_PAGE_COUNT", "SQES_POINTER"),
    ):
        is_array = np.zeros(len(rings), bool)
        if "HAS_RING_PAGES" in at:
            tables = words(memory, rings, at[array])
            is_array = tables != 0
            yield everyone, tables, numbers(memory, rings, at[count], bits=16), ITEM_PAGES
        blocks = rings + np.uint64(at[pointer])
        blocks[is_array] = 0
        yield everyone, blocks, np.ones(len(rings), np.int64), 0


def _region(
    memory: WordReader, at: Mapping[str, int], regions: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The table of pages of each struct io_mapped_region, and their number."""
    return words(memory, regions, at["REGION_PAGES"]), numbers(memory, regions, at["REGION_PAGE_COUNT"])


def _buffers(memory: WordReader, at: Mapping[str, int], ring: int) -> npt.NDArray[np.uint64]:
    """Addresses of the registered buffers of a ring: memory of the process, or of the kernel's block layer."""
    ring_at, none = np.array([ring], "<u8"), np.empty(0, "<u8")
    if "HAS_BUFFER_NODES" in at:
        table, count = words(memory, ring_at, at["BUFFER_NODES"]), numbers(memory, ring_at, at["BUFFER_NODE_COUNT"])
    elif "HAS_USER_BUFFERS" in at:
        table, count = words(memory, ring_at, at["USER_BUFFERS"]), numbers(memory, ring_at, at["USER_BUFFER_COUNT"])
    else:
        return none
    if not table[0] or not 0 < count[0] <= _MAX_BUFFERS:
        return none
    buffers = pointers(memory, int(table[0]), int(count[0]))
    if "HAS_BUFFER_NODES" in at:
        buffers = words(memory, buffers[buffers != 0], at["NODE_BUFFER"])
    found: npt.NDArray[np.uint64] = buffers[buffers != 0]
    return found


def _sizes_bytes(memory: WordReader, at: Mapping[str, int], buffers: npt.NDArray[np.uint64]) -> int:
    """The size of these registered buffers; 0 if this kernel's layout is unknown."""
    if "HAS_BUFFER_LENGTH" in at:
        sizes = numbers(memory, buffers, at["BUFFER_LENGTH"])
    elif "HAS_BUFFER_ENDS" in at:
        ends, starts = words(memory, buffers, at["BUFFER_END"]), words(memory, buffers, at["BUFFER_START"])
        sizes = (ends - starts).astype(np.int64)
    else:
        return 0
    return int(sizes[(sizes > 0) & (sizes <= _MAX_BUFFER_BYTES)].sum())


def _unmapped_buffers(context: HolderContext, buffers: npt.NDArray[np.uint64]) -> npt.NDArray[np.void]:
    """The pages of these registered buffers that no process maps any more."""
    memory, at = context.scanner.source.memory, context.at
    if "HAS_BUFFER_VECTORS" not in at:
        return np.empty(0, PINNED_DTYPE)
    buffers = np.unique(buffers)  # a buffer may be registered with several rings
    counts = numbers(memory, buffers, at["BUFFER_VECTOR_COUNT"])
    usable = (counts > 0) & (counts <= _MAX_PAGES)
    items = np.zeros(int(np.count_nonzero(usable)), ITEM_DTYPE)
    items["head"] = buffers[usable] + np.uint64(at["BUFFER_VECTORS"] + at["VECTOR_PAGE"])
    items["count"], items["stride"] = counts[usable], at["VECTOR_BYTES"]
    items["kind"], items["flags"] = Kind.BLOCKS, ITEM_PAGES
    return unmapped_blocks(memory, at, context.walk(items, "registered buffers of io_urings").blocks)
