"""Linked lists of the kernel, walked word by word."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

_MAX_LIST = 1 << 16


class WordReader(Protocol):
    """Reads words of kernel memory (KernelMemory)."""

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """The 8 bytes at each address; 0 where they cannot be read."""
        ...


def list_entries(memory: WordReader, heads: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """All entries of the lists with the heads `heads` (list_head or hlist_head: the first field of both is `next`)."""
    found = [np.empty(0, "<u8")]
    entries = memory.peek(heads)
    for _ in range(_MAX_LIST):
        more = (entries != 0) & (entries != heads)
        heads, entries = heads[more], entries[more]
        if not len(entries):
            break
        found.append(entries)
        entries = memory.peek(entries)
    return np.unique(np.concatenate(found))
