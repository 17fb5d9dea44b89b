"""page_owner_stacks/show_stacks in debugfs: pages by call stack (kernel: mm/page_owner.c, since Linux 6.9).

Each stack has a line for each function, innermost first, then `nr_base_pages: N` (`stack_count: N` on Linux 6.9, which
counts allocations), then an empty line.
"""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_FRAME = re.compile(rb" (\S{1,400}\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[[^\]\s]{1,64}\])?) *")
_COUNT = re.compile(rb"(?:nr_base_pages|stack_count): (\d{1,15})")
_MAX_FRAMES = 64


@dataclass(frozen=True, slots=True)
class OwnerStack:
    """A call stack, and the pages that it allocated and that are not freed."""

    frames: tuple[str, ...]
    """Innermost first."""
    pages: int


def parse_page_owner_stacks(text: bytes, *, source: str = "show_stacks") -> list[OwnerStack]:
    """Return every stack. Text after the last count is ignored: the file may have been read in part.

    Raises ProcFormatError for a line of another form.
    """
    stacks: list[OwnerStack] = []
    frames: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if count := _COUNT.fullmatch(line):
            stacks.append(OwnerStack(tuple(frames), int(count[1])))
            frames = []
        elif (frame := _FRAME.fullmatch(line)) and len(frames) < _MAX_FRAMES:
            frames.append(frame[1].decode(errors="backslashreplace"))
        else:
            raise ProcFormatError(source, number, line, "` FUNCTION+OFFSET/SIZE` or `nr_base_pages: N`")
    return stacks
