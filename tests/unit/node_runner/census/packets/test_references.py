"""The search for references to packets goes through slabs in pieces."""

import numpy as np
import pytest

from memdiag_node.census.packets.references import pieces_of


@pytest.mark.parametrize("words", [[], [3], [4], [2, 2, 2, 2], [9, 9]])
def test_every_slab_is_in_exactly_one_piece(words: list[int]) -> None:
    pieces = pieces_of(np.array(words, np.int64), 4)
    assert [row for first, end in pieces for row in range(first, end)] == list(range(len(words)))
