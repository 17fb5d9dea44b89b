"""Healthy loads that make and free very many kernel objects: none of them may look like a leak of slab.

The kernel keeps what is left of a closed connection for a minute. Here it is limited, so that the load is one that has
run for longer than that: as many remains end as begin.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from planted.cases.case import HEALTHY_SLAB, Case, PlantedTruth, UnavailableError
from planted.child import Truth, held
from planted.files import REAL_FOLDER
from planted.sockets.network import enter_own_network
from planted.steady import steady

_DATAGRAMS_PER_SECOND = 150_000
_SOURCES = 64
_REMAINS = 500
_CONNTRACK = Path("/proc/sys/net/netfilter")
_CONNTRACK_SECONDS, _CLEANING_SECONDS = 1, 100
_RULES = """
table ip planted {
  chain in { type filter hook input priority 0; ct state new accept; }
}
"""

_FIND = "while :; do find /usr -xdev -type f -newer /etc/passwd >/dev/null; done"
_BUILD = (
    f"for i in $(seq {_SOURCES}); do "
    'echo "#include <stdio.h>\nint f$i(int n) { return printf(\\"%d\\", n); }" > $i.c; done; '
    "while :; do cc -O2 -c *.c; done"
)
_FORKS = "while :; do for i in 1 2 3 4 5 6 7 8; do /bin/true & done; wait; done"


def _shell(script: str, program: str) -> Callable[[], contextlib.AbstractContextManager[PlantedTruth]]:
    @contextlib.contextmanager
    def plant() -> Iterator[PlantedTruth]:
        if not shutil.which(program):
            raise UnavailableError(f"there is no {program}")
        with tempfile.TemporaryDirectory(dir=REAL_FOLDER) as folder:
            shell = subprocess.Popen(["/bin/sh", "-c", script], cwd=folder, start_new_session=True)
            try:
                yield HEALTHY_SLAB
            finally:
                # What it has started shares its process group.
                subprocess.run(["kill", "-KILL", "--", f"-{shell.pid}"], check=True)
                shell.wait()

    return plant


@contextlib.contextmanager
def _datagrams() -> Iterator[PlantedTruth]:
    with steady("datagrams", _DATAGRAMS_PER_SECOND):
        yield HEALTHY_SLAB


@contextlib.contextmanager
def _web_server() -> Iterator[PlantedTruth]:
    with held(_serve, False):
        yield HEALTHY_SLAB


@contextlib.contextmanager
def _tracked_connections() -> Iterator[PlantedTruth]:
    if not _CONNTRACK.exists():
        raise UnavailableError("the kernel has no connection tracking")
    if not shutil.which("nft"):
        raise UnavailableError("there is no nft")
    with held(_serve, True):
        yield HEALTHY_SLAB


def _serve(kept: ExitStack, is_tracked: bool) -> Truth:
    """A server, and clients that connect for each request, in a network of their own."""
    enter_own_network()
    Path("/proc/sys/net/ipv4/tcp_max_tw_buckets").write_text(str(_REMAINS))
    if is_tracked:
        for state in ("time_wait", "close", "last_ack", "fin_wait", "close_wait"):
            (_CONNTRACK / f"nf_conntrack_tcp_timeout_{state}").write_text(str(_CONNTRACK_SECONDS))
        subprocess.run(["nft", "-f", "-"], input=_RULES, text=True, check=True)
    server = kept.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
    ended = threading.Event()

    def answer() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1_000)
                    connection.sendall(b"a" * 10_000)

    def ask() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), socket.create_connection(server.getsockname(), timeout=1) as client:
                client.sendall(b"q" * 100)
                while client.recv(1 << 16):
                    pass

    threads = [threading.Thread(target=work) for work in (answer, ask, ask)]
    server.settimeout(1)
    for thread in threads:
        thread.start()
        kept.callback(thread.join)
    kept.callback(ended.set)
    if is_tracked:
        _wait_for_the_first_cleaning()
    return {"pids": [os.getpid()]}


def _wait_for_the_first_cleaning() -> None:
    """The kernel removes entries whose time is over every minute or less, at a pace that it adapts to their time."""
    most = 0
    for _ in range(_CLEANING_SECONDS):
        time.sleep(1)
        entries = int((_CONNTRACK / "nf_conntrack_count").read_text())
        if entries < most / 2:
            return
        most = max(most, entries)


CASES = (
    Case("churn_find", "find over all programs, again and again", _shell(_FIND, "find"), is_healthy=True),
    Case("churn_build", "a C compiler that builds small files", _shell(_BUILD, "cc"), is_healthy=True),
    Case("churn_forks", "eight processes at a time that end at once", _shell(_FORKS, "sh"), is_healthy=True),
    Case("churn_datagrams", "150,000 UNIX datagrams per second", _datagrams, is_healthy=True),
    Case("churn_web_server", "a connection for each request of a busy server", _web_server, is_healthy=True),
    Case("churn_conntrack", "the same with connection tracking", _tracked_connections, is_healthy=True),
)
