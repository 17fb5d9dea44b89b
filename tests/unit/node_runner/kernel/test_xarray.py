"""Pointers in an xarray, from the words of a simulated kernel."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.kernel.xarray import xarray_entries

AT = {"XARRAY_HEAD": 8, "XARRAY_SLOTS": 40, "XARRAY_SLOT_COUNT": 64}
ARRAY = 0x10000


class Words:
    """Words of memory by address; 0 elsewhere."""

    def __init__(self, words: dict[int, int]) -> None:
        self._words = words

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        return np.array([self._words.get(int(address), 0) for address in np.asarray(addresses, np.uint64)], np.uint64)


def planted(indexes: dict[int, int]) -> Words:
    """An xarray of two levels with these pointers by index, as lib/xarray.c lays it out."""
    words = {ARRAY + AT["XARRAY_HEAD"]: 0x20000 | 2}
    for index, pointer in indexes.items():
        upper, lower = divmod(index, 64)
        node = 0x30000 + 0x1000 * upper
        words[0x20000 + AT["XARRAY_SLOTS"] + 8 * upper] = node | 2
        words[node + AT["XARRAY_SLOTS"] + 8 * lower] = pointer
    return Words(words)


def entries(words: Words) -> list[int]:
    return sorted(xarray_entries(words, AT, np.array([ARRAY], "<u8")).tolist())


@given(st.dictionaries(st.integers(0, 4095), st.integers(1, 1 << 40).map(lambda number: 4 * number), max_size=20))
def test_every_pointer_is_found(indexes: dict[int, int]) -> None:
    assert entries(planted(indexes)) == sorted(indexes.values())


def test_a_single_pointer_at_index_0_needs_no_node() -> None:
    assert entries(Words({ARRAY + 8: 0x5000})) == [0x5000]
    assert entries(Words({})) == []


def test_numbers_and_markers_are_not_pointers() -> None:
    retry, number = 256 << 2 | 2, 7 << 1 | 1
    assert entries(planted({0: retry, 1: number, 2: 0x5000})) == [0x5000]


def test_a_node_that_leads_back_to_itself_ends() -> None:
    words = {ARRAY + 8: 0x20000 | 2} | {0x20000 + 40 + 8 * slot: 0x20000 | 2 for slot in range(64)}
    assert entries(Words(words)) == []
