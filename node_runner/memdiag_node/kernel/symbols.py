"""Names of kernel addresses, from the kernel's own symbol tables (symbols.bpf.c)."""

import re
import secrets
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.resource import Resource

ReadLines = Callable[[Sequence[int]], Sequence[str]]
"""The kernel's own text for each address: `symbol+0x1f/0x80 [module]`, or the address if it has no symbol."""

UNNAMED_PREFIX = "unnamed#"
"""The prefix of the text of an address without a name."""

_SOURCE = Path(__file__).with_suffix(".bpf.c")
# A line has at most 511 characters of symbol (KSYM_NAME_LEN, Linux 6.1), 55 of module and 40 of numbers; an iterator
# prints into 8 pages.
_ADDRESSES = 48
SYMBOL_DEFINES = {"ADDRESSES": _ADDRESSES}
"""The defines of symbols.bpf.h."""
SYMBOL_MAPS = {"addresses": np.dtype("<u8")}
"""The maps of symbols.bpf.h, as read here."""
_LINE = re.compile(r"(?P<symbol>[^\s+]+)\+(?P<offset>0x[0-9a-f]+)/0x[0-9a-f]+(?: \[(?P<module>[^\]]+)\])?")
_KEY_BYTES, _ID_BYTES = 16, 4
# Newer kernels mark functions covered by memory allocation profiling (Linux 6.10); compilers add suffixes too.
_SUFFIX = re.compile(r"(_noprof|\.(constprop|isra|part|cold|llvm)\.?\w*)+$")


def function_name(text: str) -> str:
    """The function name in an address's text, without offset, module and compiler suffixes."""
    return _SUFFIX.sub("", text.split("+", 1)[0])


class SymbolReader(Resource):
    """Asks the kernel for the text of addresses. Raises BpfError if the kernel rejects the program."""

    def __init__(self, bpf: BpfObject | None = None) -> None:
        """`bpf`: programs whose source includes symbols.bpf.h, and which must stay open; else one of its own."""
        with self._opening() as parts:
            loaded = bpf or parts.enter_context(BpfObject(_SOURCE, SYMBOL_DEFINES, SYMBOL_MAPS))
            self._addresses = loaded.view("addresses", SYMBOL_MAPS["addresses"], _ADDRESSES)
            parts.callback(delattr, self, "_addresses")  # the mapping cannot be closed while a numpy view uses it
            self._iterator = loaded.attach_iterator("bpf_iter__bpf_map")

    def lines(self, addresses: Sequence[int]) -> list[str]:
        """A line for each return address; address 0 means none."""
        lines: list[str] = []
        for start in range(0, len(addresses), _ADDRESSES):
            batch = addresses[start : start + _ADDRESSES]
            self._addresses[: len(batch)] = batch
            self._addresses[len(batch) :] = 0
            lines += self._iterator.read().decode(errors="backslashreplace").split("\n")[:-1]
        if len(lines) != len(addresses):
            raise BpfError(f"{_SOURCE.name}: {len(lines)} lines for {len(addresses)} addresses")
        return lines


class Symbols:
    """Text for kernel return addresses, each looked up once.

    An address without a name gets an identifier that is stable within this object and does not reveal the address,
    so that different stacks stay different.
    """

    def __init__(self, read_lines: ReadLines | None) -> None:
        self._read_lines = read_lines
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._texts: dict[int, str] = {}

    def texts(self, addresses: Collection[int]) -> dict[int, str]:
        """For each return address `symbol+0x1f`, with ` [module]` if it is in one, or `unnamed#1a2b3c4d`."""
        new = [address for address in addresses if address not in self._texts]
        lines = self._read_lines(new) if self._read_lines else [""] * len(new)
        for address, line in zip(new, lines, strict=True):
            self._texts[address] = self._text(address, line)
        return {address: self._texts[address] for address in addresses}

    def _text(self, address: int, line: str) -> str:
        match = _LINE.fullmatch(line)
        if match is None:
            identifier = blake2b(address.to_bytes(8, "little"), key=self._key, digest_size=_ID_BYTES)
            return UNNAMED_PREFIX + identifier.hexdigest()
        module = f" [{match['module']}]" if match["module"] else ""
        return f"{match['symbol']}+{match['offset']}{module}"
