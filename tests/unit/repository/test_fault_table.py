"""The rows of the fault table are updated if their tests were run, and only then."""

from pathlib import Path

import pytest

from support.fault_table import HEADING, NOT_RUN, Row, filled_rows, write


def report(nodeid: str, outcome: str, *seen: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=nodeid,
        location=("file.py", 1, nodeid),
        keywords={},
        outcome=outcome,  # type: ignore[arg-type] # one of three words
        longrepr=None,
        when="call",
        user_properties=[("seen", one) for one in seen],
    )


def test_rows_have_the_result() -> None:
    rows = {name: [Row(f"fault {name}", "api", "NodeLost")] for name in ("a", "b", "c")}
    reports = [report("a", "passed", "NodeLost"), report("b", "failed", "Completed")]
    assert [(row.fault, row.seen) for row in filled_rows(rows, reports)] == [
        ("fault a", "`NodeLost`"),
        ("fault b", "`Completed`: failed"),
        ("fault c", NOT_RUN),
    ]


def test_rows_of_tests_that_were_not_run_are_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    a, b = Row("a", "api", "NodeLost"), Row("b", "e2e", "Completed")
    write(page, [Row("a", "api", "NodeLost", "`NodeLost`"), b])
    write(page, [a])
    write(page, [Row("b", "e2e", "Completed", "`Completed`")])
    assert f"## {HEADING}" in page.read_text()
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| a", "| b"))]
    assert rows == ["| a | api | `NodeLost` | `NodeLost` |", "| b | e2e | `Completed` | `Completed` |"]
