"""When memory runs out next to a runner, the kernel kills the runner first."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.memory_cgroup import IN_CGROUP, container_cgroup

MIB = 1 << 20
LIMIT_BYTES = 768 * MIB
STEP_BYTES = 8 * MIB
TENANT = f"""
blocks = []
for line in iter(input, "end"):
    blocks.append(bytearray(b"x" * {STEP_BYTES}))
    print(len(blocks) * {STEP_BYTES}, flush=True)
"""


def oom_kills(kernel_log: int) -> list[int]:
    """PIDs in the order in which the kernel killed them, from where `kernel_log` is on (man 5 proc: /dev/kmsg)."""
    killed: list[int] = []
    while True:
        try:
            record = os.read(kernel_log, 8192)
        except BlockingIOError:
            return killed
        except BrokenPipeError:
            continue  # the record was overwritten; the next read continues with the oldest that is left
        if found := re.search(rb"Killed process (\d+) ", record):
            killed.append(int(found[1]))


@pytest.fixture
def kernel_log() -> Iterator[int]:
    """The kernel's messages from now on."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        yield log
    finally:
        os.close(log)


def test_the_runner_is_killed_before_its_larger_neighbour(kernel_log: int) -> None:
    with container_cgroup() as cgroup:
        cgroup.limit(LIMIT_BYTES)
        started = ["sh", "-c", IN_CGROUP, str(cgroup.path), sys.executable]
        runner = subprocess.Popen(
            [
                *started,
                "-m",
                "memdiag_node.cli",
                "--duration",
                "10m",
                "--check",
                "Breakdown",
                "--check",
                "SocketQueues",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        tenant = subprocess.Popen(
            [*started, "-c", TENANT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            assert runner.stderr is not None
            assert any("waiting for the second scan" in line for line in runner.stderr)
            adjustments = [Path(f"/proc/{one.pid}/oom_score_adj").read_text().strip() for one in (runner, tenant)]
            assert adjustments == ["1000", Path("/proc/self/oom_score_adj").read_text().strip()]
            assert tenant.stdin is not None
            assert tenant.stdout is not None
            held_bytes = 0
            while not cgroup.killed() and held_bytes < LIMIT_BYTES:
                tenant.stdin.write("more\n")
                if not (said := tenant.stdout.readline()):
                    break
                held_bytes = int(said)
            assert runner.wait(timeout=30) == -signal.SIGKILL
            # The kernel treats an exiting process as gone while up to 40 MiB of it are not freed yet (mm/mmap.c,
            # exit_mmap: MMF_OOM_SKIP). So it may kill another process at once: only the order counts.
            assert oom_kills(kernel_log)[0] == runner.pid
            assert held_bytes > LIMIT_BYTES / 2  # it was the larger of the two
        finally:
            for process in (runner, tenant):
                process.kill()
                process.communicate()
