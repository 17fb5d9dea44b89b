"""The kernel's XArray (lib/xarray.c): the page cache of a file, and the tables of IPC objects."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader

_SLOTS = 64  # XA_CHUNK_SIZE, of a kernel without CONFIG_BASE_SMALL
_MAX_LEVELS = 11
_KIND, _INTERNAL, _FIRST_NODE = 3, 2, 4096  # include/linux/xarray.h, xa_is_node and xa_is_value
_FIELDS: tuple[Field, ...] = (("TREE_SLOTS", "xa_node", "slots"),)


def tree_fields(btf: Btf) -> dict[str, int]:
    """Where a node of an XArray has its entries, with HAS_TREE."""
    return optional_offsets(btf, "HAS_TREE", _FIELDS)


def some_entries(
    memory: WordReader, at: Mapping[str, int], heads: npt.NDArray[np.uint64], limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return the number of the array and the pointer of up to `limit` entries of each array, spread over it.

    `heads` are the first entries (xa_head). Values, such as what is left of a page that was evicted, are no pointers.
    """
    owners = np.arange(len(heads))
    entries = heads
    found_owners, found = [np.empty(0, np.int64)], [np.empty(0, "<u8")]
    for _ in range(_MAX_LEVELS):
        kind = entries & np.uint64(_KIND)
        is_pointer = (kind == 0) & (entries != 0)
        found_owners.append(owners[is_pointer])
        found.append(entries[is_pointer])
        is_node = (kind == _INTERNAL) & (entries > _FIRST_NODE)
        owners, nodes = owners[is_node], entries[is_node] - np.uint64(_INTERNAL)
        if not len(nodes):
            break
        slots = nodes[:, np.newaxis] + np.arange(at["TREE_SLOTS"], at["TREE_SLOTS"] + 8 * _SLOTS, 8, dtype="<u8")
        entries = memory.peek(slots.reshape(-1))
        owners = np.repeat(owners, _SLOTS)
        kind = entries & np.uint64(_KIND)
        useful = (entries != 0) & ((kind == 0) | (kind == _INTERNAL)) & ((kind == 0) | (entries > _FIRST_NODE))
        owners, entries = owners[useful], entries[useful]
        chosen = spread(owners, limit)
        owners, entries = owners[chosen], entries[chosen]
    owners, entries = np.concatenate(found_owners), np.concatenate(found)
    order = np.argsort(owners, kind="stable")
    owners, entries = owners[order], entries[order]
    chosen = spread(owners, limit)
    return owners[chosen], entries[chosen]


def spread(owners: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.bool_]:
    """Return which elements to keep so that each owner has at most `limit`, evenly spread. `owners` is sorted."""
    _, first, counts = np.unique(owners, return_index=True, return_counts=True)
    rank = np.arange(len(owners)) - np.repeat(first, counts)
    size = np.repeat(counts, counts)
    wanted = np.minimum(size, limit)
    # Element number `rank` of `size` is the first one in its part, if there are `wanted` parts.
    result: npt.NDArray[np.bool_] = (rank * wanted) // size != ((rank - 1) * wanted) // size
    return result
