"""The output of a step, of its failure and of the way to fix it."""

import re
from pathlib import Path

import pytest

from local_cluster.shell import run
from local_cluster.steps import LOG_TAIL_LINES, StepError, step


def test_a_step_is_one_line_with_its_outcome_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    with step("images") as current:
        current.outcome = "cached"
    assert re.fullmatch(r"==> images +cached \(\d+\.\d s\)\n", capsys.readouterr().out)


def test_a_step_that_fails_says_so_and_hands_the_failure_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StepError, match="no luck"), step("images"):
        raise StepError("no luck")
    assert "images" in (line := capsys.readouterr().out)
    assert "FAILED" in line


def test_an_interrupted_step_is_not_called_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), step("images"):
        raise KeyboardInterrupt
    assert "interrupted" in capsys.readouterr().out


def test_a_report_holds_the_end_of_the_log_and_the_remedy(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    report = StepError("it broke", log=log, remedy="turn it off and on").report()
    assert report.startswith("error: it broke\n")
    assert "line 99" in report
    assert f"line {100 - LOG_TAIL_LINES}" in report
    assert f"line {99 - LOG_TAIL_LINES}\n" not in report
    assert report.endswith("to fix it: turn it off and on")


def test_a_failure_shows_the_end_of_its_log_wherever_it_is_shown_even_when_the_log_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    failure = StepError("the guest's kernel panicked", log=log, log_lines=50)
    log.unlink()
    assert "line 50\n" in str(failure)
    assert "line 99" in str(failure)
    assert "line 49\n" not in str(failure)


def test_a_missing_log_is_reported_and_hides_nothing_else(tmp_path: Path) -> None:
    report = StepError("it broke", log=tmp_path / "absent").report()
    assert "it broke" in report
    assert "no log" in report


def test_a_failing_program_is_named_with_its_status_and_what_it_said() -> None:
    with pytest.raises(StepError, match=r"`sh -c 'echo oh no >&2; exit 3'` ended with status 3: oh no"):
        run(["sh", "-c", "echo oh no >&2; exit 3"])


def test_a_failing_program_with_a_log_has_all_it_said_in_there(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    with pytest.raises(StepError) as failure:
        run(["sh", "-c", "echo out; echo err >&2; exit 1"], log=log)
    assert failure.value.log == log
    assert log.read_text() == "out\nerr\n"


def test_a_program_that_is_not_installed_is_named() -> None:
    with pytest.raises(StepError, match="no-such-program: not found"):
        run(["no-such-program"])
