"""Tables and wrapped text of the report."""

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100


def percent(part: int, whole: int) -> str:
    """Return a share of a whole as text, right-aligned."""
    return f"{100 * part / max(1, whole):5.1f} %"


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> list[str]:
    """Return the rows as aligned lines; `right` are the numbers of the columns that are aligned to the right."""
    right = set(right)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(cut("  " + "  ".join(cells).rstrip()))
    return lines


def cut(line: str) -> str:
    """Return `line` within the width."""
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def wrapped(text: str, prefix: str) -> list[str]:
    """Return `text` after `prefix`, wrapped to the width, with further lines indented below its start."""
    if not text:
        return []
    return textwrap.wrap(text, WIDTH, initial_indent=prefix, subsequent_indent=" " * len(prefix))
