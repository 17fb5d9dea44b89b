"""Owners, read from the live /proc: a process of the test with a hostile name."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_node.processes import read_owner
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.status import ProcessStatus, parse_status
from memdiag_node.procfs.text import printable

PROC = Path("/proc")
HOSTILE_NAME = b") R 1\n\\n\x1b[2J"
RENAME_AND_WAIT = "import ctypes, sys; ctypes.CDLL(None).prctl(15, {!r}, 0, 0, 0); print('named', flush=True); input()"


@pytest.fixture
def hostile_process() -> Iterator[subprocess.Popen[str]]:
    """Renamed by prctl(PR_SET_NAME), with control characters in its arguments."""
    process = subprocess.Popen(
        [sys.executable, "-c", RENAME_AND_WAIT.format(HOSTILE_NAME), "\x1b]0;owned\x07", "naïve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "named\n"
    yield process
    process.kill()
    process.communicate()


def test_an_owner_is_named_without_its_control_characters(hostile_process: subprocess.Popen[str]) -> None:
    owner = read_owner(PROC, hostile_process.pid, with_arguments=True)
    assert owner is not None
    assert (owner.pid, owner.uid) == (hostile_process.pid, os.getuid())
    assert owner.comm == r") R 1\n\n\x1b[2J"
    assert owner.command_line.startswith(sys.executable + " -c import ctypes")
    assert owner.command_line.endswith(r"\x1b]0;owned\x07 naïve")


def test_a_process_that_is_gone_has_no_owner() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert read_owner(PROC, process.pid) is None


def test_a_zombie_is_still_identified(hostile_process: subprocess.Popen[str]) -> None:
    hostile_process.kill()
    os.waitid(os.P_PID, hostile_process.pid, os.WEXITED | os.WNOWAIT)
    owner = read_owner(PROC, hostile_process.pid)
    assert owner is not None
    assert owner.command_line == ""


def test_a_long_command_line_is_cut() -> None:
    say_that_it_runs = "print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", say_that_it_runs, "x" * 9000], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        owner = read_owner(PROC, process.pid, with_arguments=True)
        process.communicate("\n")
    assert owner is not None
    assert len(owner.command_line) == 1024


def test_without_being_asked_for_arguments_it_names_the_executable_only() -> None:
    say_that_it_runs = "print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", say_that_it_runs, "--token=SECRET"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        owner = read_owner(PROC, process.pid)
        process.communicate("\n")
    assert owner is not None
    assert owner.command_line == os.path.realpath(sys.executable)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (b"nginx\0--token=SECRET\0", "nginx"),
        (b"nginx --token=SECRET", "nginx"),  # a program that has set its title, all in one string
        (b"nginx: worker process\0\0\0", "nginx:"),
        (b"\0--token=SECRET\0", ""),
        (b" \t\0SECRET", ""),
        (b"", ""),
    ],
)
def test_when_the_executable_may_not_be_read_the_first_word_replaces_it(
    tmp_path: Path, arguments: bytes, shown: str
) -> None:
    process = tmp_path / "42"
    process.mkdir()
    (process / "status").write_bytes(b"Name:\tnginx\nUid:\t33\t33\t33\t33\n")
    (process / "cgroup").write_bytes(b"0::/\n")
    (process / "cmdline").write_bytes(arguments)
    owner = read_owner(tmp_path, 42)
    assert owner is not None
    assert owner.command_line == shown


def test_a_removed_executable_keeps_its_path(tmp_path: Path) -> None:
    process = tmp_path / "42"
    process.mkdir()
    (process / "status").write_bytes(b"Name:\tnginx\nUid:\t33\t33\t33\t33\n")
    (process / "cgroup").write_bytes(b"0::/\n")
    (process / "cmdline").write_bytes(b"x\0--token=SECRET\0")
    (process / "exe").symlink_to("/usr/sbin/nginx (deleted)")
    owner = read_owner(tmp_path, 42)
    assert owner is not None
    assert owner.command_line == "/usr/sbin/nginx"


def test_another_tree_than_the_live_one_is_read(tmp_path: Path) -> None:
    process = tmp_path / "42"
    process.mkdir()
    (process / "status").write_bytes(b"Name:\tnginx\nUid:\t33\t33\t33\t33\n")
    (process / "cmdline").write_bytes(b"nginx: worker process\0\0\0")
    (process / "cgroup").write_bytes(b"0::/docker/" + b"ab" * 32 + b"\n")
    owner = read_owner(tmp_path, 42, with_arguments=True)
    assert owner is not None
    assert (owner.comm, owner.command_line, owner.uid) == ("nginx", "nginx: worker process", 33)
    assert owner.container_id == "ab" * 32


def test_a_malformed_status_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    (tmp_path / "42/status").write_bytes(b"Name:\tx\nUid:\tnobody\n")
    with pytest.raises(ProcFormatError, match=rf"^{tmp_path}/42/status:2: expected `Uid:` and four numbers"):
        read_owner(tmp_path, 42)


def test_status_escapes_are_undone() -> None:
    text = b"Name:\ta\\nb\\\\n)\nUid:\t1\t2\t3\t4\n"
    assert parse_status(text) == ProcessStatus(comm=b"a\nb\\n)", uid=1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"plain", "plain"),
        ("naïve ☃".encode(), "naïve ☃"),
        (b"\xff\x00", r"\xff\x00"),
        ("\u202eevil".encode(), r"\u202eevil"),
    ],
)
def test_text_is_made_printable(text: bytes, shown: str) -> None:
    assert printable(text, 64) == shown


def test_text_is_cut_after_escaping() -> None:
    assert printable(b"\x1b" * 1000, 10) == r"\x1b\x1b\x"
