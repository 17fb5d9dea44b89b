"""/proc/PID/status (kernel: fs/proc/array.c, proc_pid_status; the memory lines: fs/proc/task_mmu.c, task_mem)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_ESCAPE = re.compile(rb"\\(n|\\)")
_UID = re.compile(rb"(\d{1,10})(?:\t\d{1,10}){3}")
_COUNT = re.compile(rb"(\d{1,10})")
_SIZE = re.compile(rb" *(\d{1,15}) kB")
_BYTES_PER_KB = 1024
_COUNTS = (b"PPid", b"Threads")
_SIZES = (b"RssAnon", b"RssFile", b"RssShmem", b"VmSwap", b"VmPTE", b"HugetlbPages", b"VmExe")


@dataclass(frozen=True, slots=True)
class ProcessSizes:
    """Memory of a process. The kernel counts some of it per CPU and adds that up now and then, so it may lag."""

    rss_anon_bytes: int
    """Anonymous memory, including what it shares with its forks."""
    rss_file_bytes: int
    rss_shmem_bytes: int
    swap_bytes: int
    page_table_bytes: int
    """Page tables of all levels (since Linux 4.15)."""
    hugetlb_bytes: int
    """Huge pages of hugetlbfs, which are in none of the other figures."""
    code_bytes: int
    """Size of the code of its executable, which a fork inherits."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """Name, user and memory of a process."""

    comm: bytes
    uid: int
    """The real user ID, in the user namespace of the reader."""
    parent_pid: int = 0
    threads: int = 0
    """0 if its last thread has ended."""
    sizes: ProcessSizes | None = None
    """None for a kernel thread, and for a process whose first thread has ended."""


def parse_status(text: bytes, *, source: str = "status") -> ProcessStatus:
    """Parse the name, the user and the memory of a process.

    Raises ProcFormatError if `Name` or `Uid` is missing, or if a line that is read here is malformed. Other lines may
    be missing: kernel threads have no memory, and `HugetlbPages` needs a kernel with hugetlbfs.
    """
    comm: bytes | None = None
    uid: int | None = None
    numbers: dict[bytes, int] = {}
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
        elif name in _COUNTS:
            numbers[name] = _number(_COUNT, value, (source, number, line), "a number")
        elif name in _SIZES:
            numbers[name] = _number(_SIZE, value, (source, number, line), "a number and ` kB`") * _BYTES_PER_KB
    if comm is None or uid is None:
        raise ProcFormatError(source, 0, text, "the lines `Name:` and `Uid:`")
    return ProcessStatus(comm, uid, numbers.get(b"PPid", 0), numbers.get(b"Threads", 0), _sizes(numbers))


def _number(pattern: re.Pattern[bytes], value: bytes, place: tuple[str, int, bytes], expected: str) -> int:
    match = pattern.fullmatch(value)
    if match is None:
        raise ProcFormatError(*place, expected)
    return int(match[1])


def _sizes(numbers: Mapping[bytes, int]) -> ProcessSizes | None:
    return ProcessSizes(*(numbers.get(name, 0) for name in _SIZES)) if b"VmPTE" in numbers else None
