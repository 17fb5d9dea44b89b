"""The context that a stack ran in, from the names on it."""

from collections.abc import Sequence

import numpy as np
import pytest

from memdiag_node.kernel.symbols import Symbols
from memdiag_node.trace.contexts import ContextCode, Contexts

LINES = {
    0xFFFFFFFF81000010: "vfs_write+0x400/0x4a0",
    0xFFFFFFFF81000020: "handle_softirqs+0xcd/0x300",
    0xFFFFFFFF81000030: "common_interrupt+0x79/0x90",
    0xFFFFFFFFC0000010: "try_fill_recv+0x311/0x800 [virtio_net]",
    0xFFFFFFFFC0000020: "__sysvec_call_function.constprop.0+0x1/0x2 [bpf]",
    0xFFFFFFFF81000040: "0xffffffff81000040",
}
WRITE, SOFTIRQ, INTERRUPT, DRIVER, SYSVEC, HIDDEN = LINES


@pytest.fixture
def contexts() -> Contexts:
    return Contexts(Symbols(lambda addresses: [LINES[address] for address in addresses]))


@pytest.mark.parametrize(
    ("stack", "context"),
    [
        ((WRITE, DRIVER), ContextCode.PROCESS),
        ((DRIVER, SOFTIRQ, INTERRUPT, WRITE), ContextCode.SOFTIRQ),
        ((DRIVER, INTERRUPT, SOFTIRQ), ContextCode.INTERRUPT),
        ((SYSVEC, WRITE), ContextCode.INTERRUPT),
        ((HIDDEN, WRITE), ContextCode.PROCESS),
        ((HIDDEN,), ContextCode.UNKNOWN),
        ((), ContextCode.UNKNOWN),
    ],
)
def test_the_innermost_interrupt_function_sets_the_context(
    contexts: Contexts, stack: tuple[int, ...], context: ContextCode
) -> None:
    rows = np.zeros((2, 8), np.uint64)
    rows[0, : len(stack)] = stack
    rows[1, 0] = WRITE
    assert contexts.of(rows).tolist() == [context, ContextCode.PROCESS]


def test_no_stacks_have_no_contexts(contexts: Contexts) -> None:
    assert contexts.of(np.zeros((0, 64), np.uint64)).tolist() == []


def test_each_address_is_looked_up_once() -> None:
    asked: list[int] = []

    def read_lines(addresses: Sequence[int]) -> list[str]:
        asked.extend(addresses)
        return [LINES[address] for address in addresses]

    symbols = Symbols(read_lines)
    symbols.texts([WRITE, DRIVER])
    contexts = Contexts(symbols)
    for _ in range(2):
        contexts.of(np.array([[WRITE, SOFTIRQ, 0]], np.uint64))
    assert asked == [WRITE, DRIVER, SOFTIRQ]
