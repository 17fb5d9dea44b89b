"""docs/reliability.md lists every fault that a test causes, and they cover every reason of a condition."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memdiag_api.conditions import Reason

PROJECT = Path(__file__).parents[3]
ROW = re.compile(r"^\| (.+?) \| (\w+) \| `(\w+)` \| (.+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def faults_of_tests() -> set[tuple[str, str, str]]:
    """Fault, tier and expected reason of every test with the mark.

    pytest collects them in a process of its own: a mark's arguments are only known once its file is imported, and this
    session may have selected other tests. It imports only the files that mention the mark: all take four times as long.
    """
    marked = [str(path) for path in (PROJECT / "tests").rglob("test_*.py") if "mark.fault" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "fault", "-p", "no:cacheprovider", *marked]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {row[:3] for row in ROW.findall(done.stdout)}


def documented() -> list[tuple[str, str, str, str]]:
    return ROW.findall((PROJECT / "docs" / "reliability.md").read_text())


def test_exactly_the_faults_of_the_tests_are_documented(faults_of_tests: set[tuple[str, str, str]]) -> None:
    assert {row[:3] for row in documented()} == faults_of_tests


def test_every_reason_is_produced_by_some_test(faults_of_tests: set[tuple[str, str, str]]) -> None:
    assert {reason for _, _, reason in faults_of_tests} == {reason.value for reason in Reason}


def test_the_documented_results_are_the_expected_ones() -> None:
    assert [row for row in documented() if row[3] != f"`{row[2]}`"] == []
