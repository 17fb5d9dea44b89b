"""Owners of what was found: processes, with their container and pod."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from memdiag_api import limits
from memdiag_api.evidence import Owner
from memdiag_api.process_name import MAX_COMM_LENGTH
from memdiag_node.procfs.cgroup import parse_cgroup
from memdiag_node.procfs.status import parse_status
from memdiag_node.procfs.text import printable

OwnerOf = Callable[[int], Owner | None]
"""Returns the process of a pid, or None if it has exited."""


def owners_of(pairs: Iterable[tuple[int, int]], owner_of: OwnerOf) -> tuple[list[Owner], int]:
    """Return the first limits.MAX_OWNERS processes of these (pid, fd) with their fds, and the number of processes."""
    fds: dict[int, list[int]] = {}
    for pid, fd in pairs:
        fds.setdefault(pid, []).append(fd)
    owners = [
        owner.model_copy(update={"fds": sorted(fds[pid])[: limits.MAX_FDS]})
        for pid in sorted(fds)[: limits.MAX_OWNERS]
        if (owner := owner_of(pid)) is not None
    ]
    return owners, len(fds)


def read_owner(proc: Path, pid: int, *, with_arguments: bool = False) -> Owner | None:
    """Return the process `pid` in its current state, or None if it has exited or is hidden.

    Its command line is only the executable, unless `with_arguments`: arguments may contain passwords and tokens.
    All files are read through one open directory, so they describe the same process even if its pid is reused.
    Raises ProcFormatError if a file is malformed.
    """
    directory = proc / str(pid)
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        status = parse_status(_read(directory_fd, "status"), source=f"{directory}/status")
        identity = parse_cgroup(_read(directory_fd, "cgroup"), source=f"{directory}/cgroup")
        arguments = _read(directory_fd, "cmdline", 4 * limits.MAX_SENTENCE)
        command_line = _all_words(arguments) if with_arguments else _executable(directory_fd, arguments)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    finally:
        os.close(directory_fd)
    return Owner(
        pid=pid,
        comm=printable(status.comm, MAX_COMM_LENGTH),
        command_line=printable(command_line, limits.MAX_SENTENCE),
        uid=status.uid,
        container_id=identity.container_id,
        pod_uid=identity.pod_uid,
    )


def _all_words(arguments: bytes) -> bytes:
    return arguments.rstrip(b"\0").replace(b"\0", b" ")


def _executable(directory_fd: int, arguments: bytes) -> bytes:
    """Return the path of the executable, or the first argument if it cannot be read (ptrace(2), access modes).

    The argument is cut at the first blank: a program that sets its title may write all its arguments there, in one
    string.
    """
    try:
        return os.readlink(b"exe", dir_fd=directory_fd).removesuffix(b" (deleted)")
    except OSError:
        first = arguments.split(b"\0")[0].split()
        return first[0] if first else b""


def _read(directory_fd: int, name: str, max_bytes: int = -1) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=directory_fd), "rb") as file:  # noqa: PTH123 - a Path cannot be relative to a descriptor
        return file.read(max_bytes)
