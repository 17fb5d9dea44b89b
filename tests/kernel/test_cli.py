"""`memdiag-node` on the command line: its output, its exit status, and that it leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.evidence import Check, Evidence, HolderKind

COMMAND = (sys.executable, "-m", "memdiag_node.cli")
NOBODY = 65534


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def unread_connection() -> Iterator[tuple[int, int]]:
    """A connection of this process that is not read: the receiver's fd, and the bytes that wait there."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            sender.sendall(b"x" * 50_000)
            yield receiver.fileno(), 50_000


def test_the_report_names_the_socket_its_process_and_its_bytes(unread_connection: tuple[int, int]) -> None:
    fd, unread_bytes = unread_connection
    done = run("--duration", "3s", "--output", "json")
    assert done.returncode == 0, done.stderr
    evidence = Evidence.model_validate_json(done.stdout)
    mine = [
        one for one in evidence.holders if one.unread_bytes and any(owner.pid == os.getpid() for owner in one.owners)
    ]
    (holder,) = mine
    assert holder.kind is HolderKind.SOCKET
    assert (holder.owners[0].fds, holder.unread_bytes) == ([fd], unread_bytes)
    assert holder.stuck_seconds is not None
    assert holder.stuck_seconds >= 2.5


HOLDS_UNREAD_DATA = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
    receiver, _ = server.accept()
    sender.sendall(b"x" * 50_000)
    print(flush=True)
    input()
"""


@pytest.fixture
def process_with_a_secret() -> Iterator[subprocess.Popen[str]]:
    """It holds unread data, and its arguments have a token."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_UNREAD_DATA, "--token=SECRET"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.communicate("\n")


@pytest.mark.parametrize("output", ["json", "framed", "text"])
def test_arguments_of_processes_are_not_reported(process_with_a_secret: subprocess.Popen[str], output: str) -> None:
    done = run("--duration", "1s", "--check", "SocketQueues", "--output", output)
    assert done.returncode == 0, done.stderr
    assert str(process_with_a_secret.pid) in done.stdout
    assert "SECRET" not in done.stdout + done.stderr


def test_arguments_are_reported_on_request(process_with_a_secret: subprocess.Popen[str]) -> None:
    done = run("--duration", "1s", "--check", "SocketQueues", "--output", "json", "--report-arguments")
    owners = [owner for one in Evidence.model_validate_json(done.stdout).holders for owner in one.owners]
    (mine,) = {owner.command_line for owner in owners if owner.pid == process_with_a_secret.pid}
    assert mine.endswith("--token=SECRET")


def test_the_text_report_has_every_part() -> None:
    done = run("--duration", "2s")
    assert done.returncode == 0, done.stderr
    for part in ("WHERE THE MEMORY IS", "WHO HOLDS IT", "WHICH CALL STACKS", "WHAT HOLDS ALLOCPAGE", "AllocPage"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_breakdown_adds_up() -> None:
    evidence = Evidence.model_validate_json(run("--check", "Breakdown", "--output", "json").stdout)
    assert evidence.checks == [Check.BREAKDOWN]
    assert evidence.breakdown is not None
    assert sum(one.size_bytes for one in evidence.breakdown.classes) == evidence.breakdown.mem_total_bytes
    assert evidence.trace is None


def test_ctrl_c_ends_the_trace_and_reports_what_was_traced() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--duration", "10m"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "tracing for" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    report, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Ended early: 600 s were requested" in report
    assert "WHICH CALL STACKS" in report


def test_nothing_stays_mounted() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    assert run("--duration", "1s").returncode == 0
    assert Path("/proc/self/mountinfo").read_text() == before


def test_without_rights_it_reports_what_is_missing_and_how_to_fix_it() -> None:
    done = subprocess.run(
        [*COMMAND, "--duration", "1s", "--check", "SocketQueues"],
        capture_output=True,
        text=True,
        check=False,
        user=NOBODY,
        extra_groups=[],
    )
    assert done.returncode == 3
    assert "eBPF programs" in done.stderr
    assert "run as root with the capabilities BPF, PERFMON and SYSLOG" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_rights_the_remaining_checks_still_run() -> None:
    done = subprocess.run(
        [*COMMAND, "--duration", "1s"], capture_output=True, text=True, check=False, user=NOBODY, extra_groups=[]
    )
    assert done.returncode == 0, done.stderr
    assert "WHERE THE MEMORY IS" in done.stdout
    assert "AllocPageTrace was skipped" in done.stdout


def test_preflight_lists_every_need() -> None:
    done = run("--preflight")
    assert done.returncode == 0, done.stdout
    assert {"bcc", "BTF", "eBPF programs", "kernel symbols", "/proc/meminfo"} <= {
        line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("Met")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--duration", "5"), "invalid duration '5': write it as 90s, 10m or 1h30m"),
        (("--duration", "2h"), "2h is out of range: 1s to 30m"),
        (("--check", "Sockets"), "unknown check 'Sockets': choose from Breakdown, AllocPageTrace, SocketQueues"),
        (("--top-n", "0"), "'0' is not a number from 1 to 50"),
        (("--output", "xml"), "invalid Output value: 'xml'"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_valid_values(arguments: tuple[str, str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
