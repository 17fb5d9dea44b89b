"""/proc/vmallocinfo: one line per area of the kernel's vmalloc space (kernel: mm/vmalloc.c)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(rb"0x[0-9a-f]+-0x[0-9a-f]+ +\d+ (?P<rest>.*)")
_PAGES = re.compile(rb"\bpages=(\d{1,15})\b")
# Callers that allocate the stack of a task. Compilers inline the inner functions in different ways.
_STACK_CALLER = re.compile(
    rb"(?:alloc_thread_stack_node|dup_task_struct|copy_process|kernel_clone|_do_fork)(?:\.\S+)?\+"
)
# GCC and clang add suffixes to copies of a function (.isra.0, .constprop.0, .llvm.123).
_CALLER = re.compile(
    rb"(?P<function>[\w$]{1,200})(?:\.[\w.]+)?\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[(?P<module>[^\]\s]{1,64})\])?"
)


@dataclass(frozen=True, slots=True)
class VmallocInfo:
    """Pages of vmalloc areas."""

    vmalloc_pages: int
    has_stacks: bool
    """Whether kernel stacks are among them. Not on kernels that allocate stacks elsewhere (without VMAP_STACK)."""


@dataclass(frozen=True, slots=True)
class CallerPages:
    """Pages that one function allocated by vmalloc."""

    function: str
    """Without its offset. Empty if the kernel does not show it."""
    module: str
    """Empty for the kernel itself."""
    pages: int
    areas: int


def pages_by_caller(lines: Iterable[bytes], *, source: str = "vmallocinfo") -> list[CallerPages]:
    """Add up the pages of areas allocated by vmalloc by their caller, most pages first, without kernel stacks.

    Lines are read one by one: the caller limits how many. Raises ProcFormatError as `parse_vmallocinfo`.
    """
    found: dict[tuple[bytes, bytes], list[int]] = {}
    for number, line in enumerate(lines, start=1):
        area = _LINE.fullmatch(line.rstrip(b"\n"))
        if area is None:
            raise ProcFormatError(source, number, line, "`0xSTART-0xEND SIZE ...`")
        rest = area["rest"]
        pages = _PAGES.search(rest)
        if pages is None or b"vmalloc" not in rest.split() or _STACK_CALLER.match(rest):
            continue
        caller = _CALLER.match(rest)
        key = (caller["function"], caller["module"] or b"") if caller else (b"", b"")
        sums = found.setdefault(key, [0, 0])
        sums[0] += int(pages[1])
        sums[1] += 1
    callers = [
        CallerPages(function.decode(errors="backslashreplace"), module.decode(errors="backslashreplace"), *sums)
        for (function, module), sums in found.items()
    ]
    return sorted(callers, key=lambda one: -one.pages)


def has_stack(lines: Iterable[bytes]) -> bool:
    """Return whether any line is a kernel stack. Lines after the first one are not read."""
    for line in lines:
        area = _LINE.fullmatch(line.rstrip(b"\n"))
        if area is not None and _STACK_CALLER.match(area["rest"]) and b" vmalloc" in area["rest"]:
            return True
    return False


def parse_vmallocinfo(text: bytes, *, source: str = "vmallocinfo") -> VmallocInfo:
    """Add up the pages of areas allocated by vmalloc. `vmap` and `ioremap` areas are counted elsewhere.

    Raises ProcFormatError for a line that does not start with an address range and a size.
    """
    vmalloc_pages, has_stacks = 0, False
    for number, line in enumerate(text.splitlines(), start=1):
        area = _LINE.fullmatch(line)
        if area is None:
            raise ProcFormatError(source, number, line, "`0xSTART-0xEND SIZE ...`")
        words = area["rest"].split()
        pages = _PAGES.search(area["rest"])
        if pages is None or b"vmalloc" not in words:
            continue
        vmalloc_pages += int(pages[1])
        has_stacks = has_stacks or _STACK_CALLER.match(area["rest"]) is not None
    return VmallocInfo(vmalloc_pages, has_stacks)
