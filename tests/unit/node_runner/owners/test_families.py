"""Which processes may be forks of each other."""

import pytest

from memdiag_node.owners.address_spaces import AddressSpace
from memdiag_node.owners.families import families_of
from support.processes import process

Row = tuple[int, int, str, int]
"""pid, parent, name, size of code in KiB."""


def families(rows: list[Row], spaces: dict[int, AddressSpace] | None = None) -> set[frozenset[int]]:
    processes = [process(pid, comm, parent_pid=parent) for pid, parent, comm, _ in rows]
    found = families_of(processes, spaces or {}, {pid: code for pid, _, _, code in rows})
    assert all(found)
    return {frozenset(one.pid for one, its in zip(processes, found, strict=True) if its == family) for family in found}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(5, 1, "a", 20), (6, 5, "a", 20)], [{5, 6}], id="parent and fork"),
        pytest.param([(6, 5, "a", 20), (5, 1, "a", 20)], [{5, 6}], id="fork is listed first"),
        pytest.param([(5, 1, "a", 20), (6, 5, "b", 20)], [{5, 6}], id="a fork that renamed itself"),
        pytest.param([(5, 1, "a", 20), (6, 5, "a", 24)], [{5}, {6}], id="a child that ran another program"),
        pytest.param([(5, 1, "a", 20), (6, 5, "b", 20), (7, 6, "c", 20)], [{5, 6, 7}], id="grandchild"),
        pytest.param([(7, 6, "c", 20), (6, 5, "b", 20), (8, 5, "d", 20), (5, 1, "a", 20)], [{5, 6, 7, 8}], id="a tree"),
        pytest.param([(5, 1, "a", 20), (6, 1, "a", 20)], [{5, 6}], id="their parent has ended"),
        pytest.param([(5, 1, "a", 20), (6, 1, "b", 20)], [{5}, {6}], id="strangers"),
        pytest.param([(5, 6, "a", 20), (6, 5, "a", 20)], [{5, 6}], id="a cycle, which a reused pid could make"),
    ],
)
def test_by_parent_and_code(rows: list[Row], expected: list[set[int]]) -> None:
    assert families(rows) == {frozenset(one) for one in expected}


def test_by_address_space() -> None:
    """The child 6 ran the same program again; 7 is a fork of 6 whose name and parent say nothing."""
    rows = [(5, 1, "a", 20), (6, 5, "a", 20), (7, 1, "b", 20)]
    spaces = {5: AddressSpace(100, (1, 1)), 6: AddressSpace(200, (2, 2)), 7: AddressSpace(300, (2, 2))}
    assert families(rows, spaces) == {frozenset({5}), frozenset({6, 7})}


def test_a_process_that_the_census_missed_joins_its_parent() -> None:
    rows = [(5, 1, "a", 20), (6, 5, "a", 20), (7, 5, "b", 24)]
    assert families(rows, {5: AddressSpace(100, (1, 1))}) == {frozenset({5, 6}), frozenset({7})}
