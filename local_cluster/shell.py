"""Run a program and wait for it; a failure becomes a StepError."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_cluster.steps import StepError

Command = Sequence[str | Path]


def run(
    command: Command,
    *,
    log: Path | None = None,
    input: str | None = None,  # noqa: A002 - named as subprocess.run names it
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    remedy: str = "",
) -> str:
    """Run `command` and return its standard output; with `log`, all its output is appended there instead.

    `env` is added to this process's environment. Raises StepError if the program is missing or exits with a status
    other than 0.
    """
    environment = {**os.environ, **(env or {})}
    try:
        if log is None:
            done = subprocess.run(
                command, input=input, cwd=cwd, env=environment, capture_output=True, text=True, check=False
            )
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as output:
                done = subprocess.run(
                    command, input=input, cwd=cwd, env=environment, stdout=output, stderr=output, text=True, check=False
                )
    except FileNotFoundError as error:
        missing = error.filename or command[0]
        raise StepError(f"{missing}: not found", remedy=remedy or "python3 -m local_cluster prepare") from error
    if done.returncode != 0:
        shown = shlex.join(str(word) for word in command)
        problem = f"`{shown}` ended with status {done.returncode}"
        if done.stderr:
            problem += f": {done.stderr.strip()}"
        raise StepError(problem, log=log, remedy=remedy)
    return done.stdout or ""
