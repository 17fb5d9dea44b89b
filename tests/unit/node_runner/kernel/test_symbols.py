"""Names of kernel addresses, from lines as printed by the kernel."""

import re
from collections.abc import Sequence

from memdiag_node.kernel.symbols import Symbols

LINES = {
    0xFFFFFFFF81000010: "vfs_write+0x400/0x4a0",
    0xFFFFFFFF81000020: "handle_softirqs+0xcd/0x300",
    0xFFFFFFFF81000030: "common_interrupt+0x79/0x90",
    0xFFFFFFFFC0000010: "try_fill_recv+0x311/0x800 [virtio_net]",
    0xFFFFFFFFC0000020: "__sysvec_call_function.constprop.0+0x1/0x2 [bpf]",
    0xFFFFFFFF81000040: "0xffffffff81000040",
}
WRITE, SOFTIRQ, INTERRUPT, DRIVER, SYSVEC, HIDDEN = LINES


class Kernel:
    """Answers like the kernel, and counts the requests."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def lines(self, addresses: Sequence[int]) -> list[str]:
        self.asked += addresses
        return [LINES[address] for address in addresses]


def test_a_name_has_the_offset_and_the_module() -> None:
    assert Symbols(Kernel().lines).texts([WRITE, DRIVER, SYSVEC]) == {
        WRITE: "vfs_write+0x400",
        DRIVER: "try_fill_recv+0x311 [virtio_net]",
        SYSVEC: "__sysvec_call_function.constprop.0+0x1 [bpf]",
    }


def test_an_address_without_a_name_gets_an_identifier_that_is_not_the_address() -> None:
    symbols, others = Symbols(Kernel().lines), Symbols(None)
    text = symbols.texts([HIDDEN])[HIDDEN]
    assert re.fullmatch("unnamed#[0-9a-f]{8}", text)
    assert symbols.texts([HIDDEN])[HIDDEN] == text
    assert others.texts([HIDDEN])[HIDDEN] != text, "an identifier that is the same in other runs could be looked up"
    assert len(set(others.texts(list(LINES)).values())) == len(LINES)


def test_each_address_is_looked_up_once() -> None:
    kernel = Kernel()
    symbols = Symbols(kernel.lines)
    symbols.texts([WRITE, DRIVER])
    symbols.texts([WRITE, SOFTIRQ])
    symbols.texts([SOFTIRQ, DRIVER])
    assert kernel.asked == [WRITE, DRIVER, SOFTIRQ]
