"""The child process that plants sockets, from the test's side.

with Planter() as child:
    truth = child.plant("tcp_small_messages", 1000)   # {"fd": 5, "unread_bytes": 64000}: as the child counted
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from planted.sockets.common import Truth

_TESTS = Path(__file__).parents[2]


class Planter:
    """A child process that plants loads on request. Everything that it holds is closed when the context ends."""

    def __init__(self, *, own_network: bool = True) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "planted.sockets", "--serve", "own" if own_network else "shared"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=_TESTS,
            start_new_session=True,  # so that its own children end with it
        )
        self._answer()

    @property
    def pid(self) -> int:
        return self._child.pid

    def plant(self, load: str, *amounts: int) -> Truth:
        """Make the child plant a load; returns what it counted."""
        assert self._child.stdin is not None
        self._child.stdin.write(" ".join([load, *map(str, amounts)]) + "\n")
        return self._answer()

    def become_user(self, uid: int) -> None:
        """Let the child continue as another user, who can plant nothing that needs root."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"become_user {uid}\n")
        self._answer()

    def inode(self, fd: int) -> int:
        """The inode of the socket (or pipe) behind an fd of the child."""
        return Path(f"/proc/{self.pid}/fd/{fd}").stat().st_ino

    def network_namespace(self) -> int:
        return Path(f"/proc/{self.pid}/ns/net").stat().st_ino

    def kill(self) -> None:
        """Stop it, with everything that it holds. Idempotent."""
        if self._child.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._child.wait()

    def _answer(self) -> Truth:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.startswith("{"):
            raise RuntimeError(f"the planting child said {line!r} and ended with {self._child.poll()}")
        answer: Truth = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self.kill()
        self._child.stdin.close()
        self._child.stdout.close()
