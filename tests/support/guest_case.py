"""`make case` as a test calls it: the whole story of a cause, with its measurements."""

import os
import subprocess
import sys
from pathlib import Path

from local_cluster.case_outcome import Outcome
from local_cluster.paths import PROJECT

CASE_SECONDS = 1500


def run_case(cause: str, work: Path) -> Outcome:
    """The measurements of `make case CAUSE=cause`; the file `story` of the folder `work` has its output.

    Raises AssertionError with the story if it fails.
    """
    file = work / "outcome.json"
    name = ["--name", f"case-{os.getpid()}", "--owner-pid", str(os.getpid())]
    command = [sys.executable, "-m", "local_cluster", "case", "--cause", cause, *name, "--outcome", str(file)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as case:
        try:
            story, _ = case.communicate(timeout=CASE_SECONDS)
        except subprocess.TimeoutExpired:
            case.terminate()  # it stops what it started
            story, _ = case.communicate()
    (work / "story").write_text(story)
    assert case.returncode == 0, story
    return Outcome.load(file)
