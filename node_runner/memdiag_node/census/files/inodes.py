"""Every inode of the node that has pages in memory, from the inode caches of all file systems.

A file system embeds its inodes in objects of a cache of its own, and one that is a module has no structure in the
kernel's BTF. So no structure is looked up by name: an inode is recognized by its own address, which it keeps as the
host of its page cache (fs/inode.c, inode_init_always).
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.slab.census import SlabCensus

_FIELDS: tuple[Field, ...] = (
    ("INODE_SUPER_BLOCK", "inode", "i_sb"),
    ("INODE_LINKS", "inode", "i_nlink"),
    ("INODE_SIZE", "inode", "i_size"),
    ("INODE_NUMBER", "inode", "i_ino"),
    ("INODE_BLOCKS", "inode", "i_blocks"),
    ("INODE_DEVICE", "inode", "i_rdev"),
    ("INODE_ALIASES", "inode", "i_dentry"),
    ("INODE_HOST", "inode", "i_data.host"),
    ("INODE_PAGES", "inode", "i_data.nrpages"),
    ("INODE_PAGE_TREE", "inode", "i_data.i_pages.xa_head"),
)
SHMEM_CACHE = "shmem_inode_cache"
"""The cache of files in memory: tmpfs, memfds, shared memory (mm/shmem.c)."""
_SAMPLE = 32
_MAX_OBJECT_BYTES = 1 << 14
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Inodes:
    """The inodes that have pages in memory, and all of shmem, whose pages may be in swap; the number of all inodes."""

    address: npt.NDArray[np.uint64]
    super_block: npt.NDArray[np.uint64]
    pages: npt.NDArray[np.uint64]
    links: npt.NDArray[np.uint64]
    """Names in the file system; 0: deleted, or never had one."""
    cache: npt.NDArray[np.int64]
    """Number of the cache that it is in."""
    super_blocks: npt.NDArray[np.uint64]
    """Those of all inodes, ascending."""
    inodes_on: npt.NDArray[np.int64]
    """All inodes on each of them."""

    def chosen(self, mask: npt.NDArray[np.bool_]) -> Self:
        """Return these of the inodes that have pages; all still count in `inodes_on`."""
        return replace(
            self,
            address=self.address[mask],
            super_block=self.super_block[mask],
            pages=self.pages[mask],
            links=self.links[mask],
            cache=self.cache[mask],
        )


def inode_fields(btf: Btf) -> dict[str, int]:
    """Where an inode has what is read here, with HAS_INODES; empty if a field is missing."""
    found = optional_offsets(btf, "HAS_INODES", _FIELDS)
    return found | {"INODE_BYTES": btf.size_bytes("inode")} if found else {}


def read_inodes(census: SlabCensus, at: Mapping[str, int]) -> Inodes:
    """Read the inodes of all caches. `at` has the result of `inode_fields`."""
    pieces: list[tuple[npt.NDArray[np.uint64], ...]] = []
    caches: list[npt.NDArray[np.int64]] = []
    counts: dict[int, int] = {}
    shmem = census.named(SHMEM_CACHE)
    for number, inodes in _inodes_by_cache(census, at):
        for start in range(0, len(inodes), _PIECE):
            kept = _read_piece(census, at, inodes[start : start + _PIECE], counts, keep_empty=number in shmem)
            pieces.append(kept)
            caches.append(np.full(len(kept[0]), number))
    empty = np.empty(0, "<u8")
    columns = [np.concatenate([empty, *column]) for column in zip(*pieces, strict=True)] if pieces else [empty] * 4
    address, super_block, pages, links = columns
    super_blocks = sorted(counts)
    return Inodes(
        address,
        super_block,
        pages,
        links,
        cache=np.concatenate([np.empty(0, np.int64), *caches]),
        super_blocks=np.array(super_blocks, "<u8"),
        inodes_on=np.array([counts[one] for one in super_blocks], np.int64),
    )


def inode_offset(words: npt.NDArray[np.uint64], objects: npt.NDArray[np.uint64], host: int) -> int | None:
    """Return where in its object an inode starts, or None if there is none in most of them.

    `words` has the words of one object in each row, `host` is the offset of the inode's own address in an inode.
    """
    if not len(objects):
        return None
    places = np.arange(0, 8 * words.shape[1], 8, dtype="<u8")
    is_own = words + np.uint64(host) == objects[:, np.newaxis] + places
    count = is_own.sum(axis=0)
    best = int(np.argmax(count))
    offset = 8 * best - host
    return offset if 2 * count[best] > len(objects) and offset >= 0 else None


def _inodes_by_cache(census: SlabCensus, at: Mapping[str, int]) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
    """Yield the number of each cache of inodes, and the addresses of its inodes."""
    for number, cache in enumerate(census.caches):
        if not at["INODE_BYTES"] <= cache.object_bytes <= _MAX_OBJECT_BYTES or "kmalloc-" in cache.name:
            continue
        objects = census.objects(number)
        some = objects[:: max(1, len(objects) // _SAMPLE)][:_SAMPLE]
        places = np.arange(0, cache.object_bytes - 7, 8, dtype="<u8")
        words = census.memory.peek((some[:, np.newaxis] + places).reshape(-1)).reshape(len(some), len(places))
        offset = inode_offset(words, some, at["INODE_HOST"])
        if offset is not None and offset + at["INODE_BYTES"] <= cache.object_bytes:
            yield number, objects + np.uint64(offset)


def _read_piece(
    census: SlabCensus,
    at: Mapping[str, int],
    inodes: npt.NDArray[np.uint64],
    counts: dict[int, int],
    *,
    keep_empty: bool,
) -> tuple[npt.NDArray[np.uint64], ...]:
    """Count the inodes of each super block in `counts`; return address, super block, pages and links."""
    super_blocks = census.read(inodes, at["INODE_SUPER_BLOCK"])
    # Neighbours are mostly on the same file system: count run by run.
    starts = np.flatnonzero(np.concatenate(([True], super_blocks[1:] != super_blocks[:-1])))
    lengths = np.diff(np.append(starts, len(super_blocks)))
    known, which = np.unique(super_blocks[starts], return_inverse=True)
    sums = np.bincount(which, lengths, len(known)).astype(np.int64)
    for super_block, count in zip(known.tolist(), sums.tolist(), strict=True):
        if super_block:
            counts[super_block] = counts.get(super_block, 0) + count
    pages = census.read(inodes, at["INODE_PAGES"])
    used = ((pages != 0) | keep_empty) & (pages <= np.uint64(os.sysconf("SC_PHYS_PAGES"))) & (super_blocks != 0)
    inodes, super_blocks, pages = inodes[used], super_blocks[used], pages[used]
    links = census.read(inodes, at["INODE_LINKS"], 4)
    # Whatever was freed or used for another inode meanwhile.
    same = census.read(inodes, at["INODE_HOST"]) == inodes
    return inodes[same], super_blocks[same], pages[same], links[same]
