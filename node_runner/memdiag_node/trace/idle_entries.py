"""Removing entries of a hash table that nothing refers to any more, so that there is room for others."""

from typing import Any

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.loader import BpfObject

CROWDED = 0.5
"""From this share of their room on, tables are cleared of entries that nothing uses any more."""


class IdleEntries:
    """Entries of a hash table that nothing refers to any more, to be removed once the table is crowded."""

    def __init__(self, capacity: int, entry: np.dtype[Any]) -> None:
        self.removed = 0
        """The number of entries removed so far."""
        self._crowded = CROWDED * capacity
        self._seen_idle = np.zeros(0, np.uint64)
        self._forgotten = np.zeros(0, entry)

    def forget(self, bpf: BpfObject, name: str, entries: npt.NDArray[np.void], used: npt.NDArray[np.uint64]) -> None:
        """Remove entries that were idle in two checks in a row; restore those that came into use at the last moment.

        `entries` is the table now, `used` the keys in use.
        """
        gone = self._forgotten[~np.isin(self._forgotten["key"], entries["key"])]
        missing = gone[np.isin(gone["key"], used)]
        bpf.update(name, missing["key"], missing["value"])
        idle = entries[~np.isin(entries["key"], used)]
        is_due = np.isin(idle["key"], self._seen_idle) & (len(entries) >= self._crowded)
        self._forgotten = idle[is_due]
        self._seen_idle = idle["key"].copy()
        bpf.delete_keys(name, self._forgotten["key"])
        self.removed += len(self._forgotten) - len(missing)
