"""The maps as numpy reads them have the layout that the compiler gave the C structures."""

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import MEMORY_MAPS
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.sockets import source as sockets
from memdiag_node.trace import common_tables
from memdiag_node.trace.objects import tables
from memdiag_node.trace.objects.object_trace import ObjectTrace
from memdiag_node.trace.pages import tables as page_tables
from memdiag_node.trace.pages.frame_layout import CHUNK_FRAMES
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.settings import TraceSettings
from memdiag_node.walker import walker as queues

U32, U64 = np.dtype("<u4"), np.dtype("<u8")


def _entry(dtype: np.dtype[np.void]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    return dtype["key"], dtype["value"]


Layout = tuple[np.dtype[Any], np.dtype[Any]] | None
"""A map's key and value; None if user space does not read the value as a structure."""

MAPS: dict[str, dict[str, Layout]] = {
    "trace": {
        "config": (U32, page_tables.CONFIG_DTYPE),
        "sections": (U32, U64),
        "frames": (U32, np.dtype(("<u2", CHUNK_FRAMES))),
        "class_info": (U32, page_tables.CLASS_INFO_DTYPE),
        "classes": _entry(page_tables.CLASS_ENTRY_DTYPE),
        "spare_classes": None,
        "reserve_classes": None,
        "stacks": _entry(common_tables.STACK_ENTRY_DTYPE),
        "cgroups": _entry(common_tables.CGROUP_ENTRY_DTYPE),
        "births": _entry(page_tables.BIRTH_ENTRY_DTYPE),
        "lives": _entry(common_tables.LIFE_ENTRY_DTYPE),
        "cpu": (U32, page_tables.CPU_DTYPE),
        "scratch": None,
        "own_pages": (U32, U64),
    },
    "objects": {
        "config": (U32, tables.CONFIG_DTYPE),
        "large_caches": (U64, U64),
        "objects": _entry(tables.OBJECT_ENTRY_DTYPE),
        "entry_counts": (U32, U64),
        "totals": _entry(tables.TOTALS_ENTRY_DTYPE),
        "processes": _entry(tables.PROCESS_ENTRY_DTYPE),
        "stacks": _entry(common_tables.STACK_ENTRY_DTYPE),
        "cgroups": _entry(common_tables.CGROUP_ENTRY_DTYPE),
        "lives": _entry(common_tables.LIFE_ENTRY_DTYPE),
        "cpu": (U32, tables.CPU_DTYPE),
        "scratch": None,
    },
    "walker": {
        "work": (U32, queues.ITEM_DTYPE),
        "cursors": (U32, queues._CURSOR_DTYPE),
        "outputs": (U32, np.dtype((queues.RECORD_DTYPE, queues._RECORDS))),
        "scratches": None,
    },
    "sockets": {
        "subjects": (U32, U64),
        "descriptions": (U32, sockets.DESCRIPTION_DTYPE),
        "facts": (U32, U64),
        "words": (U32, MEMORY_MAPS["words"]),
        "watched": _entry(sockets._WATCHED_DTYPE),
        "file_kinds": _entry(sockets._FILE_KIND_DTYPE),
    },
}
UNDESCRIBED = {"cpu", "cgroups"}
"""Their values have arrays of arrays, which bcc's description of a map omits: here only the size is compared."""
NOT_IN_C = {"walk", "state"}
"""Of the cursor: fields of the C structure that user space only sets to zero, taken together."""


def sizes_bytes(map_fd: int) -> tuple[int, int]:
    """Key and value of a map, as the kernel has them."""
    lines = Path(f"/proc/self/fdinfo/{map_fd}").read_text().splitlines()
    found = {line.partition(":")[0]: line.split()[-1] for line in lines}
    return int(found["key_size"]), int(found["value_size"])


def map_names(bpf: BpfObject) -> Iterator[str]:
    """The maps of a loaded file, by the names in its source."""
    library, module = bpf._bcc.lib, bpf._module.module
    # Our own prototype: bcc has none for this function.
    name_of = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)(("bpf_table_name", library))
    for number in range(library.bpf_num_tables(module)):
        yield name_of(module, number).decode()


def offset_bytes(compiled: Any, field: str) -> int:
    """Where a field is in a structure, or in the struct process that it contains: here its fields stand alone."""
    if hasattr(compiled, field):
        return int(getattr(compiled, field).offset)
    return int(compiled.process.offset) + offset_bytes(dict(compiled._fields_)["process"], field)


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, BpfObject]]:
    """Each C file's maps, loaded as the runner loads them."""
    btf = Btf.load()
    with ExitStack() as stack:
        trace = stack.enter_context(PageTrace(TraceSettings(duration_seconds=60), roots=HostRoots()))
        objects = stack.enter_context(ObjectTrace(TraceSettings(duration_seconds=60), roots=HostRoots()))
        walker = stack.enter_context(queues.QueueWalker(btf))
        source = stack.enter_context(sockets.SocketSource(btf))
        assert trace._attached
        yield {
            "trace": trace._attached.bpf,
            "objects": objects._bpf,
            "walker": walker._object,
            "sockets": source._object,
        }


@pytest.mark.parametrize(("program", "name"), [(program, name) for program, maps in MAPS.items() for name in maps])
def test_a_map_is_read_as_it_was_compiled(programs: dict[str, BpfObject], program: str, name: str) -> None:
    layout, bpf = MAPS[program][name], programs[program]
    if layout is None:
        return
    assert tuple(part.itemsize for part in layout) == sizes_bytes(bpf.map_fd(name))
    if name in UNDESCRIBED:
        return
    table = bpf.table(name)
    for part, compiled in zip(layout, (table.Key, table.Leaf), strict=True):
        for field, (_, offset, *_) in (part.fields or {}).items():
            assert field in NOT_IN_C or (field, offset) == (field, offset_bytes(compiled, field))


def test_every_map_is_listed_here(programs: dict[str, BpfObject]) -> None:
    listed = {program: set(maps) for program, maps in MAPS.items()}
    assert {program: set(map_names(bpf)) for program, bpf in programs.items()} == listed
