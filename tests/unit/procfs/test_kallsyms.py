"""Names for addresses, from lines as the kernel writes them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.kallsyms import CodeRange, KallsymsHiddenError, Symbol, code_ranges, resolve

LINES = [
    b"ffffffff81000000 T _text\n",
    b"ffffffff81000100 t first\n",
    b"ffffffff81000180 D some_data\n",
    b"ffffffff81000200 W second\n",
    b"ffffffff81000300 T handle_softirqs\n",
    b"ffffffff81000400 T third\n",
    b"ffffffffc0000000 t receive\t[virtio_net]\n",
    b"ffffffffc0000100 t bpf_prog_6deef7357e7b4530\t[bpf]\n",
]
HIDDEN = [b"0000000000000000 T _text\n", b"0000000000000000 t first\n"]


@pytest.mark.parametrize(
    ("address", "symbol"),
    [
        (0xFFFFFFFF81000100, Symbol("first", "", 0)),
        (0xFFFFFFFF810001FF, Symbol("first", "", 0xFF)),
        (0xFFFFFFFF81000200, Symbol("second", "", 0)),
        (0xFFFFFFFFC0000080, Symbol("receive", "virtio_net", 0x80)),
        (0xFFFFFFFFC0000104, Symbol("bpf_prog_6deef7357e7b4530", "bpf", 4)),
        (0xFFFFFFFF80FFFFFF, None),
        (0xFFFFFFFFA0000000, None),
        (0, None),
    ],
)
def test_an_address_belongs_to_the_function_before_it(address: int, symbol: Symbol | None) -> None:
    assert resolve(LINES, [address]).get(address) == symbol


@given(st.permutations(LINES), st.sets(st.integers(0xFFFFFFFF80FFFF00, 0xFFFFFFFF81000500)))
def test_the_order_of_lines_and_what_else_is_asked_make_no_difference(lines: list[bytes], addresses: set[int]) -> None:
    together = resolve(lines, addresses)
    assert together == {address: one for address in addresses if (one := resolve(LINES, [address]).get(address))}


def test_a_function_reaches_up_to_the_next() -> None:
    (found,) = code_ranges(LINES, re.compile(rb"handle_softirqs|nothing"))
    assert found == CodeRange("handle_softirqs", 0xFFFFFFFF81000300, 0xFFFFFFFF81000400)


def test_hidden_addresses_are_told_with_their_remedy() -> None:
    with pytest.raises(KallsymsHiddenError, match="SYSLOG"):
        resolve(HIDDEN, [1])
    with pytest.raises(KallsymsHiddenError, match="kptr_restrict"):
        code_ranges(HIDDEN, re.compile(rb"first"))


@pytest.mark.parametrize("line", [b"\n", b"what is this\n", b"ffffffff81000000\n", b"ffffffff81000000 T\n"])
def test_a_malformed_line_is_named(line: bytes) -> None:
    with pytest.raises(ProcFormatError, match="kallsyms:2"):
        resolve([LINES[0], line], [1])
