"""Healthy loads that make and free kernel objects without end, each a separate program: `python churn.py KIND`.

    fork      processes that exit at once
    files     files on a tmpfs or any other temporary folder that are created, linked and removed
    sockets   connected sockets with some packets, which are closed again

Each prints `ready` and continues until it is killed or its parent ends. They rest between two rounds: the machine has
other work.
"""

import contextlib
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

_OBJECTS = 50
_REST_SECONDS = 0.02


def _fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def _files() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_OBJECTS):
            (Path(folder) / str(number)).write_bytes(b"x" * 100)


def _sockets() -> None:
    with contextlib.ExitStack() as kept:
        for _ in range(_OBJECTS):
            sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            kept.enter_context(sender)
            kept.enter_context(receiver)
            for _ in range(10):
                sender.send(b"x" * 100)


KINDS = {"fork": _fork, "files": _files, "sockets": _sockets}


if __name__ == "__main__":
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        KINDS[sys.argv[1]]()
        time.sleep(_REST_SECONDS)
