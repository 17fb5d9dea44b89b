"""Packets linked in lists, trees and chains."""

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.census.packets.chains import Link, Links, from_starts, link

_BASE, _STRIDE, _HEAD = 0xFFFF_8880_0001_0000, 0x100, 0xFFFF_8880_00F0_0040


def at(number: int) -> int:
    """The address of a packet."""
    return _BASE + number * _STRIDE


def linked(words: list[tuple[int, int, int]]) -> Links:
    table = np.array(words, "<u8").reshape(-1, 3)
    addresses = np.array([at(number) for number in range(len(words))], "<u8")
    return link(addresses, table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())


def a_list(order: list[int]) -> list[tuple[int, int, int]]:
    """The words of packets 0, 1, ... that are on one list in this order."""
    words = [(0, 0, 0)] * len(order)
    for position, number in enumerate(order):
        following = at(order[position + 1]) if position + 1 < len(order) else _HEAD
        words[number] = following, at(order[position - 1]) if position else _HEAD, 0
    return words


@given(st.permutations(range(40)))
def test_a_list_in_any_order_ends_at_its_head(order: list[int]) -> None:
    links = linked(a_list(order))
    assert set(links.kind) == {Link.LIST}
    assert set(links.last) == {order[-1]}
    assert links.after[order[-1]] == _HEAD
    assert np.count_nonzero(links.after) == 1


def test_a_torn_list_does_not_place_what_is_before_the_tear() -> None:
    words = a_list([0, 1, 2, 3, 4, 5])
    words[3] = words[3][0], at(9), 0  # does not point back to 2
    assert linked(words).kind.tolist() == [Link.TORN] * 3 + [Link.LIST] * 3


def test_a_packet_that_was_freed_does_not_join_the_list_it_points_to() -> None:
    words = [*a_list([0, 1, 2]), (at(1), at(0), 0)]
    assert linked(words).kind.tolist() == [Link.LIST] * 3 + [Link.TORN]


def test_a_tree_ends_at_its_root() -> None:
    root, left, right, leaf = (1, at(2), at(1)), (at(0) | 1, 0, 0), (at(0) | 1, at(3), 0), (at(2), 0, 0)
    links = linked([root, left, right, leaf])
    assert links.kind.tolist() == [Link.TREE] * 4
    assert links.last.tolist() == [0] * 4


def test_a_red_node_that_is_the_right_child_is_not_on_a_list() -> None:
    links = linked([(1, at(1), 0), (at(0), 0, 0)])
    assert links.kind.tolist() == [Link.TREE, Link.TREE]


def test_a_chain_with_one_direction_ends_with_zero() -> None:
    links = linked([(at(2), 0, 0), (0, 0, 0), (at(1), 0, 0), (0, 0, 0)])
    assert links.kind.tolist() == [Link.CHAIN] * 4
    assert links.last.tolist() == [1, 1, 1, 3]


def test_a_ring_of_packets_is_torn() -> None:
    assert linked([(at(1), at(1), 0), (at(0), at(0), 0)]).kind.tolist() == [Link.TORN] * 2


def test_no_packets() -> None:
    assert len(linked([]).last) == 0


_WORD = st.one_of(
    st.integers(0, 2**64 - 1), st.integers(0, 11).map(at), st.integers(0, 11).map(lambda n: at(n) | 1), st.just(0)
)


@given(st.lists(st.tuples(_WORD, _WORD, _WORD), min_size=1, max_size=12))
def test_garbage_is_followed_to_an_end(words: list[tuple[int, int, int]]) -> None:
    links = linked(words)
    placed: npt.NDArray[np.bool_] = links.kind != Link.TORN
    assert (links.last[links.last[placed]] == links.last[placed]).all()


@given(st.permutations(range(40)), st.integers(0, 39))
def test_from_a_packet_the_rest_of_its_chain_is_reached(order: list[int], position: int) -> None:
    words = [(0, 0, 0)] * len(order)
    for number, following in itertools.pairwise(order):
        words[number] = at(following), 0, 0
    is_start = np.zeros(len(order), np.bool_)
    is_start[order[position]] = True
    assert set(np.flatnonzero(from_starts(linked(words), is_start))) == set(order[position:])


def test_freed_packets_that_lead_to_one_in_a_queue_are_not_reached() -> None:
    chain, freed = [(at(1), 0, 0), (0, 0, 0)], [(at(0), 0, 0), (at(2), 0, 0)]
    links = linked(chain + freed)
    assert links.last.tolist() == [1] * 4
    assert from_starts(links, np.array([True, False, False, False])).tolist() == [True, True, False, False]
