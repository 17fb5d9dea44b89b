"""Clues to untyped objects and unexplained frames, for the report."""

from memdiag_api.census.clues import Clue, Clues
from memdiag_api.units import format_bytes
from memdiag_node.render.text import percent, wrapped

_SMALL_BYTES = 1024 * 1024


def clues_lines(record: Clues) -> list[str]:
    """The lines of the report; empty if no clue is worth a line."""
    shown = [clue for clue in record.clues if clue.share * clue.size_bytes >= _SMALL_BYTES]
    lines = [line for clue in shown for line in wrapped(_sentence(clue), "  ")]
    lines += [
        line
        for use in record.frame_uses
        for line in wrapped(f"{_percent(use.share)} of the {use.subject}: {use.property}", "  ")
    ]
    if lines and not record.sees_symbols:
        lines.append("  The kernel does not name functions to the runner: only typed objects are recognized.")
    return ["CLUES   to objects without a type, by what their words point to", *lines] if lines else []


def _sentence(clue: Clue) -> str:
    size = format_bytes(clue.share * clue.size_bytes)
    whose = (
        f"{clue.objects:,} {clue.subject}"
        if clue.subject.startswith("frames")
        else (f"{clue.objects:,} objects of {clue.subject}")
    )
    return f"{size}: {_percent(clue.share)} of {whose} point at +{clue.offset_bytes} to {clue.points_to}"


def _percent(share: float) -> str:
    return percent(round(1000 * share), 1000).strip()
