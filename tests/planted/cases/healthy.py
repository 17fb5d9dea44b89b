"""Healthy loads: memory is taken and given back, or a process needs it. None of them is a leak."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from planted.cases.case import HEALTHY, Case, PlantedTruth
from planted.cases.containers import container_with_limit, write_large_file
from planted.cases.unread import enter_cgroup
from planted.child import Truth, held
from planted.files import REAL_FOLDER, negative_dentries
from planted.network_namespaces import idle_namespaces
from planted.sockets.common import MIB, tcp_pair

_GIB = 1 << 30
_CGROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
_SOURCE_LINES = 20_000


def _load(
    prepare: Callable[..., Truth], *amounts: object
) -> Callable[[], contextlib.AbstractContextManager[PlantedTruth]]:
    @contextlib.contextmanager
    def plant() -> Iterator[PlantedTruth]:
        with held(prepare, *amounts):
            yield HEALTHY

    return plant


@contextlib.contextmanager
def _dentries() -> Iterator[PlantedTruth]:
    with negative_dentries(600_000):
        yield HEALTHY


@contextlib.contextmanager
def _cache_at_limit() -> Iterator[PlantedTruth]:
    with container_with_limit(200 * MIB) as container, held(_fill_cache, 400 * MIB, str(container.path)):
        yield HEALTHY


def _repeat(kept: ExitStack, step: Callable[[threading.Event], object]) -> None:
    """Call `step` in a thread until the load ends. It looks at the event if it takes long."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            step(ended)

    worker = threading.Thread(target=work)
    worker.start()
    kept.callback(worker.join)
    kept.callback(ended.set)


def _connected(kept: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A sender and a receiver with the kernel's own limits; neither waits longer than a moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = kept.enter_context(socket.create_connection(server.getsockname(), timeout=0.2))
        receiver = kept.enter_context(server.accept()[0])
    receiver.settimeout(0.2)
    return sender, receiver


def _send_all_the_time(kept: ExitStack, sender: socket.socket) -> None:
    def send(_: threading.Event) -> None:
        with contextlib.suppress(TimeoutError):
            sender.send(b"b" * 65_536)

    _repeat(kept, send)


def _idle_connections(kept: ExitStack, connections: int) -> Truth:
    """The rest of a request of 10 bytes is unread in each."""
    for _ in range(connections):
        sender, _ = tcp_pair()
        sender.send(b"k" * 10)
    return {}


def _bulk(kept: ExitStack) -> Truth:
    sender, receiver = _connected(kept)

    def read(_: threading.Event) -> None:
        with contextlib.suppress(TimeoutError):
            receiver.recv(MIB)

    _repeat(kept, read)
    _send_all_the_time(kept, sender)
    return {}


def _back_pressure(kept: ExitStack, pause_seconds: float) -> Truth:
    """A reader that does something else for some seconds, then reads all that waits."""
    sender, receiver = _connected(kept)

    def read(ended: threading.Event) -> None:
        ended.wait(pause_seconds)
        end = time.monotonic() + 1
        while time.monotonic() < end and not ended.is_set():
            with contextlib.suppress(TimeoutError):
                receiver.recv(MIB)

    _repeat(kept, read)
    _send_all_the_time(kept, sender)
    return {}


def _steady(kept: ExitStack, bytes_per_second: int) -> Truth:
    """A reader that is always behind, and always reads."""
    sender, receiver = _connected(kept)

    def read(ended: threading.Event) -> None:
        with contextlib.suppress(TimeoutError):
            receiver.recv(bytes_per_second // 100)
        ended.wait(0.01)

    _repeat(kept, read)
    _send_all_the_time(kept, sender)
    return {}


def _database(kept: ExitStack, size_bytes: int, step_bytes: int, pause_seconds: float) -> Truth:
    """It takes its cache of anonymous memory step by step, and keeps it."""
    cache: list[bytes] = []

    def take(ended: threading.Event) -> None:
        if len(cache) * step_bytes < size_bytes:
            cache.append(os.urandom(4_096) * (step_bytes // 4_096))
        ended.wait(pause_seconds)

    _repeat(kept, take)
    return {}


def _rollout(kept: ExitStack) -> Truth:
    """Containers that come and go: cgroups, and processes that end at once."""
    root = next(one for one in _CGROUPS if one.exists())

    def start_one(ended: threading.Event) -> None:
        cgroup = root / f"planted-rollout-{os.getpid()}"
        cgroup.mkdir()
        with subprocess.Popen(["sleep", "0.1"]) as process, contextlib.suppress(OSError):
            (cgroup / "cgroup.procs").write_text(str(process.pid))
        cgroup.rmdir()
        ended.wait(0.02)

    _repeat(kept, start_one)
    return {}


def _file_reads(kept: ExitStack, size_bytes: int) -> Truth:
    """Fill the page cache with one file, then read it again and again."""
    file = kept.enter_context(tempfile.TemporaryFile(dir=REAL_FOLDER))  # noqa: SIM115 - the ExitStack closes it
    for _ in range(size_bytes // MIB):
        file.write(b"f" * MIB)

    def read(ended: threading.Event) -> None:
        file.seek(0)
        while file.read(MIB) and not ended.wait(0.002):
            pass

    _repeat(kept, read)
    return {}


def _fill_cache(kept: ExitStack, size_bytes: int, cgroup: str) -> Truth:
    """Write a file into the page cache of a cgroup, and do nothing more."""
    enter_cgroup(cgroup)
    write_large_file(kept, size_bytes)
    return {}


def _compile(kept: ExitStack) -> Truth:
    """Short processes with much anonymous memory that write files."""
    folder = Path(kept.enter_context(tempfile.TemporaryDirectory(dir=REAL_FOLDER)))
    (folder / "source.py").write_text(
        "".join(f"def f{line}(x):\n    return x + {line}\n" for line in range(_SOURCE_LINES))
    )

    def build(ended: threading.Event) -> None:
        subprocess.run([sys.executable, "-m", "compileall", "-qf", str(folder)], check=True)
        ended.wait(0.05)

    _repeat(kept, build)
    return {}


def _log_writer(kept: ExitStack, line_bytes: int, pause_seconds: float) -> Truth:
    """A file that grows, and is started again at 64 MiB."""
    log = kept.enter_context(tempfile.TemporaryFile(dir=REAL_FOLDER))  # noqa: SIM115 - the ExitStack closes it

    def write(ended: threading.Event) -> None:
        log.write(b"l" * line_bytes)
        log.flush()
        if log.tell() > 64 * MIB:
            log.truncate(0)
            log.seek(0)
        ended.wait(pause_seconds)

    _repeat(kept, write)
    return {}


def _udp_echo(kept: ExitStack) -> Truth:
    server, client = (kept.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
    for one in (server, client):
        one.bind(("127.0.0.1", 0))
        one.settimeout(0.2)

    def answer(_: threading.Event) -> None:
        with contextlib.suppress(TimeoutError):
            question, address = server.recvfrom(2_000)
            server.sendto(question, address)

    def ask(_: threading.Event) -> None:
        with contextlib.suppress(TimeoutError):
            client.sendto(b"q" * 1_000, server.getsockname())
            client.recv(2_000)

    _repeat(kept, answer)
    _repeat(kept, ask)
    return {}


CASES = tuple(
    Case(name, summary, plant, is_healthy=True)
    for name, summary, plant in (
        ("idle_keepalive", "500 idle connections with 10 unread bytes each", _load(_idle_connections, 500)),
        ("bulk_transfer", "a connection at full rate", _load(_bulk)),
        ("back_pressure", "a reader that pauses for 3 seconds again and again", _load(_back_pressure, 3)),
        ("steady_reader", "a reader that takes 10 MB/s of what is sent as fast as possible", _load(_steady, 10**7)),
        ("database_start", "a process that takes 1 GiB step by step", _load(_database, _GIB, 32 * MIB, 0.5)),
        ("rollout", "cgroups and processes that come and go", _load(_rollout)),
        ("file_reads", "a file of 1 GiB that fills the page cache", _load(_file_reads, _GIB)),
        ("missing_names", "600,000 names that do not exist fill the dentry cache", _dentries),
        ("compile", "short processes with much memory that write files", _load(_compile)),
        ("log_writer", "a log of 2 MB/s", _load(_log_writer, 20_000, 0.01)),
        ("idle_namespaces", "200 network namespaces without processes or packets", _load(idle_namespaces, 200)),
        ("idle_cache_at_limit", "a container whose limit is full of files that it has read", _cache_at_limit),
        ("udp_echo", "datagrams that are answered", _load(_udp_echo)),
    )
)
