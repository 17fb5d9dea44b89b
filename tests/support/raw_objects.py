"""Tables of the object trace, made by hand, and slabs for what is in them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memdiag_node.slab.cache import Cache
from memdiag_node.slab.lookup import LocatedObjects
from memdiag_node.trace.objects import tables
from memdiag_node.trace.objects.decode import RawObjects
from memdiag_node.trace.objects.eviction import Evictions
from memdiag_node.trace.objects.sampling import alignment_bytes
from memdiag_node.trace.objects.tables import Kind

STARTED_NS = 10**9
LINEAR_MAP = 0xFFFF888000000000
PAGE_BYTES = 4096


def object_entries(rows: Sequence[tuple[int, int]] = (), **values: Any) -> npt.NDArray[np.void]:
    """Entries of the table of objects, from key and stack of each; `values` are those of all others fields."""
    entries = np.zeros(len(rows), tables.OBJECT_ENTRY_DTYPE)
    entries["value"]["born_ns"] = STARTED_NS
    for row, (key, stack) in enumerate(rows):
        entries["key"][row], entries["value"]["stack"][row] = key, stack
    entries["value"]["one_in"] = tables.DENSEST_BYTES // alignment_bytes(entries["key"])
    for name, value in values.items():
        entries["value"][name] = value
    return entries


def stack_entries(addresses: dict[int, Sequence[int]]) -> npt.NDArray[np.void]:
    """Entries of the table of stacks, from the hash and the return addresses of each."""
    entries = np.zeros(len(addresses), tables.MAPS["stacks"])
    for row, (stack, frames) in enumerate(addresses.items()):
        entries["key"][row] = stack
        entries["value"]["frames"][row] = len(frames)
        entries["value"]["address"][row][: len(frames)] = frames
    return entries


def raw_objects(entries: npt.NDArray[np.void], **others: Any) -> RawObjects:
    """The tables of a trace of ten slices of a second; `others` replaces any of its fields."""
    stacks = stack_entries({stack: [stack] for stack in np.unique(entries["value"]["stack"]).tolist()})
    fields: dict[str, Any] = {
        "stacks": stacks,
        "contexts": np.zeros(len(others.get("stacks", stacks)), np.uint8),
        "symbols": defaultdict(lambda: "caller+0x1"),
        "totals": np.zeros(0, tables.TOTALS_ENTRY_DTYPE),
        "processes": np.zeros(0, tables.PROCESS_ENTRY_DTYPE),
        "cgroups": np.zeros(0, tables.MAPS["cgroups"]),
        "lives": np.zeros(0, tables.MAPS["lives"]),
        "cpus": np.zeros(2, tables.CPU_DTYPE),
        "evictions": Evictions(tables.OBJECTS),
        "kinds": tuple(Kind),
        "started_ns": STARTED_NS,
        "slices": 10,
        "slice_seconds": 1.0,
        "traced_seconds": 10.0,
        "table_bytes": 0,
        "missed_runs": 0,
    }
    return RawObjects(entries=entries, **fields | others)


def slab_cache(
    name: str = "kmalloc-64", stride_bytes: int = 64, *, is_reclaimable: bool = False, address: int = 0
) -> Cache:
    """A cache; only what stacks show of it is meaningful."""
    return Cache(
        address=address,
        name=name,
        stride_bytes=stride_bytes,
        object_bytes=stride_bytes,
        free_pointer_bytes=0,
        random=0,
        left_pad_bytes=0,
        is_reclaimable=is_reclaimable,
        is_merged=False,
    )


def located(raw: RawObjects, caches: Sequence[Cache], numbers: Sequence[int] | None = None) -> LocatedObjects:
    """The slabs of the trace's objects, all allocated: of each, its index in `caches`; by default all in the first."""
    count = len(raw.slab_addresses())
    cache = np.zeros(count, np.int32) if numbers is None else np.array(numbers, np.int32)
    return LocatedObjects(caches, cache, cache >= 0, is_gone=np.zeros(count, np.bool_))
