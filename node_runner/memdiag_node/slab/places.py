"""The places for objects in slabs, and which of them are free."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import WordReader
from memdiag_node.slab.free_lists import ATTEMPTS, Encoding, follow

PIECE_OBJECTS = 1 << 18
"""Objects are handled in pieces of this size: the intermediate arrays are several times as large as the result."""
_SEED = 1


class SlabState(NamedTuple):
    """What the struct page of each slab says at one time."""

    freelist: npt.NDArray[np.uint64]
    in_use: npt.NDArray[np.int64]


ReadStates = Callable[[npt.NDArray[np.int64]], SlabState]
"""Reads the state of these slabs (their numbers) now."""


class Places:
    """The places of slabs, numbered one slab after the other, and which of them are free.

    The slabs are described by the address of the first object, ascending, and the number of places, at least 1.
    """

    def __init__(
        self, first_objects: npt.NDArray[np.uint64], places: npt.NDArray[np.int64], stride_bytes: npt.ArrayLike
    ) -> None:
        """`stride_bytes` is that of all slabs, if they are of one cache, or of each."""
        self._first_objects = first_objects
        self._places = places
        self._strides = np.asarray(stride_bytes, "<u8")
        self._first_place = np.cumsum(places) - places
        self.is_free = np.zeros(int(places.sum()), np.bool_)
        self.most_places = int(places.max(initial=0))
        """Of one slab."""
        self.uncertain_objects = 0
        """Objects that may be free or not, of slabs whose lists of free objects could not be read."""

    def slots(self, objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The number of the place that starts at each address; -1 for none."""
        if not len(self._first_objects):
            return np.full(len(objects), -1, np.int64)
        row = np.searchsorted(self._first_objects, objects, side="right") - 1
        inside = np.maximum(row, 0)
        place, remainder = np.divmod(objects - self._first_objects[inside], self._stride_of(inside))
        # Compared before the conversion: what lies below the first slab is a huge number here.
        is_place = (row >= 0) & (remainder == 0) & (place < self._places[inside].astype("<u8"))
        return np.where(is_place, self._first_place[inside] + place.astype(np.int64), -1)

    def _stride_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Of each of these slabs, or the one of all."""
        return self._strides[rows] if self._strides.ndim else self._strides

    def mark_free(self, objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Mark these places as free; returns which of them are places that were not marked yet."""
        slots = self.slots(objects)
        is_new = slots >= 0
        is_new[is_new] = ~self.is_free[slots[is_new]]
        self.is_free[slots[is_new]] = True
        return is_new

    def mark_lists(self, memory: WordReader, encoding: Encoding, read_states: ReadStates) -> None:
        """Mark what is on the slabs' own lists. `encoding` has one entry, or one for each slab.

        A slab says how many objects are on its list. Where another number was found, the list changed while it was
        followed: it is read again.
        """
        if not len(self._places):
            return
        encoding = Encoding(*(np.broadcast_to(column, len(self._places)) for column in encoding))
        rows = np.arange(len(self._places))
        wrong = np.empty(0, np.int64)
        for _ in range(ATTEMPTS):
            state = read_states(rows)
            self._follow(memory, encoding, rows, state.freelist)
            wrong = np.abs(self._marked(rows) - (self._places[rows] - state.in_use))
            rows, wrong = rows[wrong != 0], wrong[wrong != 0]
            if not len(rows):
                break
        self.uncertain_objects = int(wrong.sum())

    def _follow(
        self, memory: WordReader, encoding: Encoding, rows: npt.NDArray[np.int64], heads: npt.NDArray[np.uint64]
    ) -> None:
        if len(rows) == len(self._places):
            self.is_free[:] = False
        else:
            for row in rows.tolist():
                self.is_free[self._first_place[row] : self._first_place[row] + self._places[row]] = False
        follow(
            memory,
            heads,
            encoding.of(rows),
            lambda _, objects: self.mark_free(objects),
            max_steps=self.most_places,
        )

    def _marked(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of free places of each of these slabs."""
        if len(rows) == len(self._places):
            # The sum is made in a copy of all places: of 2 bytes each, enough for MAX_OBJECTS.
            return np.add.reduceat(self.is_free, self._first_place, dtype=np.uint16).astype(np.int64)
        ends = self._first_place + self._places
        spans = ((self._first_place[row], ends[row]) for row in rows.tolist())
        return np.array([np.count_nonzero(self.is_free[first:end]) for first, end in spans], np.int64)

    @property
    def allocated_objects(self) -> int:
        """The number of places that are not free."""
        return len(self.is_free) - int(np.count_nonzero(self.is_free))

    def allocated(self, chosen: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.uint64]:
        """The addresses of the places that are not free, ascending; of all, or of those with these numbers."""
        result = np.empty(self.allocated_objects if chosen is None else len(chosen), "<u8")
        seen, filled = 0, 0
        for start in range(0, len(self.is_free), PIECE_OBJECTS):
            slots = start + np.flatnonzero(~self.is_free[start : start + PIECE_OBJECTS])
            first, seen = seen, seen + len(slots)
            if chosen is not None:
                begin, end = np.searchsorted(chosen, (first, seen))
                slots = slots[chosen[begin:end] - first]
            # A slab without places has the same first place as the next one, which `right` skips.
            row = np.searchsorted(self._first_place, slots, side="right") - 1
            place = (slots - self._first_place[row]).astype("<u8")
            result[filled : filled + len(slots)] = self._first_objects[row] + place * self._stride_of(row)
            filled += len(slots)
        return result


def spread(size: int, limit: int) -> npt.NDArray[np.int64]:
    """Return up to `limit` of `size` numbers, ascending: a random one in each of equal parts."""
    if size <= limit:
        return np.arange(size)
    edges = np.linspace(0, size, limit + 1).astype(np.int64)
    return edges[:-1] + (np.random.default_rng(_SEED).random(limit) * np.diff(edges)).astype(np.int64)
