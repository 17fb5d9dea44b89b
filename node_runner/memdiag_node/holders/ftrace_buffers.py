"""Buffers of the kernel's own tracer (ftrace): that of the top instance and of each other one (kernel/trace/).

They are found without a mount of tracefs and without symbols of data: tracefs pins its superblock from boot on, and all
superblocks are on one list, to which any file leads. The files in its root have the top instance as private data, and
all instances are on one list. A pointer counts as an instance only if its buffer refers back to it.
"""

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.units import format_bytes
from memdiag_node.holders.context import HolderContext, kernel_blocks
from memdiag_node.holders.fields import WORD_BYTES, text, words
from memdiag_node.holding import Holding, sizes_bytes, unique_blocks
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader, list_entries
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.walker.walker import ITEM_DTYPE, Kind

_TRACEFS_MAGIC = 0x74726163  # include/uapi/linux/magic.h
_MAX_INSTANCES = 256
_MAX_PAGES = 1 << 28
_MAX_ORDER = 10
_NAME_BYTES = 64

_TRACEFS: tuple[Field, ...] = (
    ("INODE_SUPERBLOCK", "inode", "i_sb"),
    ("INODE_PRIVATE", "inode", "i_private"),
    ("SUPERBLOCK_LIST", "super_block", "s_list"),
    ("SUPERBLOCK_MAGIC", "super_block", "s_magic"),
    ("SUPERBLOCK_ROOT", "super_block", "s_root"),
    ("DENTRY_INODE", "dentry", "d_inode"),
    ("TRACED_FILE_INODE", "file", "f_inode"),
)
_CHILDREN: tuple[Field, ...] = (  # 6.8, da549bdd15c2
    ("DENTRY_CHILDREN", "dentry", "d_children"),
    ("DENTRY_SIBLING", "dentry", "d_sib"),
)
_CHILDREN_BEFORE: tuple[Field, ...] = (
    ("DENTRY_CHILDREN", "dentry", "d_subdirs"),
    ("DENTRY_SIBLING", "dentry", "d_child"),
)
_INSTANCE: tuple[Field, ...] = (
    ("INSTANCE_LIST", "trace_array", "list"),
    ("INSTANCE_NAME", "trace_array", "name"),
    ("INSTANCE_BUFFER", "trace_array", "array_buffer"),
    ("BUFFER_OF_INSTANCE", "array_buffer", "tr"),
    ("BUFFER_RING", "array_buffer", "buffer"),
    ("RING_PER_CPU", "trace_buffer", "buffers"),
    ("CPU_RING_OWNER", "ring_buffer_per_cpu", "buffer"),
    ("CPU_RING_PAGES", "ring_buffer_per_cpu", "pages"),
    ("CPU_RING_PAGE_COUNT", "ring_buffer_per_cpu", "nr_pages"),
    ("CPU_RING_READER", "ring_buffer_per_cpu", "reader_page"),
    ("RING_PAGE_LINK", "buffer_page", "list"),
    ("RING_PAGE_DATA", "buffer_page", "page"),
)
_SNAPSHOT: tuple[Field, ...] = (("INSTANCE_SNAPSHOT", "trace_array", "snapshot_buffer"),)  # 7.x
_SNAPSHOT_BEFORE: tuple[Field, ...] = (("INSTANCE_SNAPSHOT", "trace_array", "max_buffer"),)
_ORDER: tuple[Field, ...] = (("RING_ORDER", "trace_buffer", "subbuf_order"),)  # 6.8, f9b94daa542a
_RESERVED: tuple[Field, ...] = (("RING_RESERVED", "trace_buffer", "range_addr_start"),)  # 6.12: reserved at boot


def fields(btf: Btf) -> dict[str, int]:
    """The offsets from a superblock to the pages of a buffer."""
    return (
        optional_offsets(btf, "HAS_TRACEFS", _TRACEFS)
        | (optional_offsets(btf, "HAS_CHILDREN", _CHILDREN) or optional_offsets(btf, "HAS_CHILDREN", _CHILDREN_BEFORE))
        | optional_offsets(btf, "HAS_INSTANCES", _INSTANCE)
        | (optional_offsets(btf, "HAS_SNAPSHOT", _SNAPSHOT) or optional_offsets(btf, "HAS_SNAPSHOT", _SNAPSHOT_BEFORE))
        | optional_offsets(btf, "HAS_RING_ORDER", _ORDER)
        | optional_offsets(btf, "HAS_RESERVED_RING", _RESERVED)
    )


@dataclass(frozen=True, slots=True)
class _CpuRings:
    """The rings of one buffer, one for each CPU that has one."""

    rings: npt.NDArray[np.uint64]
    """Addresses of struct ring_buffer_per_cpu."""
    pages: npt.NDArray[np.int64]
    """The number of pages in each, without the reader's."""
    order: int


def find(context: HolderContext) -> list[Holding]:
    """The buffer and the snapshot of every instance that has any."""
    memory, at = context.scanner.source.memory, context.at
    if not {"HAS_TRACEFS", "HAS_CHILDREN", "HAS_INSTANCES"} <= set(at):
        return []
    instances = _instances(memory, at)
    if not len(instances):
        context.not_seen.append("ftrace buffers: no instance was found through tracefs")
    held = []
    for instance in map(int, instances[:_MAX_INSTANCES]):
        name = _name(memory, at, instance)
        for what, offset in _buffers(at):
            rings = _rings(memory, at, int(memory.peek([instance + offset + at["BUFFER_RING"]])[0]))
            if rings is not None:
                held.append(_holding(context, rings, f"ftrace {what} of {name}"))
    return held


def _buffers(at: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """What each struct array_buffer of an instance is, and its offset."""
    yield "buffer", at["INSTANCE_BUFFER"]
    if "HAS_SNAPSHOT" in at:
        yield "snapshot", at["INSTANCE_SNAPSHOT"]


def _instances(memory: KernelMemory, at: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """Addresses of all struct trace_array."""
    found = _own(memory, at, _private_data(memory, at))
    if not len(found):
        return found
    listed = list_entries(memory, found[:1] + np.uint64(at["INSTANCE_LIST"])) - np.uint64(at["INSTANCE_LIST"])
    return np.union1d(found, _own(memory, at, listed))


def _own(memory: WordReader, at: Mapping[str, int], candidates: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Those of the candidates whose buffer refers back to them."""
    candidates = np.unique(candidates[candidates != 0])
    owners = words(memory, candidates, at["INSTANCE_BUFFER"] + at["BUFFER_OF_INSTANCE"])
    own: npt.NDArray[np.uint64] = candidates[owners == candidates]
    return own


def _private_data(memory: KernelMemory, at: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """The private data of the files in the root of tracefs."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        inode = memory.word(memory.file(fd) + at["TRACED_FILE_INODE"])
    finally:
        os.close(fd)
    first = memory.word(inode + at["INODE_SUPERBLOCK"])
    listed = list_entries(memory, np.array([first + at["SUPERBLOCK_LIST"]], "<u8"))
    superblocks = np.append(listed - np.uint64(at["SUPERBLOCK_LIST"]), np.uint64(first))
    roots = words(memory, superblocks, at["SUPERBLOCK_ROOT"])
    roots = roots[(words(memory, superblocks, at["SUPERBLOCK_MAGIC"]) == _TRACEFS_MAGIC) & (roots != 0)]
    files = list_entries(memory, roots + np.uint64(at["DENTRY_CHILDREN"])) - np.uint64(at["DENTRY_SIBLING"])
    inodes = words(memory, files, at["DENTRY_INODE"])
    return words(memory, inodes[inodes != 0], at["INODE_PRIVATE"])


def _name(memory: WordReader, at: Mapping[str, int], instance: int) -> str:
    address = int(memory.peek([instance + at["INSTANCE_NAME"]])[0])
    return f"the instance {text(memory, address, _NAME_BYTES)}" if address else "the top instance"


def _rings(memory: WordReader, at: Mapping[str, int], buffer: int) -> _CpuRings | None:
    """The rings of a struct trace_buffer; None if it has none, or its memory was reserved at boot."""
    if not buffer or ("HAS_RESERVED_RING" in at and memory.peek([buffer + at["RING_RESERVED"]])[0]):
        return None
    order = int(memory.peek([buffer + at["RING_ORDER"]])[0]) & 0xFFFFFFFF if "HAS_RING_ORDER" in at else 0
    table = int(memory.peek([buffer + at["RING_PER_CPU"]])[0])
    cpus = np.arange(os.sysconf("SC_NPROCESSORS_CONF"), dtype="<u8")
    rings = memory.peek(np.uint64(table) + cpus * np.uint64(WORD_BYTES))
    rings = rings[rings != 0]
    rings = rings[words(memory, rings, at["CPU_RING_OWNER"]) == buffer]
    pages = words(memory, rings, at["CPU_RING_PAGE_COUNT"]).astype(np.int64)
    is_possible = (pages > 0) & (pages <= _MAX_PAGES)
    if order > _MAX_ORDER or not is_possible.any():
        return None
    return _CpuRings(rings[is_possible], pages[is_possible], order)


def _holding(context: HolderContext, found: _CpuRings, description: str) -> Holding:
    """The buffer with its blocks: the list of each CPU, and the page that its reader has taken out of it."""
    memory, at = context.scanner.source.memory, context.at
    items = np.zeros(2 * len(found.rings), ITEM_DTYPE)
    lists, readers = items[: len(found.rings)], items[len(found.rings) :]
    lists["head"], lists["kind"] = found.rings + np.uint64(at["CPU_RING_PAGES"]), Kind.LINKED
    lists["count"], lists["node"] = found.pages, at["RING_PAGE_DATA"] - at["RING_PAGE_LINK"]
    reader = words(memory, found.rings, at["CPU_RING_READER"])
    readers["head"], readers["count"] = reader + np.uint64(at["RING_PAGE_DATA"]), reader != 0
    readers["stride"], readers["kind"] = WORD_BYTES, Kind.BLOCKS
    walked = context.walk(items, "ftrace buffers")
    blocks = unique_blocks(np.concatenate([kernel_blocks(walked, item) for item in range(len(items))]))
    block_count = int(found.pages.sum()) + len(found.rings)
    size_bytes = block_count * (mmap.PAGESIZE << found.order)
    each = format_bytes(size_bytes // len(found.rings))
    holder = Holder(
        kind=HolderKind.FTRACE_BUFFER,
        description=f"{description}: {each} for each of {len(found.rings)} CPUs",
        unowned_reason="the kernel's own: its tracer",
        pinned_bytes=max(size_bytes, int(sizes_bytes(blocks).sum())),
        pinned_blocks=max(block_count, len(blocks)),
    )
    return Holding(holder, blocks)
