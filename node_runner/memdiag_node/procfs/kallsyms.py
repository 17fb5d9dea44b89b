"""Names for kernel addresses, from /proc/kallsyms (kernel: kernel/kallsyms.c, s_show).

The file has some hundred thousand lines and a trace asks for some thousand addresses, so the file is read through once
for all of them, line by line, and nothing of it is kept.
"""

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_CODE = frozenset({b"t", b"T", b"w", b"W"})
_MODULE_WORD = 3
# Beyond this distance an address is not in the function before it, but in code that has no name here.
_MAX_FUNCTION_BYTES = 1 << 20


class KallsymsHiddenError(PermissionError):
    """The kernel shows every address as 0: reader lacks the capability SYSLOG, or kernel.kptr_restrict is 2."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """The function that an address lies in."""

    name: str
    module: str
    """Empty for the kernel itself."""
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class CodeRange:
    """Where a function lies: addresses from `start` to before `end`."""

    name: str
    start: int
    end: int


def resolve(lines: Iterable[bytes], addresses: Collection[int], *, source: str = "kallsyms") -> dict[int, Symbol]:
    """The function of each address; addresses in no known function are left out.

    `lines` need not be in order. Raises ProcFormatError for a malformed line, KallsymsHiddenError when all are hidden.
    """
    wanted = sorted(addresses)
    start_of = [0] * len(wanted)  # of the last function that starts between the address before and this one
    line_of = [b""] * len(wanted)
    visible = False
    for start, line in _functions(lines, source):
        visible = visible or start > 0
        index = bisect_left(wanted, start)
        if index < len(wanted) and start > start_of[index]:
            start_of[index], line_of[index] = start, line
    if not visible:
        raise _hidden(source)
    found: dict[int, Symbol] = {}
    start, line = 0, b""
    for index, address in enumerate(wanted):
        if start_of[index]:
            start, line = start_of[index], line_of[index]
        if line and address - start < _MAX_FUNCTION_BYTES:
            words = line.split()
            module = words[3].strip(b"[]") if len(words) > _MODULE_WORD else b""
            found[address] = Symbol(_text(words[2]), _text(module), address - start)
    return found


def code_ranges(lines: Iterable[bytes], names: re.Pattern[bytes], *, source: str = "kallsyms") -> list[CodeRange]:
    """The functions whose whole name matches, each up to where the next function begins. Errors as `resolve`."""
    starts: list[int] = []
    matching: list[tuple[int, str]] = []
    for start, line in _functions(lines, source):
        starts.append(start)
        symbol = line.split()[2]
        if names.fullmatch(symbol):
            matching.append((start, _text(symbol)))
    if not any(starts):
        raise _hidden(source)
    starts.sort()
    ranges = []
    for start, name in matching:
        following = bisect_left(starts, start + 1)
        end = starts[following] if following < len(starts) else start + _MAX_FUNCTION_BYTES
        ranges.append(CodeRange(name, start, min(end, start + _MAX_FUNCTION_BYTES)))
    return ranges


def _functions(lines: Iterable[bytes], source: str) -> Iterator[tuple[int, bytes]]:
    """Address and line of each function."""
    for number, line in enumerate(lines, start=1):
        words = line.split(None, 2)
        try:
            address = int(words[0], 16)
            is_code = words[1] in _CODE and words[2]
        except (ValueError, IndexError):
            raise ProcFormatError(source, number, line, "`ADDRESS TYPE NAME`, perhaps with a `[MODULE]`") from None
        if is_code:
            yield address, line


def _hidden(source: str) -> KallsymsHiddenError:
    return KallsymsHiddenError(
        f"{source} shows no addresses: it takes the capability SYSLOG, and kernel.kptr_restrict below 2"
    )


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
