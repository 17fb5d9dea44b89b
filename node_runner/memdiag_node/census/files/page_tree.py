"""Some pointers of many xarrays, spread over each: pages of files, IPC objects of namespaces (lib/xarray.c)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import WordReader

_MAX_LEVELS = 11  # of 64 slots, for an index of 64 bits
_KIND, _INTERNAL, _FIRST_NODE = 3, 2, 4096  # include/linux/xarray.h, xa_is_node and xa_is_value


def some_entries(
    memory: WordReader, at: Mapping[str, int], heads: npt.NDArray[np.uint64], limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return the number of the array and the pointer of up to `limit` entries of each array, spread over it.

    `heads` are the first entries (xa_head), `at` has the result of `xarray_fields`. Values are left
    out: what remains of a page that was evicted.
    """
    places = np.arange(at["XARRAY_SLOT_COUNT"], dtype="<u8") * np.uint64(8) + np.uint64(at["XARRAY_SLOTS"])
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
        slots = nodes[:, np.newaxis] + places
        entries = memory.peek(slots.reshape(-1))
        owners = np.repeat(owners, len(places))
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
