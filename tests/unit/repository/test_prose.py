"""Plain English: patterns that Kubernetes and kernel documentation would not use, and what to write instead."""

import re
import subprocess

import pytest

from local_cluster.paths import PROJECT

PATTERNS = {
    r"told\b|telling(s|ly)?\b": "report, show, say, distinguish",
    r"(?<!there )\b(is|are|was|were) no (?!longer\b|more than\b|less than\b|other\b)": "is not a",
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bat work\b": "running",
    r"\bfault of its own\b": "internal error",
    r"\bthose that there are\b": "the existing ones",
    r"\b(a|the|its|their|run's) begin\b": "start",
    r"\b(in )?whatever way\b": "however",
    r"\bwhoever\b|\bwhomever\b": "anyone who",
    r"\bfor ever\b": "forever, without end",
    r"\bgone already\b": "already deleted",
    r"\bin vain\b": "failed",
}
SUFFIXES = (".py", ".c", ".h", ".md", ".yaml", ".toml", ".sh")
NAMES = ("Makefile", "Dockerfile")
RECORDED = "tests/fixtures/"  # stored objects and files of other machines
THIS = "tests/unit/repository/test_prose.py"


def prose_files() -> list[str]:
    """Every tracked file that people read, but for recorded ones."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [
        name
        for name in listed.splitlines()
        if name.endswith((*SUFFIXES, *NAMES)) and not name.startswith(RECORDED) and name != THIS
    ]


def test_there_is_something_to_read() -> None:
    assert len(prose_files()) > 300


@pytest.mark.parametrize(("pattern", "instead"), PATTERNS.items())
def test_a_pattern_is_not_used(pattern: str, instead: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in prose_files()
        for number, line in enumerate((PROJECT / name).read_text().splitlines(), start=1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not found, f"write instead: {instead}\n" + "\n".join(found)
