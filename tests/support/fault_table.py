"""The fault table: each test marked `fault` is a row, with the expected and the observed reason.

`pytest -m fault` prints it; `--write-faults=docs/reliability.md` also writes it there. A run of some of the tests
updates their rows and leaves the others.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from memdiag_api.conditions import Reason
from support.benchmarks import write_section

HEADING = "The fault table"
NOT_RUN = "(not run)"
_ROW = re.compile(r"\| (.+?) \| (\w+) \| `(\w+)` \| (.+) \|")
_HEAD = ("| fault | tier | expected reason | seen |", "|---|---|---|---|")


@dataclass(frozen=True, order=True)
class Row:
    """A fault in one tier."""

    fault: str
    tier: str
    expected: str
    seen: str = NOT_RUN

    @property
    def line(self) -> str:
        """The fault as a row of a Markdown table."""
        return f"| {self.fault} | {self.tier} | `{self.expected}` | {self.seen} |"


def expected_rows(items: Iterable[pytest.Item], tiers: dict[str, str]) -> dict[str, list[Row]]:
    """The rows of each test, by its id. Raises ValueError for a reason that no condition has."""
    return {
        item.nodeid: [
            Row(mark.args[0], tiers[item.nodeid], Reason(mark.kwargs["reason"]).value)
            for mark in item.iter_markers("fault")
        ]
        for item in items
    }


def filled_rows(rows: dict[str, list[Row]], reports: Iterable[pytest.TestReport]) -> list[Row]:
    """The rows with the observed results; for a fault of several tests, the results of all of them."""
    seen: dict[Row, set[str]] = {row: set() for of_test in rows.values() for row in of_test}
    for report in reports:
        if report.when == "call" or not report.passed:
            for row in rows.get(report.nodeid, []):
                seen[row].add(_seen(report, row))
    return sorted(
        Row(row.fault, row.tier, row.expected, ", ".join(sorted(reasons)) or NOT_RUN) for row, reasons in seen.items()
    )


def _seen(report: pytest.TestReport, row: Row) -> str:
    reasons = [str(value) for name, value in report.user_properties if name == "seen"]
    shown = f"`{reasons[-1]}`" if reasons else f"`{row.expected}`" if report.passed else "nothing"
    return shown if report.passed else f"{shown}: {report.outcome}"


def as_text(rows: Iterable[Row]) -> str:
    """The table in Markdown."""
    return "\n".join([*_HEAD, *(row.line for row in rows)])


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write it as a section of a Markdown file; rows of tests that were not run stay unchanged."""
    written = {found.groups() for line in path.read_text().splitlines() if (found := _ROW.fullmatch(line))}
    known = {row[:3]: Row(*row) for row in written}
    run = {(row.fault, row.tier, row.expected): row for row in rows}
    new = {place: row for place, row in run.items() if row.seen != NOT_RUN or place not in known}
    write_section(path, HEADING, as_text(sorted((known | new).values())))
