"""What kernel addresses are, from lines as the kernel prints them and words as it has them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.census.clues.naming import AddressName, AddressNames, Meaning
from memdiag_node.kernel.modules import ModuleMap

RELEASE, STEAL, CALLBACK = 0xFFFFFFFF81000010, 0xFFFFFFFF81000100, 0xFFFFFFFFC0000040
TABLE, NAMED_TABLE, LABEL, AFTER_TEXT, MODULE_DATA, INSIDE = (0xFFFFFFFF82000000 + 0x1000 * n for n in range(6))
# The reader looks up the byte before an address, so each is asked with 1 added.
LINES = {
    RELEASE: "pipe_release+0x1/0x20",
    STEAL: "pipe_steal.cold+0x1/0x20",
    CALLBACK: "leaky_callback+0x1/0x20 [leaky]",
    NAMED_TABLE: "pipe_ops+0x1/0x40",
    LABEL: "jumptable.50+0x1/0x40",
    AFTER_TEXT: "_last_function+0x5001/0x10",
    INSIDE: "net_table+0x19/0x40",
}
WORDS = {TABLE: RELEASE, TABLE + 8: STEAL, NAMED_TABLE: RELEASE, NAMED_TABLE + 16: STEAL, LABEL: RELEASE}


class Kernel:
    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        return np.array([WORDS.get(address, 0) for address in np.asarray(addresses, "<u8").tolist()], "<u8")

    def lines(self, addresses: Sequence[int]) -> list[str]:
        return [LINES.get(address - 1, hex(address)) for address in addresses]


def name_of(address: int, modules: ModuleMap | None = None) -> AddressName:
    kernel = Kernel()
    names = AddressNames(kernel, kernel.lines, modules) if modules else AddressNames(kernel, kernel.lines)
    return names.names([address])[address]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (RELEASE, AddressName(Meaning.NAMED, "pipe_release")),
        (CALLBACK, AddressName(Meaning.NAMED, "leaky_callback [leaky]", "leaky")),
        (TABLE, AddressName(Meaning.TABLE, "a table with pointers to pipe_release, pipe_steal")),
        (NAMED_TABLE, AddressName(Meaning.TABLE, "pipe_ops (with pointers to pipe_release, pipe_steal)")),
        (INSIDE, AddressName(Meaning.DATA, "net_table+0x18")),
        (LABEL, AddressName(Meaning.NOTHING)),
        (AFTER_TEXT, AddressName(Meaning.NOTHING)),
        (MODULE_DATA, AddressName(Meaning.NOTHING)),
    ],
)
def test_an_address_is_a_function_a_table_a_place_in_one_or_nothing(address: int, expected: AddressName) -> None:
    assert name_of(address) == expected


def test_data_of_a_module_without_symbols_has_the_name_of_the_module() -> None:
    modules = ModuleMap(("leaky",), np.array([MODULE_DATA - 16], "<u8"), np.array([MODULE_DATA + 16], "<u8"))
    assert name_of(MODULE_DATA, modules) == AddressName(Meaning.MODULE, "module leaky", "leaky")
    assert name_of(MODULE_DATA + 16, modules) == AddressName(Meaning.NOTHING)


def test_without_names_nothing_is_known() -> None:
    names = AddressNames(Kernel(), None)
    assert names.names([RELEASE, TABLE]) == dict.fromkeys((RELEASE, TABLE), AddressName(Meaning.NOTHING))
    assert not names.sees_symbols
