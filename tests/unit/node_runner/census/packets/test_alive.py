"""Freed packets that the slab counts as allocated, and how they differ from live ones: by what they point to."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.census.packets.alive import own_data
from memdiag_node.census.packets.table import PacketTable

_PACKET, _HEAD, _END = 0xFFFF_8880_0000_1000, 0xFFFF_8880_0000_8000, 704
_AT = {
    "PACKET_LENGTH": 0, "PACKET_PAGED_LENGTH": 8, "PACKET_END": 16, "PACKET_DATA": 24, "PACKET_HEAD_FRAG_BYTE": 32,
    "PACKET_HEAD_FRAG_SHIFT": 5, "SHARED_REFERENCES": 0, "SHARED_PIECES": 8, "SHARED_FRAGMENTS": 16,
    "SHARED_BYTES": 320, "MAX_PIECES": 17,
}  # fmt: skip


class Memory:
    """Words by address; 0 elsewhere."""

    def __init__(self, words: dict[int, int]) -> None:
        self.at = {"PAGE_SHIFT": 12}
        self._words = words

    def read(self, objects: npt.NDArray[np.uint64], offset: int, width: int = 8) -> npt.NDArray[np.uint64]:
        mask = (1 << 8 * width) - 1
        return np.array([self._words.get(int(one) + offset, 0) & mask for one in objects], "<u8")


def is_own(*, in_slab: bool = True, has_list: bool = False, truesize: int = 2_304, **changes: int) -> bool:
    """Whether a packet of 100 bytes in its head and 1,000 in a fragment counts, with changes."""
    fields = {
        "length": 1_100, "paged": 1_000, "end": _END, "data": _HEAD + 64, "head_frag": 0, "references": 1, "pieces": 1,
        "fragment": 1_000,
    } | changes  # fmt: skip
    shared = _HEAD + _END
    memory = Memory(
        {
            _PACKET: fields["length"],
            _PACKET + 8: fields["paged"],
            _PACKET + 16: fields["end"],
            _PACKET + 24: fields["data"],
            _PACKET + 32: fields["head_frag"] << 5,
            shared: fields["references"],
            shared + 8: fields["pieces"],
            shared + 16 + 8: fields["fragment"],
        }
    )
    table = SimpleNamespace(
        address=np.array([_PACKET], "<u8"),
        shared=np.array([shared], "<u8"),
        head=np.array([_HEAD], "<u8"),
        truesize=np.array([truesize], "<u4"),
        fragment_list=np.array([_PACKET + 512 if has_list else 0], "<u8"),
    )
    _, own = own_data(cast("Any", memory), _AT, cast("PacketTable", table), np.array([0]), np.array([in_slab]))
    return bool(own[0])


def test_a_packet_whose_lengths_fit_is_alive() -> None:
    assert is_own()
    assert is_own(references=2 | 1 << 16)
    assert is_own(has_list=True, paged=5_000, length=5_100)
    assert is_own(in_slab=False, head_frag=1)
    assert is_own(in_slab=False, end=(2 << 12) - 320)


@pytest.mark.parametrize(
    "garbage",
    [
        {"references": 0},
        {"references": 0x7A7A7A7A},
        {"references": 1 | 2 << 16},
        {"pieces": 200},
        {"pieces": 0},
        {"fragment": 999},
        {"data": _HEAD - 8},
        {"data": _HEAD + _END},
        {"length": 900},
        {"length": 1_700},
        {"truesize": 0},
        {"in_slab": False},
    ],
)
def test_a_packet_whose_data_belongs_to_another_is_not(garbage: dict[str, int]) -> None:
    assert not is_own(**cast("Any", garbage))
