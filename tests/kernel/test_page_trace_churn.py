"""Busy, healthy loads: they allocate a lot, and none of their stacks may look like a leak."""

import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memdiag_api.evidence import Trend
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.host import read_host
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.pages.stacks import page_stacks
from memdiag_node.trace.settings import TraceSettings

WINDOW_SECONDS = 3.0
RUNS_OF_EACH = 2

SHELL_LOADS = {
    "find": "while :; do find /usr -xdev -type f -newer /etc/passwd >/dev/null; done",
    "dd": "while :; do dd if=/dev/zero of=dd.out bs=1M count=128 status=none; rm dd.out; done",
    "fork storm": "while :; do for i in 1 2 3 4 5 6 7 8; do /bin/true & done; wait; done",
    "build": (
        'for i in $(seq 64); do echo "#include <stdio.h>\nint f$i(int n) { return printf(\\"%d\\", n); }" > $i.c; done;'
        " while :; do cc -O2 -c *.c; done"
    ),
}


@contextmanager
def shell_load(script: str, directory: Path) -> Iterator[None]:
    child = subprocess.Popen(["/bin/sh", "-c", script], cwd=directory, start_new_session=True)
    try:
        yield
    finally:
        # The shell's children share its process group, so all of them are killed through it.
        subprocess.run(["kill", "-KILL", "--", f"-{child.pid}"], check=True)
        child.wait()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Do nothing."""


@contextmanager
def web_load(directory: Path) -> Iterator[None]:
    (directory / "page").write_bytes(b"x" * 200_000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(directory)))
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/page") as answer:
                answer.read()

    threads = [
        threading.Thread(target=server.serve_forever),
        threading.Thread(target=ask),
        threading.Thread(target=ask),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads[1:]:
            thread.join()
        server.shutdown()
        threads[0].join()
        server.server_close()


@pytest.mark.parametrize("run", range(RUNS_OF_EACH))
@pytest.mark.parametrize("name", [*SHELL_LOADS, "web server"])
def test_a_healthy_load_is_not_a_leak(name: str, run: int, tmp_path: Path) -> None:
    roots = HostRoots()
    limit_bytes = Thresholds().suspect_bytes(read_host(roots, "here").mem_total_bytes)
    load = web_load(tmp_path) if name == "web server" else shell_load(SHELL_LOADS[name], tmp_path)
    with load, PageTrace(TraceSettings(duration_seconds=WINDOW_SECONDS), roots=roots) as trace:
        end = time.monotonic() + WINDOW_SECONDS
        while time.monotonic() < end:
            time.sleep(0.25)
            trace.advance()
        result = trace.finish()
    suspects = [
        stack
        for stack in page_stacks(result, len(result.stacks))
        if stack.trend is Trend.GROWING and stack.outstanding_bytes >= limit_bytes
    ]
    assert suspects == [], f"run {run}"
