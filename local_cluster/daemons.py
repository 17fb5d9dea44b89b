"""The cluster's long-running programs: start them in its sandbox, wait until they respond, detect when one exits."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from local_cluster.cgroups import Cgroup
from local_cluster.sandbox import Sandbox
from local_cluster.shell import Command
from local_cluster.steps import LOG_TAIL_LINES, StepError

POLL_SECONDS = 0.05


@dataclass
class Daemons:
    """The daemons that this process has started for one cluster; each logs to `logs/NAME.log`."""

    cgroup: Cgroup
    sandbox: Sandbox
    logs: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Command) -> None:
        """Start `command`, detached from this process's terminal, so that it survives this process."""
        self.logs.mkdir(exist_ok=True)
        with self.log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [*self.cgroup.enter(), *self.sandbox.enter(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """The log of the daemon `name`."""
        return self.logs / f"{name}.log"

    def wait(
        self,
        what: str,
        ready: Callable[[], bool],
        *,
        log: str,
        timeout_seconds: float = 60,
        log_lines: int = LOG_TAIL_LINES,
    ) -> None:
        """Wait until `ready()`; raises StepError with the log of `log` on timeout, or at once if a daemon exits."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise StepError(
                        f"{name} ended with status {process.returncode}", log=self.log(name), log_lines=log_lines
                    )
            if time.monotonic() > deadline:
                raise StepError(f"{what}: not within {timeout_seconds:.0f} s", log=self.log(log), log_lines=log_lines)
            time.sleep(POLL_SECONDS)
