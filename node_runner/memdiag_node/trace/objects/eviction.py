"""Which objects to drop from a crowded table, so that those left are still a random sample (pure)."""

import numpy as np
import numpy.typing as npt

_HASH = np.uint64(0xD6E8FEB86659FD93)
_HASH_BITS = 24
_KEPT_SHARE = 0.25


class Evictions:
    """The objects dropped so far.

    Of each stack that has too many, those are kept whose address has a hash below a limit: one in 2^n. What is kept
    stands for 2^n times as much. Objects that are recorded later are not affected.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._of_stack: dict[int, tuple[int, int]] = {}

    def choose(self, entries: npt.NDArray[np.void], *, now_ns: int) -> npt.NDArray[np.uint64]:
        """Return the keys of the entries to drop: of the largest stacks, until a quarter of the table is left.

        `entries` is the table now.
        """
        keys = entries["key"]
        stacks, where, counts = np.unique(entries["value"]["stack"], return_inverse=True, return_counts=True)
        limit = _limit(counts, int(_KEPT_SHARE * self._capacity))
        is_dropped = np.zeros(len(entries), np.bool_)
        hashes = _hashes(keys)
        for index in np.flatnonzero(counts > limit).tolist():
            chosen = np.flatnonzero(where == index)
            level, _ = self._of_stack.get(int(stacks[index]), (0, 0))
            while level < _HASH_BITS and int((hashes[chosen] < 1 << (_HASH_BITS - level)).sum()) > limit:
                level += 1
            is_dropped[chosen] = hashes[chosen] >= 1 << (_HASH_BITS - level)
            self._of_stack[int(stacks[index])] = level, now_ns
        dropped: npt.NDArray[np.uint64] = keys[is_dropped]
        return dropped

    def levels(self, entries: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """Return n of each entry: it stands for 2^n, itself included."""
        result = np.zeros(len(entries), np.int64)
        for stack, (level, until_ns) in self._of_stack.items():
            result[(entries["value"]["stack"] == stack) & (entries["value"]["born_ns"] < until_ns)] = level
        return result

    def is_kept(self, entries: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        """Return whether each entry belongs to the sample: some may have come back while others were dropped."""
        kept: npt.NDArray[np.bool_] = _hashes(entries["key"]) < np.left_shift(1, _HASH_BITS - self.levels(entries))
        return kept


def _hashes(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return ((keys * _HASH) >> np.uint64(64 - _HASH_BITS)).astype(np.int64)


def _limit(counts: npt.NDArray[np.int64], total: int) -> int:
    """Return the largest number of entries that each stack may keep so that all have `total` or less."""
    ascending = np.sort(counts)
    left = total
    for index, count in enumerate(ascending.tolist()):
        share = left // (len(ascending) - index)
        if count > share:
            return max(1, share)
        left -= count
    return total
