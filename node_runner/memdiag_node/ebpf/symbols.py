"""Kernel addresses of this machine as text, and where the functions are that tell a stack's context."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.analyze.stacks import INTERRUPT_FUNCTIONS, SOFTIRQ_FUNCTIONS, UNKNOWN_FRAME
from memdiag_node.analyze.traced import ContextCode
from memdiag_node.procfs.kallsyms import CodeRange, code_ranges, resolve


class ContextFinder:
    """Tells a stack's context by the innermost of its functions that runs in an interrupt.

    That works on every kernel, unlike the preemption counter, whose place changes between versions.
    """

    def __init__(self, softirq: Collection[CodeRange], interrupt: Collection[CodeRange]) -> None:
        ranges = sorted(
            [(one.start, one.end, ContextCode.SOFTIRQ) for one in softirq]
            + [(one.start, one.end, ContextCode.INTERRUPT) for one in interrupt]
        )
        self._starts = np.array([start for start, _, _ in ranges], np.uint64)
        self._ends = np.array([end for _, end, _ in ranges], np.uint64)
        self._codes = np.array([code for _, _, code in ranges], np.uint8)

    @classmethod
    def read(cls, proc: Path) -> "ContextFinder":
        """Find the functions in /proc/kallsyms; where that hides addresses, contexts stay unknown.

        Raises ProcFormatError.
        """
        path = proc / "kallsyms"
        try:
            with path.open("rb") as lines:
                softirq = code_ranges(lines, SOFTIRQ_FUNCTIONS, source=str(path))
            with path.open("rb") as lines:
                interrupt = code_ranges(lines, INTERRUPT_FUNCTIONS, source=str(path))
        except OSError:
            return cls([], [])
        return cls(softirq, interrupt)

    def contexts(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """The ContextCode of each stack: a row of return addresses, innermost first, 0 where it has ended."""
        if not len(self._starts):
            return np.full(len(addresses), ContextCode.UNKNOWN, np.uint8)
        # A return address is the one after the call, so the call itself is just before it.
        place = np.searchsorted(self._starts, addresses, side="left") - 1
        inside = (place >= 0) & (addresses <= self._ends[place])
        codes = np.where(inside, self._codes[place], np.uint8(0))
        innermost = np.argmax(codes != 0, axis=1)
        found = codes[np.arange(len(codes)), innermost]
        return np.where(found != 0, found, np.uint8(ContextCode.PROCESS)).astype(np.uint8)


def symbolise(proc: Path, addresses: Collection[int]) -> dict[int, str]:
    """Text for each return address: `symbol+0x1f`, with `[module]` where it is one, or `unknown`. No address is left.

    Where /proc/kallsyms hides addresses, everything is unknown. Raises ProcFormatError.
    """
    path = proc / "kallsyms"
    try:
        with path.open("rb") as lines:
            symbols = resolve(lines, {address - 1 for address in addresses}, source=str(path))
    except OSError:
        symbols = {}
    texts: dict[int, str] = {}
    for address in addresses:
        symbol = symbols.get(address - 1)
        if symbol is None:
            texts[address] = UNKNOWN_FRAME
        else:
            module = f" [{symbol.module}]" if symbol.module else ""
            texts[address] = f"{symbol.name}+{symbol.offset_bytes + 1:#x}{module}"
    return texts
