"""Which processes have a file open or mapped, from all tasks, open files and memory areas of the node."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.slab.census import SlabCensus

_PIECE = 1 << 18
_MAX_TABLE = 1 << 20
"""File descriptors of one process; the default of fs.nr_open."""
_MAX_DESCRIPTORS = 1 << 23
"""Of the whole node."""
_MAX_PID = 1 << 22
_MAX_FDS = 64

_OPEN: tuple[Field, ...] = (
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_MEMORY", "task_struct", "mm"),
    ("TASK_FILES", "task_struct", "files"),
    ("TASK_NAMESPACES", "task_struct", "nsproxy"),
    ("FILES_TABLE", "files_struct", "fdt"),
    ("TABLE_SIZE", "fdtable", "max_fds"),
    ("TABLE_FILES", "fdtable", "fd"),
    ("FILE_INODE", "file", "f_inode"),
)
_MAPPED: tuple[Field, ...] = (
    ("AREA_FILE", "vm_area_struct", "vm_file"),
    ("AREA_MEMORY", "vm_area_struct", "vm_mm"),
    ("AREA_START", "vm_area_struct", "vm_start"),
    ("AREA_END", "vm_area_struct", "vm_end"),
)


@dataclass(slots=True)
class FileUse:
    """How one process uses one file."""

    fds: list[int] = field(default_factory=list)
    """The first of them."""
    mapped_bytes: int = 0
    """Address space that the file is mapped to, in memory or not."""


@dataclass(frozen=True, slots=True)
class _OpenFiles:
    """Structures `file` of chosen inodes, which descriptors and memory areas point to."""

    address: npt.NDArray[np.uint64]
    """Ascending."""
    number: npt.NDArray[np.int64]
    """Number of the inode of each."""


Uses = dict[int, dict[int, FileUse]]
"""Number of the file, pid: the use."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """All tasks of the node; kernel threads have no memory and mostly no files."""

    pid: npt.NDArray[np.uint64]
    """Of the process."""
    memory: npt.NDArray[np.uint64]
    files: npt.NDArray[np.uint64]
    namespaces: npt.NDArray[np.uint64]


def user_fields(btf: Btf) -> dict[str, int]:
    """Where tasks, files and memory areas have what is read here, with HAS_OPEN_FILES and HAS_MAPPINGS."""
    return optional_offsets(btf, "HAS_OPEN_FILES", _OPEN) | optional_offsets(btf, "HAS_MAPPINGS", _MAPPED)


def read_tasks(census: SlabCensus, at: Mapping[str, int]) -> Tasks:
    """Read all tasks. `at` has the result of `user_fields`."""
    found = [np.empty((4, 0), "<u8")]
    for number in census.named("task_struct") if "HAS_OPEN_FILES" in at else ():
        tasks = census.objects(number)
        pids = census.read(tasks, at["TASK_TGID"], 4)
        pointers = [census.read(tasks, at[name]) for name in ("TASK_MEMORY", "TASK_FILES", "TASK_NAMESPACES")]
        good = census.still_allocated(number, tasks) & (pids <= _MAX_PID)
        found.append(np.array([pids, *pointers])[:, good])
    return Tasks(*np.concatenate(found, axis=1))


def file_users(census: SlabCensus, at: Mapping[str, int], tasks: Tasks, inodes: npt.NDArray[np.uint64]) -> Uses:
    """Return who uses each of these inodes, by their numbers. `at` has the result of `user_fields`."""
    uses: Uses = {}
    if not len(inodes) or "HAS_OPEN_FILES" not in at:
        return uses
    files = _open_files(census, at, inodes)
    if len(files.address):
        _add_descriptors(census, at, tasks, files, uses)
        _add_mappings(census, at, tasks, files, uses)
    return uses


def _open_files(census: SlabCensus, at: Mapping[str, int], inodes: npt.NDArray[np.uint64]) -> _OpenFiles:
    """The open files of these inodes."""
    order = np.argsort(inodes)
    found, numbers = [np.empty(0, "<u8")], [np.empty(0, np.int64)]
    for cache in census.named("filp"):
        files = census.objects(cache)
        for start in range(0, len(files), _PIECE):
            piece = files[start : start + _PIECE]
            place, is_known = _places(inodes[order], census.read(piece, at["FILE_INODE"]))
            found.append(piece[is_known])
            numbers.append(order[place[is_known]])
    files, numbers_of = np.concatenate(found), np.concatenate(numbers)
    by_address = np.argsort(files)
    return _OpenFiles(files[by_address], numbers_of[by_address])


def _add_descriptors(
    census: SlabCensus,
    at: Mapping[str, int],
    tasks: Tasks,
    files: _OpenFiles,
    uses: Uses,
) -> None:
    """Look for these files in the descriptor tables of all processes."""
    owners, first = np.unique(tasks.files, return_index=True)
    owners, first = owners[owners != 0], first[owners != 0]
    tables = census.memory.peek(owners + np.uint64(at["FILES_TABLE"]))
    sizes = census.read(tables, at["TABLE_SIZE"], 4).astype(np.int64)
    arrays = census.read(tables, at["TABLE_FILES"])
    good = (tables != 0) & (arrays != 0) & (sizes <= _MAX_TABLE)
    pids, sizes, arrays = tasks.pid[first][good], sizes[good], arrays[good]
    within = np.cumsum(sizes) <= _MAX_DESCRIPTORS
    pids, sizes, arrays = pids[within], sizes[within], arrays[within]
    starts = np.cumsum(sizes) - sizes
    for start in range(0, int(sizes.sum()), _PIECE):
        slots = np.arange(start, min(start + _PIECE, int(sizes.sum())))
        table = np.searchsorted(starts, slots, side="right") - 1
        fds = slots - starts[table]
        place, is_known = _places(files.address, census.memory.peek(arrays[table] + (8 * fds).astype("<u8")))
        rows = zip(
            files.number[place[is_known]].tolist(), pids[table[is_known]].tolist(), fds[is_known].tolist(), strict=True
        )
        for number, pid, fd in rows:
            use = uses.setdefault(number, {}).setdefault(pid, FileUse())
            if len(use.fds) < _MAX_FDS:
                use.fds.append(fd)


def _add_mappings(
    census: SlabCensus,
    at: Mapping[str, int],
    tasks: Tasks,
    files: _OpenFiles,
    uses: Uses,
) -> None:
    """Look for these files in the memory areas of all processes."""
    memories, first = np.unique(tasks.memory, return_index=True)
    for cache in census.named("vm_area_struct") if "HAS_MAPPINGS" in at else ():
        areas = census.objects(cache)
        for start in range(0, len(areas), _PIECE):
            piece = areas[start : start + _PIECE]
            place, is_known = _places(files.address, census.read(piece, at["AREA_FILE"]))
            piece, number = piece[is_known], files.number[place[is_known]]
            owner, has_owner = _places(memories, census.read(piece, at["AREA_MEMORY"]))
            sizes = census.read(piece, at["AREA_END"]) - census.read(piece, at["AREA_START"])
            good = has_owner & census.still_allocated(cache, piece) & (sizes < np.uint64(1 << 56))
            pids = tasks.pid[first[owner[good]]]
            for one, pid, size in zip(number[good].tolist(), pids.tolist(), sizes[good].tolist(), strict=True):
                uses.setdefault(one, {}).setdefault(pid, FileUse()).mapped_bytes += size


def _places(
    known: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each wanted value is in `known`, which ascends, and whether it is there. 0 never is."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return places, (known[places] == wanted) & (wanted != 0)
