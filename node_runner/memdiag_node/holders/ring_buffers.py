"""Ring buffers that the kernel fills and a process maps: those of perf events, and BPF maps of type RINGBUF.

Both are single pages directly from the page allocator, so they are allocpage: a perf buffer's are used through the
linear map (kernel/events/ring_buffer.c, rb_alloc), a BPF ring buffer's are only mapped by vmap, which VmallocUsed does
not count (kernel/bpf/ringbuf.c, bpf_ringbuf_area_alloc). Left out: their tables of pages, in slab or vmalloc. A perf
buffer that is mapped while its fd is closed is not found.
"""

import mmap

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.holders.context import HolderContext
from memdiag_node.holding import PINNED_DTYPE, Holding
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.sockets.file_kinds import FileKind
from memdiag_node.walker.walker import ITEM_DTYPE, Kind

RING_BUFFER_TYPES = (27, 31)
"""BPF_MAP_TYPE_RINGBUF, BPF_MAP_TYPE_USER_RINGBUF (6.1): include/uapi/linux/bpf.h."""
_POINTER_BYTES = 8
_MAX_PAGES = 1 << 24  # 64 GiB: a higher count was read from a freed buffer

_RING_BUFFER: tuple[Field, ...] = (
    ("MAP_ID", "bpf_map", "id"),
    ("MAP_TYPE", "bpf_map", "map_type"),
    ("MAP_RING_BUFFER", "bpf_ringbuf_map", "rb"),
    ("RING_BUFFER_PAGES", "bpf_ringbuf", "pages"),
    ("RING_BUFFER_COUNT", "bpf_ringbuf", "nr_pages"),
)
_PERF_BUFFER: tuple[Field, ...] = (
    ("EVENT_BUFFER", "perf_event", "rb"),
    ("PERF_PAGES", "perf_buffer", "data_pages"),
    ("PERF_COUNT", "perf_buffer", "nr_pages"),
    ("PERF_USER_PAGE", "perf_buffer", "user_page"),
    ("PERF_AUX_PAGES", "perf_buffer", "aux_pages"),
    ("PERF_AUX_COUNT", "perf_buffer", "aux_nr_pages"),
)


def fields(btf: Btf) -> dict[str, int]:
    """The offsets of the buffers' pages."""
    found = optional_offsets(btf, "HAS_RING_BUFFER", _RING_BUFFER)
    if not btf.has_field("perf_buffer", "page_order"):  # otherwise (CONFIG_PERF_USE_VMALLOC) its memory is vmalloc
        found |= optional_offsets(btf, "HAS_PERF_BUFFER", _PERF_BUFFER)
    return found


def find(context: HolderContext) -> list[Holding]:
    """Every perf buffer that an fd leads to, and every BPF ring buffer."""
    return [*_perf_buffers(context), *_map_buffers(context)]


def _perf_buffers(context: HolderContext) -> list[Holding]:
    memory, at = context.scanner.source.memory, context.at
    if "HAS_PERF_BUFFER" not in at:
        return []
    events = context.scan.files[context.scan.files["kind"] == FileKind.PERF_EVENT]
    buffer_of = memory.peek(events["socket"] + np.uint64(at["EVENT_BUFFER"]))
    held = []
    for buffer in map(int, np.unique(buffer_of[buffer_of != 0])):  # several events may write into one
        data, aux = (
            int(count) & 0xFFFFFFFF for count in memory.peek([buffer + at["PERF_COUNT"], buffer + at["PERF_AUX_COUNT"]])
        )
        pages = 1 + data + aux
        if pages > _MAX_PAGES:
            continue
        items = np.zeros(3, ITEM_DTYPE)
        items["head"] = (
            buffer + at["PERF_USER_PAGE"],
            buffer + at["PERF_PAGES"],
            memory.peek([buffer + at["PERF_AUX_PAGES"]])[0],
        )
        items["count"], items["stride"], items["kind"] = (1, data, aux), _POINTER_BYTES, Kind.BLOCKS
        # Before Linux 6.14 a mapped page of it has a mapping, like a file's page; it still belongs to the kernel.
        blocks = context.walk(items, "ring buffers").blocks
        description = f"ring buffer of perf events, {data} pages of data"
        if aux:
            description += f" and {aux} of traces"
        held.append(_held(context, description, events[buffer_of == buffer], pages, blocks["page"]))
    return held


def _map_buffers(context: HolderContext) -> list[Holding]:
    source, at = context.scanner.source, context.at
    memory = source.memory
    if "HAS_RING_BUFFER" not in at:
        return []
    files = context.scan.files[context.scan.files["kind"] == FileKind.BPF_MAP]
    held = []
    maps = source.bpf_maps()
    types = memory.peek(maps + np.uint64(at["MAP_TYPE"])) & np.uint64(0xFFFFFFFF)
    for address in map(int, maps[np.isin(types, RING_BUFFER_TYPES)]):
        number, buffer = map(int, memory.peek([address + at["MAP_ID"], address + at["MAP_RING_BUFFER"]]))
        pages, table = map(int, memory.peek([buffer + at["RING_BUFFER_COUNT"], buffer + at["RING_BUFFER_PAGES"]]))
        pages &= 0xFFFFFFFF
        if not buffer or not 0 < pages <= _MAX_PAGES:
            continue
        description = f"BPF ring buffer, map id {number & 0xFFFFFFFF}"
        page = memory.peek(np.uint64(table) + np.arange(pages, dtype="<u8") * np.uint64(_POINTER_BYTES))
        held.append(_held(context, description, files[files["socket"] == address], pages, page[page != 0]))
    return held


def _held(
    context: HolderContext,
    description: str,
    files: npt.NDArray[np.void],
    pages: int,
    page: npt.NDArray[np.uint64],
) -> Holding:
    blocks = np.zeros(len(page), PINNED_DTYPE)
    blocks["page"] = page
    owners, total = context.owners((int(file["pid"]), int(file["fd"])) for file in files)
    return Holding(
        Holder(
            kind=HolderKind.RING_BUFFER,
            description=description,
            owners=owners,
            owners_total=total,
            unowned_reason="" if total else "no fd: kept by a loaded program or pinned in a BPF file system",
            pinned_bytes=pages * mmap.PAGESIZE,
            pinned_blocks=pages,
        ),
        blocks,
    )
