"""The table of an accuracy run, as Markdown (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

from accuracy.judge import Judgement, Outcome
from planted.cases.case import PlantedTruth

_MIB = 1 << 20
_HEADER = (
    "| case | truth | in the kernel's counters | first finding | LeakDetected | right | bytes off | freed bytes off |",
    "|---|---|---:|---|---|---|---:|---:|",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One case that was tried."""

    case: str
    truth: PlantedTruth | None
    """None if it was not planted."""
    grown_bytes: int | None = None
    """By how much the classes of the truth grew while it was planted, by the kernel's own counters."""
    judgement: Judgement | None = None
    problem: str = ""
    """Why there is no judgement."""


def as_markdown(rows: Sequence[Row], result: Outcome, machine: str, window: str) -> str:
    """The machine, the result in one sentence, and the table."""
    summary = (
        f"{result.right} of {result.judged} right ({result.right_share:.0%}); LeakDetected False although a leak was "
        f"planted: {result.denied_leaks}; True in a healthy run: {result.invented_leaks}."
    )
    lines = [f"{machine}. Window: {window}.", "", summary, "", *_HEADER, *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    cells = [row.case, _truth(row.truth) if row.truth else "", _mib(row.grown_bytes)]
    judged = row.judgement
    if judged is None:
        cells += ["", "", row.problem, "", ""]
    else:
        right = "yes" if judged.is_right else f"**no**: {'; '.join(judged.faults)}"
        cells += [judged.first_finding, judged.leak_detected, right]
        cells += [_percent(judged.off_share), _percent(judged.freed_off_share)]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _truth(truth: PlantedTruth) -> str:
    if truth.is_healthy:
        return "healthy"
    rate = f"{truth.bytes_per_second / _MIB:.0f} MiB/s"
    size = rate if truth.bytes_per_second else _mib(truth.size_bytes)
    classes = "/".join(filter(None, truth.memory_classes))
    return f"{truth.answer.value}: {size} {classes}".rstrip() + f", {_owner(truth)}"


def _owner(truth: PlantedTruth) -> str:
    if truth.container_id:
        return f"container {truth.container_id[:12]}"
    if truth.processes:
        return f"{truth.processes} processes"
    if truth.pids:
        return f"pid {truth.pids[0]}" + (f" fd {truth.fds[0]}" if truth.fds else "")
    return truth.names[0] if truth.names else "the node"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _mib(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / _MIB:,.0f} MiB"
