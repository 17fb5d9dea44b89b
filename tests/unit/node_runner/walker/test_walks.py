"""Choosing one of several walks of a queue."""

import numpy as np
import pytest

from memdiag_node.walker.tally import TALLY_DTYPE
from memdiag_node.walker.walker import Status
from memdiag_node.walker.walks import is_better


@pytest.mark.parametrize(
    ("older", "newer", "better"),
    [
        ((5, 9, Status.RACE), (3, 3, Status.WHOLE), True),
        ((5, 9, Status.RACE), (8, 9, Status.RACE), True),
        ((5, 9, Status.RACE), (30, 9, Status.RACE), False),
        ((0, 0, Status.FAULT), (0, 0, Status.FAULT), False),
    ],
)
def test_of_several_walks_the_most_complete_one_counts(
    older: tuple[int, int, Status], newer: tuple[int, int, Status], better: bool
) -> None:
    tables = np.zeros((2, 1), TALLY_DTYPE)
    for table, (packets, expected, status) in zip(tables, (older, newer), strict=True):
        table["packets"], table["expected"], table["status"] = packets, expected, status
    assert is_better(*tables).tolist() == [better]
