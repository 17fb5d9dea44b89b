"""The directory cache: names of files, and names that do not exist (negative entries), by file system and directory.

A node may have millions of entries, so the fields of at most a quarter of a million are read: one at a random place in
each of equal parts of all entries, in the order of their addresses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.census.dentries import DentryCensus, DentryShare
from memdiag_node.census.files.paths import PathReader, cut_path, path_fields
from memdiag_node.census.files.super_blocks import FileSystem, read_file_systems, super_block_fields
from memdiag_node.kernel.btf import Btf
from memdiag_node.slab.census import SlabCensus

SAMPLED = 1 << 18
"""Entries whose fields are read at most."""
_PIECE = 1 << 13
_MAX_NAME = 255
# include/linux/slab.h, the classes of kmalloc up to the longest name; a name follows a head of 16 bytes (fs/dcache.c).
_KMALLOC_BYTES = np.array([8, 16, 32, 64, 96, 128, 192, 256, 512])
_NAME_HEAD_BYTES = 16


@dataclass(frozen=True, slots=True)
class FoundShare:
    """The entries of one file system or directory."""

    system: FileSystem
    path: str
    entries: int
    negative: int


@dataclass(frozen=True, slots=True)
class RawDentries:
    """What was read. All counts but `entries` and `slab_bytes` are those of the entries that were read."""

    entries: int
    slab_bytes: int
    entry_bytes: int
    """Size of one entry."""
    read: int
    negative: int
    unused: int
    long_names_bytes: int
    systems: list[FoundShare]
    directories: list[FoundShare]
    sampled_share: float
    """Of memory."""


def fields(btf: Btf) -> dict[str, int]:
    """Return where the running kernel has what `read_dentries` needs. Without HAS_DENTRIES, they cannot be read."""
    return {**super_block_fields(btf), **path_fields(btf)}


def read_dentries(census: SlabCensus, at: Mapping[str, int], *, with_paths: bool = True) -> RawDentries | None:
    """Read the directory cache, or None if this kernel's entries are not known. `at` is the result of `fields`.

    Without `with_paths`, no path is kept.
    """
    caches = census.named("dentry")
    if "HAS_DENTRIES" not in at or len(caches) != 1:
        return None
    cache = caches[0]
    chosen, total = census.spread_objects(cache, SAMPLED)
    if len(chosen) == total:  # otherwise it takes longer than to read them; they are not looked at one by one
        chosen = chosen[census.still_allocated(cache, chosen)]
    found = _read_fields(census, at, cache, chosen)
    negative = found.inode == 0
    systems, directories = (_largest(_count(keys, negative)) for keys in (found.super_block, found.parent))
    paths = PathReader(census.memory, at)
    return RawDentries(
        entries=total,
        slab_bytes=census.count()[cache].slab_bytes,
        entry_bytes=census.caches[cache].stride_bytes,
        read=len(chosen),
        negative=int(negative.sum()),
        unused=int((found.users == 0).sum()),
        long_names_bytes=found.long_names_bytes,
        systems=_shares(census, at, systems, systems.key, paths.mount_points(systems.key) if with_paths else None),
        directories=_directories(census, at, cache, directories, paths if with_paths else None),
        sampled_share=census.sampled_share,
    )


def name_bytes(lengths: npt.NDArray[np.uint64]) -> int:
    """Return the bytes of the kmalloc objects that hold names of these lengths outside of their entries."""
    needed = _NAME_HEAD_BYTES + np.minimum(lengths, _MAX_NAME).astype(np.int64) + 1
    return int(_KMALLOC_BYTES[np.searchsorted(_KMALLOC_BYTES, needed)].sum())


@dataclass(frozen=True, slots=True)
class _Fields:
    """Fields of the entries that were read, and the sum of what their names need."""

    inode: npt.NDArray[np.uint64]
    users: npt.NDArray[np.uint64]
    parent: npt.NDArray[np.uint64]
    super_block: npt.NDArray[np.uint64]
    long_names_bytes: int


@dataclass(frozen=True, slots=True)
class _Counts:
    """Entries by key, the address of a directory's entry or of a super block."""

    key: npt.NDArray[np.uint64]
    entries: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64]


def _read_fields(census: SlabCensus, at: Mapping[str, int], cache: int, entries: npt.NDArray[np.uint64]) -> _Fields:
    """Read the entries. A name that is not inside of its entry is a long one."""
    end = np.uint64(census.caches[cache].object_bytes)
    size = len(entries)
    inode, users, parent, super_block = (np.empty(size, "<u8") for _ in range(4))
    long_names = 0
    # All fields of one piece after each other, while it is in the CPU's cache.
    for start in range(0, size, _PIECE):
        piece, at_piece = entries[start : start + _PIECE], slice(start, start + _PIECE)
        inode[at_piece] = census.read(piece, at["DENTRY_INODE"])
        users[at_piece] = census.read(piece, at["DENTRY_USERS"], 4)
        parent[at_piece] = census.read(piece, at["DENTRY_PARENT"])
        super_block[at_piece] = census.read(piece, at["DENTRY_SUPER_BLOCK"])
        is_long = census.read(piece, at["DENTRY_NAME"]) - piece >= end
        long_names += name_bytes(census.read(piece[is_long], at["DENTRY_HASH_LENGTH"]) >> np.uint64(32))
    return _Fields(inode, users, parent, super_block, long_names)


def _count(keys: npt.NDArray[np.uint64], negative: npt.NDArray[np.bool_]) -> _Counts:
    """Count the entries of each key. Neighbours mostly have the same key, so runs of the same key are counted first."""
    if not len(keys):
        return _Counts(keys, np.empty(0, np.int64), np.empty(0, np.int64))
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    lengths = np.diff(np.append(starts, len(keys)))
    negatives = np.add.reduceat(negative.astype(np.int64), starts)
    known, which = np.unique(keys[starts], return_inverse=True)
    sums = [np.bincount(which, weights, len(known)).astype(np.int64) for weights in (lengths, negatives)]
    return _Counts(known, *sums)


def _largest(counts: _Counts) -> _Counts:
    order = np.argsort(-counts.entries, kind="stable")
    order = order[counts.key[order] != 0][: limits.MAX_DENTRY_SHARES]
    return _Counts(counts.key[order], counts.entries[order], counts.negative[order])


def _directories(
    census: SlabCensus, at: Mapping[str, int], cache: int, counts: _Counts, paths: PathReader | None
) -> list[FoundShare]:
    # What was freed meanwhile may name anything as its parent.
    is_entry = census.still_allocated(cache, counts.key)
    counts = _Counts(counts.key[is_entry], counts.entries[is_entry], counts.negative[is_entry])
    super_blocks = census.read(counts.key, at["DENTRY_SUPER_BLOCK"])
    return _shares(census, at, counts, super_blocks, paths.paths(counts.key, super_blocks) if paths else None)


def _shares(
    census: SlabCensus,
    at: Mapping[str, int],
    counts: _Counts,
    super_blocks: npt.NDArray[np.uint64],
    paths: Sequence[list[str] | None] | None,
) -> list[FoundShare]:
    systems = read_file_systems(census.memory, at, super_blocks)
    rows = zip(systems, paths or [None] * len(systems), counts.entries.tolist(), counts.negative.tolist(), strict=True)
    return [
        FoundShare(system, "" if path is None or system.is_internal else cut_path(path), entries, negative)
        for system, path, entries, negative in rows
        if system.name
    ]


def dentries_record(raw: RawDentries) -> DentryCensus:
    """Return the record, with the counts of the entries that were read scaled to all."""
    memory_share = raw.sampled_share or 1.0
    read_share = raw.read / raw.entries if raw.entries else 1.0
    share = read_share * memory_share

    def scaled(count: int) -> int:
        return round(count / share) if share else 0

    def shares(found: Sequence[FoundShare]) -> list[DentryShare]:
        return [
            DentryShare(
                file_system=one.system.name,
                device=one.system.device,
                path=one.path,
                entries=scaled(one.entries),
                negative=scaled(one.negative),
            )
            for one in found
        ]

    return DentryCensus(
        entries=round(raw.entries / memory_share),
        size_bytes=round(raw.slab_bytes / memory_share),
        negative=scaled(raw.negative),
        negative_bytes=scaled(raw.negative) * raw.entry_bytes,
        unused=scaled(raw.unused),
        long_names_bytes=scaled(raw.long_names_bytes),
        file_systems=shares(raw.systems),
        directories=shares(raw.directories),
        sampled_share=min(1.0, share),
    )
