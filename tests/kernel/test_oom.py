"""When memory runs out beside a runner, it is the runner that the kernel kills."""

import signal
import subprocess
import sys
from pathlib import Path

from support.memory_cgroup import container_cgroup

MIB = 1 << 20
LIMIT_BYTES = 768 * MIB
STEP_BYTES = 8 * MIB
TENANT = f"""
blocks = []
for line in iter(input, "end"):
    blocks.append(bytearray(b"x" * {STEP_BYTES}))
    print(len(blocks) * {STEP_BYTES}, flush=True)
"""
IN_CGROUP = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


def test_the_runner_is_killed_and_its_larger_neighbour_lives() -> None:
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
            assert any("waiting for the second look" in line for line in runner.stderr)
            adjustments = [Path(f"/proc/{one.pid}/oom_score_adj").read_text().strip() for one in (runner, tenant)]
            assert adjustments == ["1000", Path("/proc/self/oom_score_adj").read_text().strip()]
            assert tenant.stdin is not None
            assert tenant.stdout is not None
            held_bytes = 0
            # A killed process takes a moment to go. What the tenant takes meanwhile must not reach the limit by itself.
            while not cgroup.killed() and held_bytes < LIMIT_BYTES:
                tenant.stdin.write("more\n")
                said = tenant.stdout.readline()
                assert said, "the tenant was killed"
                held_bytes = int(said)
            assert runner.wait(timeout=30) == -signal.SIGKILL
            assert tenant.poll() is None
            assert held_bytes > LIMIT_BYTES / 2  # it was the larger of the two
        finally:
            for process in (runner, tenant):
                process.kill()
                process.communicate()
