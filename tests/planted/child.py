"""Loads that another process holds: it plants, counts and releases them, and releases them too when its parent dies.

def _queue(kept: ExitStack, packets: int) -> Truth: ...    # in a module of `planted`, at its top level

with held(_queue, 1000) as child:
    child.pid, child.truth                                 # what the child itself counted
"""

import contextlib
import importlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]
_END_SECONDS = 60

Truth = dict[str, Any]
"""The counts of a load, by name."""


@dataclass(frozen=True)
class HeldLoad:
    """A load that is planted, and the process that holds it."""

    pid: int
    truth: Truth

    @property
    def network_namespace(self) -> int:
        """The inode of the process's network namespace."""
        return Path(f"/proc/{self.pid}/ns/net").stat().st_ino

    def inode(self, fd: int) -> int:
        """The inode behind an fd of the process."""
        return Path(f"/proc/{self.pid}/fd/{fd}").stat().st_ino


@contextlib.contextmanager
def held(load: Callable[..., Truth], *amounts: object) -> Iterator[HeldLoad]:
    """Run `load(kept, *amounts)` in a child process; what it pushes on the ExitStack `kept` is done at the end.

    Raises RuntimeError if the child fails to plant it.
    """
    command = [sys.executable, "-m", "planted.child", load.__module__, load.__name__, json.dumps(amounts)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_TESTS) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            if not line:
                raise RuntimeError(f"the child that plants {load.__name__} ended with {child.wait()}")
            yield HeldLoad(child.pid, json.loads(line))
        finally:
            child.stdin.close()
            try:
                status = child.wait(_END_SECONDS)
            finally:
                child.kill()
        if status:
            raise RuntimeError(f"the child that held {load.__name__} ended with {status}")


def _main(module: str, name: str, amounts: str) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with ExitStack() as kept:
        truth = getattr(importlib.import_module(module), name)(kept, *json.loads(amounts))
        print(json.dumps(truth), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _main(*sys.argv[1:])
