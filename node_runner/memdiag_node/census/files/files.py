"""The memory of all files: page cache and shmem by file and file system, with path, charge and users.

No file is opened: inodes that are deleted, or that no process has open, are found in their slabs.
"""

import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.census.files import FileKind
from memdiag_node.census.files.charges import Charge, file_charges
from memdiag_node.census.files.found import FoundFile, FoundSegment, RawFiles, SystemSum, file_kind
from memdiag_node.census.files.inodes import SHMEM_CACHE, Inodes, inode_fields, read_inodes
from memdiag_node.census.files.paths import PathReader, cut_path, path_fields
from memdiag_node.census.files.super_blocks import FileSystem, read_file_systems, super_block_fields
from memdiag_node.census.files.sysv_segments import Segments, read_segments, segment_fields
from memdiag_node.census.files.users import FileUse, file_users, read_tasks, user_fields
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import optional_offsets
from memdiag_node.kernel.xarray import xarray_fields
from memdiag_node.procfs.kpageflags import ReadFrames
from memdiag_node.slab.census import SlabCensus

_SECTOR_BYTES = 512
_SMALL_BYTES = 256 * 1024
"""Smaller files are in the sums only."""
_MAX_LENGTH = (1 << 63) - 1
_MINOR_BITS, _MINOR_MASK = 20, (1 << 20) - 1  # include/linux/kdev_t.h


def fields(btf: Btf) -> dict[str, int]:
    """Return where the running kernel has what `read_files` needs. Without HAS_INODES, files cannot be read."""
    # The count of swapped pages is in the structure around a shmem inode.
    swapped = (("SHMEM_SWAPPED", "shmem_inode_info", "swapped"), ("SHMEM_INODE", "shmem_inode_info", "vfs_inode"))
    return {
        **inode_fields(btf),
        **super_block_fields(btf),
        **path_fields(btf),
        **xarray_fields(btf),
        **user_fields(btf),
        **segment_fields(btf),
        **optional_offsets(btf, "HAS_SWAPPED", swapped),
    }


def read_files(
    census: SlabCensus, at: Mapping[str, int], *, read_charges: ReadFrames | None = None, with_paths: bool = True
) -> RawFiles | None:
    """Read all files, or None if this kernel's inodes are not known. `at` is the result of `fields`.

    `read_charges` reads /proc/kpagecgroup. Without `with_paths`, no path and no name of a file is kept.
    """
    if "HAS_INODES" not in at:
        return None
    return _Reading(census, at, with_paths=with_paths).result(read_charges)


class _Reading:
    """One pass over all files."""

    def __init__(self, census: SlabCensus, at: Mapping[str, int], *, with_paths: bool) -> None:
        self._census = census
        self._at = at
        self._with_paths = with_paths
        self._inodes = inodes = _still_there(census, read_inodes(census, at))
        self._systems = read_file_systems(census.memory, at, inodes.super_blocks)
        self._system_of = np.searchsorted(inodes.super_blocks, inodes.super_block)
        self._is_shmem = np.isin(inodes.cache, census.named(SHMEM_CACHE))
        self._is_huge = self._is_on([one.name == "hugetlbfs" for one in self._systems])
        self._is_block_device = self._is_on([one.name == "bdev" for one in self._systems])
        self._is_internal = self._is_on([one.is_internal for one in self._systems])
        self._bytes = inodes.pages.astype(np.int64) << census.at["PAGE_SHIFT"]
        sectors = census.read(inodes.address[self._is_huge], at["INODE_BLOCKS"])  # its pages are not counted as pages
        self._bytes[self._is_huge] = np.minimum(sectors.astype(np.int64) * _SECTOR_BYTES, _ram_bytes())
        self._is_deleted = (inodes.links == 0) & ~self._is_internal & ~self._is_huge
        self._swapped = self._read_swapped()
        self._paths = PathReader(census.memory, at)

    def _is_on(self, systems: list[bool]) -> npt.NDArray[np.bool_]:
        """Whether each inode is on one of the chosen file systems."""
        return np.array([*systems, False], np.bool_)[self._system_of]

    def _read_swapped(self) -> npt.NDArray[np.int64]:
        """Bytes of each inode in swap space."""
        swapped = np.zeros(len(self._bytes), np.int64)
        if "HAS_SWAPPED" in self._at:
            distance = np.uint64((self._at["SHMEM_SWAPPED"] - self._at["SHMEM_INODE"]) % (1 << 64))
            pages = self._census.memory.peek(self._inodes.address[self._is_shmem] + distance)
            pages[pages > np.uint64(1 << 40)] = 0  # freed meanwhile
            swapped[self._is_shmem] = pages.astype(np.int64) << self._census.at["PAGE_SHIFT"]
        return swapped

    def result(self, read_charges: ReadFrames | None) -> RawFiles:
        tasks = read_tasks(self._census, self._at)
        segments = read_segments(self._census, self._at, tasks.namespaces)
        chosen, rows = self._largest_segments(segments)
        largest = self._largest()
        addresses = self._inodes.address[np.concatenate([largest, rows])]
        charges = file_charges(self._census, self._at, addresses, read_charges) if read_charges else {}
        uses = file_users(self._census, self._at, tasks, addresses[: len(largest)])
        systems = self._system_sums()
        return RawFiles(
            inodes=int(self._inodes.inodes_on.sum()),
            cached_bytes=int(self._bytes[~self._is_huge].sum()),
            shmem_bytes=int(self._bytes[self._is_shmem].sum()),
            block_device_bytes=int(self._bytes[self._is_block_device].sum()),
            deleted_bytes=int(self._bytes[self._is_deleted].sum()),
            huge_page_bytes=int(self._bytes[self._is_huge].sum()),
            swapped_bytes=int(self._swapped.sum()),
            systems=systems[: limits.MAX_FILE_SYSTEMS],
            systems_total=len(systems),
            files=self._files(largest, charges, uses),
            segments=[
                self._segment(segments, number, row, charges.get(len(largest) + place))
                for place, (number, row) in enumerate(zip(chosen.tolist(), rows.tolist(), strict=True))
            ],
            segments_total=len(segments.inode),
            sampled_share=self._census.sampled_share,
        )

    def _largest(self) -> npt.NDArray[np.int64]:
        """The largest files, half of them among those that reclaim does not free; largest first."""
        most = limits.MAX_CACHED_FILES
        by_size = np.argsort(-self._bytes, kind="stable")
        kept = by_size[(self._is_deleted | self._is_shmem)[by_size]][: most // 2]
        others = by_size[:most][~np.isin(by_size[:most], kept)][: most - len(kept)]
        chosen = np.concatenate([kept, others])
        chosen = chosen[self._bytes[chosen] >= _SMALL_BYTES]
        order = np.argsort(-self._bytes[chosen], kind="stable")
        largest: npt.NDArray[np.int64] = chosen[order]
        return largest

    def _files(
        self, rows: npt.NDArray[np.int64], charges: Mapping[int, Charge], uses: Mapping[int, Mapping[int, FileUse]]
    ) -> list[FoundFile]:
        inodes = self._inodes.address[rows]
        sizes = self._census.read(inodes, self._at["INODE_SIZE"]).tolist()
        numbers = self._census.read(inodes, self._at["INODE_NUMBER"]).tolist()
        device_numbers = self._census.read(inodes, self._at["INODE_DEVICE"], 4).tolist()
        paths = self._paths_of(inodes, self._inodes.super_block[rows])
        found = []
        for place, row in enumerate(rows.tolist()):
            system, path = self._systems[self._system_of[row]], paths[place]
            kind = file_kind(system, path[-1] if path else "", is_shmem=bool(self._is_shmem[row]))
            if kind is FileKind.BLOCK_DEVICE:
                system = self._device_of(system, device_numbers[place])
            found.append(
                FoundFile(
                    kind=kind,
                    system=system,
                    inode=min(numbers[place], _MAX_LENGTH),
                    path=_shown(path, kind) if self._with_paths else "",
                    is_deleted=bool(self._is_deleted[row]),
                    cached_bytes=int(self._bytes[row]),
                    size_bytes=min(sizes[place], _MAX_LENGTH),
                    swapped_bytes=int(self._swapped[row]),
                    charge=charges.get(place),
                    uses=uses.get(place, {}),
                )
            )
        return found

    def _device_of(self, system: FileSystem, number: int) -> FileSystem:
        """The file system of block devices, with the name of this one, or its number if nothing is mounted from it."""
        names = [one.device for one in self._systems if one.device_number == number]
        return replace(system, device=names[0] if names else f"{number >> _MINOR_BITS}:{number & _MINOR_MASK}")

    def _paths_of(self, inodes: npt.NDArray[np.uint64], super_blocks: npt.NDArray[np.uint64]) -> list[list[str]]:
        """The path of one name of each inode; empty if none is in memory."""
        if "HAS_ALIASES" not in self._at or "HAS_DENTRIES" not in self._at:
            return [[] for _ in inodes]
        aliases = self._census.read(inodes, self._at["INODE_ALIASES"])
        dentries = np.where(aliases != 0, aliases - np.uint64(self._at["DENTRY_ALIAS"]), np.uint64(0))
        # One that was freed meanwhile no longer names this inode.
        names_it = self._census.read(dentries, self._at["DENTRY_INODE"]) == inodes
        return self._paths.paths(np.where(names_it, dentries, np.uint64(0)), super_blocks)

    def _largest_segments(self, segments: Segments) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The number of each of the largest segments with pages in memory, and the row of its inode."""
        by_address = np.argsort(self._inodes.address)
        addresses = self._inodes.address[by_address]
        places = np.minimum(np.searchsorted(addresses, segments.inode), max(0, len(addresses) - 1))
        chosen = np.flatnonzero(addresses[places] == segments.inode) if len(addresses) else np.empty(0, np.int64)
        rows = by_address[places[chosen]]
        largest = np.argsort(-self._bytes[rows], kind="stable")[: limits.MAX_CACHED_SEGMENTS]
        return chosen[largest], rows[largest]

    def _segment(self, segments: Segments, number: int, row: int, charge: Charge | None) -> FoundSegment:
        return FoundSegment(
            identifier=int(segments.identifier[number]),
            cached_bytes=int(self._bytes[row]),
            size_bytes=min(int(segments.size_bytes[number]), _MAX_LENGTH),
            swapped_bytes=int(self._swapped[row]),
            attached=min(int(segments.attached[number]), _MAX_LENGTH),
            creator_pid=int(segments.creator_pid[number]),
            charge=charge,
        )

    def _system_sums(self) -> list[SystemSum]:
        """The sum of each file system with pages in memory, largest first; mount points of the first ones."""
        size = len(self._systems)
        cached = np.bincount(self._system_of, self._bytes, size).astype(np.int64)
        deleted = np.bincount(self._system_of, self._bytes * self._is_deleted, size).astype(np.int64)
        order = np.argsort(-cached, kind="stable")
        order = order[cached[order] > 0]
        points = self._mount_points(order[: limits.MAX_FILE_SYSTEMS])
        return [
            SystemSum(
                self._systems[number],
                mount_point=points[place] if place < len(points) else "",
                inodes=int(self._inodes.inodes_on[number]),
                cached_bytes=int(cached[number]),
                deleted_bytes=int(deleted[number]),
            )
            for place, number in enumerate(order.tolist())
        ]

    def _mount_points(self, numbers: npt.NDArray[np.int64]) -> list[str]:
        if not self._with_paths:
            return ["" for _ in numbers]
        paths = self._paths.mount_points(self._inodes.super_blocks[numbers])
        return [
            "" if path is None or self._systems[number].is_internal else cut_path(path)
            for number, path in zip(numbers.tolist(), paths, strict=True)
        ]


def _still_there(census: SlabCensus, inodes: Inodes) -> Inodes:
    """Without the inodes that were freed while they were read."""
    kept = np.zeros(len(inodes.address), np.bool_)
    for cache in np.unique(inodes.cache).tolist():
        rows = np.flatnonzero(inodes.cache == cache)
        objects, _ = census.find(inodes.address[rows])
        kept[rows] = census.still_allocated(cache, objects)
    return inodes.chosen(kept)


def _shown(path: list[str], kind: FileKind) -> str:
    """A path; a file that has none is named as the kernel does in /proc/PID/maps."""
    if not path or kind in (FileKind.FILE, FileKind.TMPFS, FileKind.HUGE_PAGES):
        return cut_path(path) if path else ""
    return path[-1]


def _ram_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
