"""The context of an allocation, from the names on its stack."""

import re
from collections.abc import Collection
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.symbols import UNNAMED_PREFIX, Symbols, function_name


class ContextCode(IntEnum):
    """The context that a stack ran in."""

    UNKNOWN = 0
    PROCESS = 1
    SOFTIRQ = 2
    INTERRUPT = 3


# Frames outside of these were merely interrupted: they have no part in the allocation.
_CONTEXT_FUNCTIONS = (
    (re.compile(r"handle_softirqs|__do_softirq"), ContextCode.SOFTIRQ),
    (
        re.compile(
            r"(__)?sysvec_\w+|(__)?common_interrupt|handle_irq_event\w*|__handle_irq_event_percpu"
            r"|handle_percpu_devid_\w+|hrtimer_interrupt|exc_nmi|do_nmi|__flush_smp_call_function_queue"
            r"|el[01]\w*_interrupt|gic_handle_irq"
        ),
        ContextCode.INTERRUPT,
    ),
)


def interrupt_context(function: str) -> ContextCode | None:
    """The context that a function (function_name) sets for everything that it calls; None for all other functions."""
    return next((context for pattern, context in _CONTEXT_FUNCTIONS if pattern.fullmatch(function)), None)


class Contexts:
    """The contexts of stacks; each address is looked up once."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self._codes: dict[int, ContextCode] = {}

    def of(self, stacks: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """The ContextCode of each stack: a row of return addresses, innermost first, 0 after its end.

        It is that of the innermost function that runs in an interrupt. This works on every kernel, unlike the
        preemption counter, whose location changes between versions. A stack without any name has an unknown context.
        """
        unique, inverse = np.unique(stacks, return_inverse=True)
        self._learn([address for address in unique.tolist() if address and address not in self._codes])
        of_unique = np.array([self._codes.get(address, ContextCode.UNKNOWN) for address in unique.tolist()], np.uint8)
        codes = of_unique[inverse.reshape(stacks.shape)]
        is_interrupt = codes > ContextCode.PROCESS
        innermost = codes[np.arange(len(codes)), np.argmax(is_interrupt, axis=1)]
        others = np.where((codes == ContextCode.PROCESS).any(axis=1), ContextCode.PROCESS, ContextCode.UNKNOWN)
        return np.where(is_interrupt.any(axis=1), innermost, others).astype(np.uint8)

    def _learn(self, addresses: Collection[int]) -> None:
        for address, text in self._symbols.texts(addresses).items():
            if text.startswith(UNNAMED_PREFIX):
                self._codes[address] = ContextCode.UNKNOWN
            else:
                self._codes[address] = interrupt_context(function_name(text)) or ContextCode.PROCESS
