"""What a kernel address is: a function, an operations table or other data, of the kernel or of a module.

A kernel without CONFIG_KALLSYMS_ALL has names of functions only. There a table is named by its functions.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from memdiag_node.kernel.lists import WordReader
from memdiag_node.kernel.modules import NO_MODULES, ModuleMap
from memdiag_node.kernel.symbols import ReadLines, function_name

_LINE = re.compile(
    r"(?P<symbol>[^\s+]+)\+(?P<offset>0x[0-9a-f]{1,16})/(?P<size>0x[0-9a-f]{1,16})(?: \[(?P<module>[^\]]+)\])?"
)
# Names that compilers and linkers make, and marks of sections: they do not say what uses them.
_MEANINGLESS = re.compile(
    r"jumptable\.\d+|kallsyms_\w*|__func__\.\d+|__(key|already_done|warned|print_once|compound_literal|flags)\.\d+"
    r"|CSWTCH\.\d+|\.L\w*|__(start|stop|begin|end|k(str|sym|crc)tab)_\w*|_?_?[se]?(text|data|rodata|bss|end|sdata|edata)"
    r"|str\.\d+|descriptor\.\d+|__UNIQUE_ID_\w+|__param\w*|_note_\w+|init_(net|task|user_ns|cred|css_set|nsproxy|fs)"
    r"|(root_mem_cgroup|contig_page_data|page_offset_base|vmemmap_base|empty_zero_page)"
)
_MAX_NAME = 96
_TABLE_WORDS = 32
_TABLE_NAMES = 3
_TABLE_NAME = re.compile(r".*(_ops|_operations|_fops|_vtable|_proto|_type)")
_MIN_TABLE_FUNCTIONS = 2
_FAR_BYTES = 1 << 30


class Meaning(IntEnum):
    """How much the name of an address says. Higher is better."""

    NOTHING = 0
    MODULE = 1
    """The module that it is in."""
    DATA = 2
    """A place inside a function or an object."""
    NAMED = 3
    """The start of a function or of data."""
    TABLE = 4
    """A table of pointers to functions."""


@dataclass(frozen=True, slots=True)
class AddressName:
    """What is at an address."""

    meaning: Meaning
    text: str = ""
    """With the module in brackets."""
    module: str = ""


_NOTHING = AddressName(Meaning.NOTHING)


class AddressNames:
    """Names of addresses of functions and data, each looked up once."""

    def __init__(self, memory: WordReader, read_lines: ReadLines | None, modules: ModuleMap = NO_MODULES) -> None:
        """`read_lines` is SymbolReader.lines; None if the kernel does not name addresses."""
        self._memory = memory
        self._read_lines = read_lines
        self._modules = modules
        self._lines: dict[int, re.Match[str] | None] = {}
        self._names: dict[int, AddressName] = {}

    @property
    def sees_symbols(self) -> bool:
        """Whether the kernel names addresses."""
        return self._read_lines is not None

    def names(self, addresses: Collection[int]) -> dict[int, AddressName]:
        """What is at each of these addresses."""
        new = [address for address in dict.fromkeys(addresses) if address not in self._names]
        tables = self._functions_at(new)
        for address in new:
            self._names[address] = self._name(address, tables[address])
        return {address: self._names[address] for address in addresses}

    def _look_up(self, addresses: Sequence[int]) -> None:
        new = [address for address in dict.fromkeys(addresses) if address not in self._lines]
        # The reader is for return addresses: it looks up the byte before each.
        lines = self._read_lines([address + 1 for address in new]) if self._read_lines and new else [""] * len(new)
        for address, line in zip(new, lines, strict=True):
            self._lines[address] = _LINE.fullmatch(line)

    def _functions_at(self, addresses: Sequence[int]) -> dict[int, list[str]]:
        """The names of the functions that the first words at each address point to."""
        if not addresses:
            return {}
        starts = np.array(addresses, "<u8")
        slots = starts[:, np.newaxis] + np.arange(0, 8 * _TABLE_WORDS, 8, dtype="<u8")
        words = self._memory.peek(slots.reshape(-1)).reshape(slots.shape)
        # Functions are in the same part of memory as the table that has them.
        near = (words != 0) & (np.minimum(words - slots, slots - words) < np.uint64(_FAR_BYTES))
        self._look_up([*addresses, *np.unique(words[near]).tolist()])
        return {
            address: self._distinct_functions(row[mask].tolist())
            for address, row, mask in zip(addresses, words, near, strict=True)
        }

    def _distinct_functions(self, words: Sequence[int]) -> list[str]:
        found = [function_name(match["symbol"]) for word in words if (match := self._lines[word]) and _at_start(match)]
        return [name for name in dict.fromkeys(found) if not _MEANINGLESS.fullmatch(name)]

    def _name(self, address: int, functions: Sequence[str]) -> AddressName:
        match = self._lines[address]
        module = self._modules.module_of(address) or (match["module"] if match and match["module"] else "")
        suffix = f" [{module}]" if module else ""
        is_known = match is not None and _inside(match) and not _MEANINGLESS.fullmatch(match["symbol"])
        is_start = match is not None and _at_start(match)
        symbol = function_name(match["symbol"])[:_MAX_NAME] if match and is_known else ""
        listed = ", ".join(name[:_MAX_NAME] for name in functions[:_TABLE_NAMES])
        if symbol and is_start:
            is_table = len(functions) >= _MIN_TABLE_FUNCTIONS or _TABLE_NAME.fullmatch(symbol)
            contents = f" (with pointers to {listed})" if listed else ""
            return AddressName(
                Meaning.TABLE if is_table else Meaning.NAMED, f"{symbol}{suffix}{contents if is_table else ''}", module
            )
        if len(functions) >= _MIN_TABLE_FUNCTIONS and not symbol:
            return AddressName(Meaning.TABLE, f"a table with pointers to {listed}{suffix}", module)
        if match and symbol:
            return AddressName(Meaning.DATA, f"{symbol}+{_offset(match):#x}{suffix}", module)
        return AddressName(Meaning.MODULE, f"module {module}", module) if module else _NOTHING


def _offset(match: re.Match[str]) -> int:
    return max(0, int(match["offset"], 16) - 1)  # the address that was looked up is one higher


def _at_start(match: re.Match[str]) -> bool:
    return _offset(match) == 0


def _inside(match: re.Match[str]) -> bool:
    """Whether the address is in the symbol: kernels that list functions only name the last one before data."""
    return _offset(match) < int(match["size"], 16)
