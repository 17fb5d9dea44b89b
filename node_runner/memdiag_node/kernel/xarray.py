"""The kernel's xarray: all pointers in it, read word by word (kernel: include/linux/xarray.h, lib/xarray.c)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader

_MAX_DEPTH = 11  # levels of 64 slots for an index of 64 bits
_MAX_ENTRIES = 1 << 16
_INTERNAL = np.uint64(2)
_TAGS = np.uint64(3)
_LARGEST_SIBLING = np.uint64(4096)  # internal entries up to here are markers, not nodes

_FIELDS: tuple[Field, ...] = (("XARRAY_HEAD", "xarray", "xa_head"), ("XARRAY_SLOTS", "xa_node", "slots"))


def xarray_fields(btf: Btf) -> dict[str, int]:
    """The offsets that `xarray_entries` needs, with HAS_XARRAY; the number of slots of a node follows from its size."""
    found = optional_offsets(btf, "HAS_XARRAY", _FIELDS)
    if found:
        marks_bytes = btf.size_bytes("xa_node") - btf.offset_bytes("xa_node", "tags")
        found["XARRAY_SLOT_COUNT"] = (btf.size_bytes("xa_node") - found["XARRAY_SLOTS"] - marks_bytes) // 8
    return found


def xarray_entries(memory: WordReader, at: Mapping[str, int], arrays: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The pointers in the xarrays at these addresses, at most 65,536. `at` has the offsets of `xarray_fields`."""
    entries = memory.peek(arrays + np.uint64(at["XARRAY_HEAD"]))
    slots = np.arange(at["XARRAY_SLOT_COUNT"], dtype="<u8") * np.uint64(8) + np.uint64(at["XARRAY_SLOTS"])
    found = [np.empty(0, "<u8")]
    for _ in range(_MAX_DEPTH):
        tags = entries & _TAGS
        found.append(entries[(tags == 0) & (entries != 0)])
        nodes = entries[(tags == _INTERNAL) & (entries > _LARGEST_SIBLING)] - _INTERNAL
        if not len(nodes):
            break
        entries = memory.peek((nodes[: _MAX_ENTRIES // len(slots), np.newaxis] + slots).reshape(-1))
    pointers: npt.NDArray[np.uint64] = np.concatenate(found)[:_MAX_ENTRIES]
    return pointers
