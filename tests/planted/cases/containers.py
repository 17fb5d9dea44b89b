"""Containers and the limits of their memory: near one, and killed for one.

Each has a cgroup with a name like those of the kubelet's containers.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from planted.cases.case import Answer, Case, PlantedTruth, UnavailableError, of_child
from planted.cases.processes import PROCESS_KINDS, hold_memory
from planted.cases.unread import enter_cgroup, unix_datagrams
from planted.child import Truth, held
from planted.files import REAL_FOLDER
from planted.sockets.common import MIB

_LIMIT_BYTES = 400 * MIB
_NEAR_SHARE = 0.9  # what the findings of a container near its limit begin with
_READ_PAUSE_SECONDS = 0.02
_NEAR_LIMIT = "ContainerNearLimit"
_TAKE = """
import sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
blocks = []
for number in range(int(sys.argv[2])):
    blocks.append(b"x" * (1 << 20))
    print(number + 1, flush=True)
"""


@contextlib.contextmanager
def container_with_limit(limit_bytes: int) -> Iterator[Any]:
    """A cgroup like a container's, with a limit; see `support.memory_cgroup`."""
    from support.memory_cgroup import container_cgroup  # it needs pytest, which a container lacks

    with container_cgroup() as container:
        container.limit(limit_bytes)
        yield container


@contextlib.contextmanager
def _near_limit() -> Iterator[PlantedTruth]:
    with (
        container_with_limit(_LIMIT_BYTES) as container,
        held(hold_memory, "anon", 370 * MIB, str(container.path)) as child,
    ):
        yield PlantedTruth(
            Answer.HARMLESS,
            (_NEAR_LIMIT, *PROCESS_KINDS),
            ("AnonPages", ""),
            child.truth["size_bytes"],
            container_id=container.container_id,
        )


@contextlib.contextmanager
def _near_limit_cache() -> Iterator[PlantedTruth]:
    with container_with_limit(_LIMIT_BYTES) as container, held(_read_again, 2 * _LIMIT_BYTES, str(container.path)):
        yield PlantedTruth(
            Answer.HARMLESS,
            (_NEAR_LIMIT,),
            ("FileCache",),
            container.statistics()["file"],
            container_id=container.container_id,
        )


@contextlib.contextmanager
def _near_limit_sockets() -> Iterator[PlantedTruth]:
    with (
        container_with_limit(_LIMIT_BYTES) as container,
        held(hold_memory, "anon", 96 * MIB, str(container.path)),
        held(_datagrams_of, 4_600, 60_000, str(container.path)) as child,
    ):
        if container.usage_bytes() < _NEAR_SHARE * _LIMIT_BYTES:
            raise UnavailableError("the kernel does not count the packets of UNIX sockets for the container")
        truth = of_child(child, Answer.LEAK, ("UnreadSocket", _NEAR_LIMIT), "AllocPage", "SUnreclaim")
        yield dataclasses.replace(truth, container_id=container.container_id)


@contextlib.contextmanager
def _oom_kill() -> Iterator[PlantedTruth]:
    with container_with_limit(_LIMIT_BYTES) as container:
        command = [sys.executable, "-c", _TAKE, str(container.path), str(2 * _LIMIT_BYTES // MIB)]
        victim = subprocess.run(command, check=False, capture_output=True, text=True)
        if victim.returncode != -signal.SIGKILL or not container.killed():
            raise RuntimeError(f"the process in the container ended with {victim.returncode}")
        size_bytes = int(victim.stdout.split()[-1]) * MIB
        yield PlantedTruth(Answer.HARMLESS, ("OomKill",), ("",), size_bytes, container_id=container.container_id)


def _read_again(kept: ExitStack, size_bytes: int, cgroup: str) -> Truth:
    """Write a file larger than the limit, then read it again and again: the cache is at the limit all the time."""
    enter_cgroup(cgroup)
    file = write_large_file(kept, size_bytes)
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(_READ_PAUSE_SECONDS):
            if not file.read(MIB):
                file.seek(0)

    reader = threading.Thread(target=read)
    reader.start()
    kept.callback(reader.join)
    kept.callback(ended.set)
    return {}


def write_large_file(kept: ExitStack, size_bytes: int) -> IO[bytes]:
    """A file without a name on the machine's disk, written to it: the kernel may give back its page cache."""
    file = kept.enter_context(tempfile.TemporaryFile(dir=REAL_FOLDER))  # noqa: SIM115 - the ExitStack closes it
    for _ in range(size_bytes // MIB):
        file.write(b"f" * MIB)
    file.flush()
    os.fsync(file.fileno())
    return file


def _datagrams_of(kept: ExitStack, datagrams: int, size: int, cgroup: str) -> Truth:
    """UNIX datagrams: either version of cgroups counts their packets in the container's usage."""
    enter_cgroup(cgroup)
    return unix_datagrams(kept, datagrams, size)


CASES = (
    Case("near_limit", "a container with 370 of 400 MiB", _near_limit),
    Case("near_limit_cache", "a container of 400 MiB that reads a file of 800 MiB again and again", _near_limit_cache),
    Case("near_limit_sockets", "a container with 370 of 400 MiB, most of it unread datagrams", _near_limit_sockets),
    Case("oom_kill", "a container whose process was killed at its limit of 400 MiB", _oom_kill),
)
