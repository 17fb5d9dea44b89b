"""Which packets are linked with each other: lists, trees and chains of struct sk_buff (pure).

`next`, `prev` and `dev` of a packet are the first three words, and in a tree they are its node: the parent with the
node's color in the lowest bits, the right and the left child (include/linux/skbuff.h, rbtree_types.h). So one word of
each packet says where to go next, in a list as in a tree, and all packets are followed at once by pointer doubling.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

_TREE_ROOT = 1  # no parent, black
_COLOR_MASK = np.uint64(7)


class Link(IntEnum):
    """What a packet is part of."""

    TORN = 0
    """It has a link that leads nowhere: it changed meanwhile, or the next packet was not read."""
    LIST = 1
    """A list with two directions; each link was correct in both."""
    TREE = 2
    """A red-black tree; each link was correct in both directions."""
    CHAIN = 3
    """A list with one direction, which ends in 0. A packet without any link is one of length 1."""


@dataclass(frozen=True, slots=True)
class Links:
    """Of each packet, in ascending order of addresses."""

    last: npt.NDArray[np.int32]
    """Index of the last packet of its list or chain, or of the root of its tree: what is linked has the same one."""
    kind: npt.NDArray[np.uint8]
    """Link. LIST is only certain when the address after the last one, `after`, points back to it."""
    after: npt.NDArray[np.uint64]
    """For the last packet of a list: the address that follows it, the head of the list. Else 0."""
    next: npt.NDArray[np.int32]
    """Index of the packet that it leads to; of itself if there is none."""


def link(
    address: npt.NDArray[np.uint64],
    first_word: npt.NDArray[np.uint64],
    second_word: npt.NDArray[np.uint64],
    third_word: npt.NDArray[np.uint64],
) -> Links:
    """Follow the links of all packets. `address` ascends; the words are those at the start of each."""
    count = len(address)
    own = np.arange(count, dtype=np.int32)
    target = first_word & ~_COLOR_MASK
    position = np.minimum(np.searchsorted(address, target), max(0, count - 1)).astype(np.int32)
    goes_on = (address[position] == target) if count else np.zeros(0, np.bool_)
    is_mutual = goes_on & ((second_word[position] == address) | (third_word[position] == address))
    following = np.where(goes_on, position, own)
    last, is_certain = _follow(following, is_mutual | ~goes_on)
    is_end = ~goes_on
    kind = np.full(count, Link.TORN, np.uint8)
    word = first_word[last]
    has_end = is_end[last]
    kind[has_end & (word == 0)] = Link.CHAIN
    kind[has_end & is_certain & (word == _TREE_ROOT)] = Link.TREE
    is_listed = has_end & is_certain & (word > _TREE_ROOT) & (word & _COLOR_MASK == 0)
    kind[is_listed] = Link.LIST
    after = np.zeros(count, "<u8")
    ends = np.unique(last[is_listed])
    after[ends] = first_word[ends]
    return Links(last, kind, after, following)


def from_starts(links: Links, is_start: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether each packet is one of the starts, or is reached from one."""
    reached, jump = is_start.copy(), links.next
    for _ in range(max(1, len(jump)).bit_length() + 1):
        reached[jump[reached]] = True
        further = jump[jump]
        if np.array_equal(further, jump):
            break
        jump = further
    return reached


def _follow(
    jump: npt.NDArray[np.int32], is_certain: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Where each packet's links end, and whether each of them was certain. A ring ends anywhere in it."""
    for _ in range(max(1, len(jump)).bit_length() + 1):
        further = jump[jump]
        is_certain = is_certain & is_certain[jump]
        if np.array_equal(further, jump):
            break
        jump = further
    return jump, is_certain
