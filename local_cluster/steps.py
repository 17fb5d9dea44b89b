"""Steps of a longer command: one line each with its duration, and failures that say how to fix them."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_TAIL_LINES = 20


class StepError(Exception):
    """What failed and, if known, the log that shows why, and how to fix it.

    The string has all of this, including the end of the log at the time of the failure: when the string is shown (for
    example in a test failure), the log may already be deleted.
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
        """The failure in readable form, with the last lines of the log."""
        return f"error: {self}"

    def __str__(self) -> str:
        lines = [self.problem]
        if self.log is not None:
            lines.append(f"  last lines of {self.log}:")
            lines += [f"    {line}" for line in self._tail]
        if self.remedy:
            lines.append(f"  to fix it: {self.remedy}")
        return "\n".join(lines)


class Step:
    """Lets the body of a `step` set the outcome; the default is "done"."""

    outcome = "done"


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Print `title`, run the body, and complete the line with the outcome and the duration."""
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
    """The last lines of a log, or a note that there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError as error:
        return [f"(no log: {error.strerror})"]
    return lines[-lines_shown:] or ["(the log is empty)"]


def fail(error: StepError) -> int:
    """Print the failure and return the exit status."""
    print(error.report(), file=sys.stderr, flush=True)
    return 1
