"""Steps of a longer command: one line each with its time, and a failure that can be acted upon."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_TAIL_LINES = 20


class StepError(Exception):
    """What failed, and where known: the log that tells why, and how to mend it.

    As a string it is all of that, so that whoever shows it (a test's failure, say) shows the end of the log, as it
    was when the step failed: the log may be gone by then.
    """

    def __init__(
        self, problem: str, *, log: Path | None = None, remedy: str = "", log_lines: int = LOG_TAIL_LINES
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.log = log
        self.remedy = remedy
        self.log_lines = log_lines
        self._tail = log_tail(log, log_lines) if log is not None else []

    def report(self) -> str:
        """The failure as several lines for a person, with the last lines of the log."""
        return f"error: {self}"

    def __str__(self) -> str:
        lines = [self.problem]
        if self.log is not None:
            lines.append(f"  last lines of {self.log}:")
            lines += [f"    {line}" for line in self._tail]
        if self.remedy:
            lines.append(f"  to mend it: {self.remedy}")
        return "\n".join(lines)


class Step:
    """Lets the body of a `step` say how it went; otherwise it is simply done."""

    outcome = "done"


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Announce `title`, run the body, end the line with its outcome and its time."""
    started = time.monotonic()
    print(f"==> {title:<28} ", end="", flush=True)
    current = Step()
    try:
        yield current
    except KeyboardInterrupt:
        current.outcome = "interrupted"
        raise
    except BaseException:
        current.outcome = "FAILED"
        raise
    finally:
        print(f"{current.outcome} ({time.monotonic() - started:.1f} s)", flush=True)


def log_tail(log: Path, lines_shown: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a log; says so if there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError as error:
        return [f"(no log: {error.strerror})"]
    return lines[-lines_shown:] or ["(the log is empty)"]


def fail(error: StepError) -> int:
    """Print the failure; returns the exit status for it."""
    print(error.report(), file=sys.stderr, flush=True)
    return 1
