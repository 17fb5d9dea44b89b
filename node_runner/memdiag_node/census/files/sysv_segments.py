"""System V shared memory of every IPC namespace, with its creator, attached or not (ipc/shm.c)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.census.files.page_tree import some_entries
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.slab.census import SlabCensus

_MAX_NAMESPACES = 1 << 12
_MAX_SEGMENTS = 1 << 12
"""Of one namespace: the default of kernel.shmmni."""
_SHARED_MEMORY = 2  # include/linux/ipc_namespace.h: the tables of semaphores, messages, shared memory
_MAX_PID = 1 << 22
_FIELDS: tuple[Field, ...] = (
    ("NAMESPACES_IPC", "nsproxy", "ipc_ns"),
    ("IPC_TABLES", "ipc_namespace", "ids"),
    ("IPC_TABLE_HEAD", "ipc_ids", "ipcs_idr.idr_rt.xa_head"),
    ("SEGMENT_ID", "shmid_kernel", "shm_perm.id"),
    ("SEGMENT_PERMISSIONS", "shmid_kernel", "shm_perm"),
    ("SEGMENT_FILE", "shmid_kernel", "shm_file"),
    ("SEGMENT_ATTACHED", "shmid_kernel", "shm_nattch"),
    ("SEGMENT_SIZE", "shmid_kernel", "shm_segsz"),
    ("SEGMENT_CREATOR", "shmid_kernel", "shm_cprid"),
    ("SEGMENT_FILE_INODE", "file", "f_inode"),
    ("PID_NUMBER", "pid", "numbers.nr"),
)


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of all namespaces: one element each."""

    inode: npt.NDArray[np.uint64]
    """Address of the inode that has its pages."""
    identifier: npt.NDArray[np.uint64]
    """Unique in its namespace only."""
    size_bytes: npt.NDArray[np.uint64]
    attached: npt.NDArray[np.uint64]
    creator_pid: npt.NDArray[np.uint64]
    """The process may have exited."""


def segment_fields(btf: Btf) -> dict[str, int]:
    """Where segments are found, with HAS_SEGMENTS; empty on a kernel without them (CONFIG_SYSVIPC)."""
    found = optional_offsets(btf, "HAS_SEGMENTS", _FIELDS)
    return found | {"IPC_TABLE_BYTES": btf.size_bytes("ipc_ids")} if found else {}


def read_segments(census: SlabCensus, at: Mapping[str, int], namespaces: npt.NDArray[np.uint64]) -> Segments:
    """Read the segments in the IPC namespaces of these nsproxy.

    `at` has the results of `segment_fields` and `xarray_fields`.
    """
    if "HAS_SEGMENTS" not in at or "HAS_XARRAY" not in at:
        return Segments(*np.empty((5, 0), "<u8"))
    spaces = np.unique(census.memory.peek(np.unique(namespaces) + np.uint64(at["NAMESPACES_IPC"])))
    table = at["IPC_TABLES"] + _SHARED_MEMORY * at["IPC_TABLE_BYTES"] + at["IPC_TABLE_HEAD"]
    heads = census.memory.peek(spaces[spaces != 0][:_MAX_NAMESPACES] + np.uint64(table))
    _, found = some_entries(census.memory, at, heads, _MAX_SEGMENTS)
    segments = found - np.uint64(at["SEGMENT_PERMISSIONS"])
    files = census.read(segments, at["SEGMENT_FILE"])
    # The memory of a segment has no type, so it is one only if its file is one.
    starts, slabs = census.find(files)
    caches = np.where(slabs >= 0, census.slabs.table["cache"][slabs], -1) if len(census.slabs.table) else slabs
    is_file = (starts == files) & np.isin(caches, census.named("filp"))
    segments, files = segments[is_file], files[is_file]
    creators = census.read(census.read(segments, at["SEGMENT_CREATOR"]), at["PID_NUMBER"], 4)
    creators[creators > _MAX_PID] = 0
    return Segments(
        inode=census.read(files, at["SEGMENT_FILE_INODE"]),
        identifier=census.read(segments, at["SEGMENT_ID"], 4),
        size_bytes=census.read(segments, at["SEGMENT_SIZE"]),
        attached=census.read(segments, at["SEGMENT_ATTACHED"]),
        creator_pid=creators,
    )
