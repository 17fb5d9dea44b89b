"""/proc/PID/status (kernel: fs/proc/array.c, proc_pid_status)."""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_ESCAPE = re.compile(rb"\\(n|\\)")
_UID = re.compile(rb"(\d{1,10})(?:\t\d{1,10}){3}")


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """Name and user of a process."""

    comm: bytes
    uid: int
    """The real user ID, in the user namespace of the reader."""


def parse_status(text: bytes, *, source: str = "status") -> ProcessStatus:
    """Parse `Name` and `Uid`. Raises ProcFormatError if either is missing or malformed."""
    comm: bytes | None = None
    uid: int | None = None
    # Only \n separates lines here: a comm may contain any other control character.
    for number, line in enumerate(text.split(b"\n"), start=1):
        name, _, value = line.partition(b":\t")
        if name == b"Name" and comm is None:
            comm = _ESCAPE.sub(lambda match: b"\n" if match[1] == b"n" else b"\\", value)
        elif name == b"Uid":
            match = _UID.fullmatch(value)
            if match is None:
                raise ProcFormatError(source, number, line, "`Uid:` and four numbers")
            uid = int(match[1])
    if comm is None or uid is None:
        raise ProcFormatError(source, 0, text, "the lines `Name:` and `Uid:`")
    return ProcessStatus(comm, uid)
