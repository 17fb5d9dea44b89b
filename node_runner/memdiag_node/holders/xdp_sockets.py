"""AF_XDP sockets: their rings for receiving, sending, filling and completing (net/xdp/).

The memory of the packets (umem) is the process's own and only mentioned, except for what no process maps any more.
Rings are vmalloc since Linux 6.2; before, each is one block of pages. Left out: the pool's list of buffers, in slab or
vmalloc, some hundred bytes for each chunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.memory_classes import ClassName
from memdiag_api.units import format_bytes
from memdiag_node.holders.context import HolderContext, kernel_blocks
from memdiag_node.holders.fields import WORD_BYTES, numbers, words
from memdiag_node.holders.unmapped_pages import mapcount_fields, unmapped_blocks
from memdiag_node.holding import PINNED_DTYPE, Holding, sizes_bytes, unique_blocks
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader
from memdiag_node.walker.walker import ITEM_DTYPE, ITEM_PAGES, Kind

_AF_XDP = 44  # include/linux/socket.h
_FAMILY_BITS = 16
_MAX_SOCKETS = 1 << 14
_MAX_RING_BYTES = 1 << 36
_MAX_UMEM_BYTES = 1 << 46
_MAX_UMEM_PAGES = 1 << 24

_XDP: tuple[Field, ...] = (
    ("XDP_FAMILY", "sock", "__sk_common.skc_family"),
    ("XDP_RX", "xdp_sock", "rx"),
    ("XDP_TX", "xdp_sock", "tx"),
    ("XDP_FILL", "xdp_sock", "fq_tmp"),
    ("XDP_COMPLETION", "xdp_sock", "cq_tmp"),
    ("XDP_POOL", "xdp_sock", "pool"),
    ("XDP_UMEM", "xdp_sock", "umem"),
    ("XDP_POOL_FILL", "xsk_buff_pool", "fq"),
    ("XDP_POOL_COMPLETION", "xsk_buff_pool", "cq"),
    ("XDP_UMEM_BYTES", "xdp_umem", "size"),
    ("XDP_QUEUE_RING", "xsk_queue", "ring"),
)
_UMEM: tuple[Field, ...] = (("XDP_UMEM_PAGES", "xdp_umem", "pgs"), ("XDP_UMEM_PAGE_COUNT", "xdp_umem", "npgs"))
_VMALLOC: tuple[Field, ...] = (("XDP_QUEUE_BYTES", "xsk_queue", "ring_vmalloc_size"),)  # 6.2, 9f78bf330a66


def fields(btf: Btf) -> dict[str, int]:
    """The offsets of a socket's rings."""
    switches = (("HAS_XDP", _XDP), ("HAS_XDP_UMEM", _UMEM), ("HAS_XDP_VMALLOC", _VMALLOC))
    found = mapcount_fields(btf)
    for switch, wanted in switches:
        found |= optional_offsets(btf, switch, wanted)
    return found


@dataclass(frozen=True, slots=True)
class _Rings:
    """The memory of a socket's rings."""

    memory_class: ClassName
    size_bytes: int
    blocks: npt.NDArray[np.void]


def find(context: HolderContext) -> list[Holding]:
    """Every AF_XDP socket with an fd. Rings and umem that several share count for the first of them."""
    memory, at = context.scanner.source.memory, context.at
    if "HAS_XDP" not in at:
        return []
    addresses = np.unique(context.scan.owners["socket"])
    sockets = addresses[numbers(memory, addresses, at["XDP_FAMILY"], bits=_FAMILY_BITS) == _AF_XDP]
    if len(sockets) > _MAX_SOCKETS:
        context.not_seen.append(f"{len(sockets) - _MAX_SOCKETS} AF_XDP sockets beyond {_MAX_SOCKETS}")
    seen: set[int] = set()
    held = []
    for socket in map(int, sockets[:_MAX_SOCKETS]):
        queues = [queue for queue in _queues(memory, at, socket) if queue and queue not in seen]
        seen.update(queues)
        rings = _rings(context, np.array(queues, "<u8"))
        owners, total = context.owners(context.scan.owners_of(socket))
        umem = int(memory.peek([socket + at["XDP_UMEM"]])[0])
        umem_bytes = int(memory.peek([umem + at["XDP_UMEM_BYTES"]])[0]) if umem else 0
        description = f"AF_XDP socket, {len(queues)} rings"
        if 0 < umem_bytes <= _MAX_UMEM_BYTES:
            description += f", with {format_bytes(umem_bytes)} of umem (memory of the process)"
        holder = Holder(
            kind=HolderKind.XDP_SOCKET,
            memory_class=rings.memory_class,
            description=description,
            owners=owners,
            owners_total=total,
            pinned_bytes=rings.size_bytes,
            pinned_blocks=len(rings.blocks),
        )
        held.append(Holding(holder, rings.blocks))
        if umem and umem not in seen:
            seen.add(umem)
            held += _unmapped_umem(context, umem, holder)
    return held


def _unmapped_umem(context: HolderContext, umem: int, of_socket: Holder) -> list[Holding]:
    """The pages of a umem that no process maps any more, if there are any."""
    memory, at = context.scanner.source.memory, context.at
    if "HAS_XDP_UMEM" not in at:
        return []
    umem_at = np.array([umem], "<u8")
    table, count = words(memory, umem_at, at["XDP_UMEM_PAGES"]), numbers(memory, umem_at, at["XDP_UMEM_PAGE_COUNT"])
    if not table[0] or not 0 < count[0] <= _MAX_UMEM_PAGES:
        return []
    items = np.zeros(1, ITEM_DTYPE)
    items["head"], items["count"], items["stride"] = table, count, WORD_BYTES
    items["kind"], items["flags"] = Kind.BLOCKS, ITEM_PAGES
    blocks = unmapped_blocks(memory, at, context.walk(items, "umem of AF_XDP sockets").blocks)
    if not len(blocks):
        return []
    size_bytes = int(sizes_bytes(blocks).sum())
    changed = {
        "memory_class": ClassName.ALLOC_PAGE,
        "description": "umem of an AF_XDP socket, which no process maps any more",
        "pinned_bytes": size_bytes,
        "pinned_blocks": len(blocks),
    }
    return [Holding(of_socket.model_copy(update=changed), blocks)]


def _queues(memory: WordReader, at: Mapping[str, int], socket: int) -> list[int]:
    """Addresses of the socket's struct xsk_queue; the fill and the completion ring move to the pool on bind(2)."""
    own = ("XDP_RX", "XDP_TX", "XDP_FILL", "XDP_COMPLETION", "XDP_POOL")
    *queues, pool = map(int, memory.peek([socket + at[name] for name in own]))
    if pool:
        queues += map(int, memory.peek([pool + at[name] for name in ("XDP_POOL_FILL", "XDP_POOL_COMPLETION")]))
    return queues


def _rings(context: HolderContext, queues: npt.NDArray[np.uint64]) -> _Rings:
    memory, at = context.scanner.source.memory, context.at
    if "HAS_XDP_VMALLOC" in at:
        sizes = words(memory, queues, at["XDP_QUEUE_BYTES"])
        return _Rings(ClassName.VMALLOC, int(sizes[sizes <= _MAX_RING_BYTES].sum()), np.empty(0, PINNED_DTYPE))
    items = np.zeros(len(queues), ITEM_DTYPE)
    items["head"], items["count"] = queues + np.uint64(at["XDP_QUEUE_RING"]), 1
    items["stride"], items["kind"] = WORD_BYTES, Kind.BLOCKS
    walked = context.walk(items, "rings of AF_XDP sockets")
    parts = [kernel_blocks(walked, item) for item in range(len(items))]
    blocks = unique_blocks(np.concatenate([np.empty(0, PINNED_DTYPE), *parts]))
    return _Rings(ClassName.ALLOC_PAGE, int(sizes_bytes(blocks).sum()), blocks)
