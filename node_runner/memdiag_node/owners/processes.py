"""The memory of every process, from /proc/PID/status and /proc/PID/cgroup."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from memdiag_api.process_name import MAX_COMM_LENGTH
from memdiag_node.owners.address_spaces import AddressSpace
from memdiag_node.owners.families import families_of, one_for_each_space
from memdiag_node.owners.process_memory import ProcessMemory
from memdiag_node.procfs.cgroup import ContainerIdentity, parse_cgroup
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.status import ProcessSizes, ProcessStatus, parse_status
from memdiag_node.procfs.text import printable

MAX_PROCESSES = 100_000
SCAN_SECONDS = 10.0
"""Time limit of a scan. An idle CPU reads some 15,000 processes a second."""
_MAX_THREADS_TRIED = 64


@dataclass(slots=True)
class ProcessScan:
    """All processes that have memory of their own."""

    processes: list[ProcessMemory] = field(default_factory=list)
    threads: int = 0
    """Of all processes, including threads of the kernel."""
    malformed: int = 0
    """Processes that were skipped because a file of them could not be parsed."""
    anon_bytes: int | None = None
    """AnonPages at the time of the scan: what these processes have together. None if the scan is not whole."""
    is_whole: bool = True
    """False: the time or the limit of processes was reached, and the rest is missing."""


def scan_processes(
    proc: Path,
    *,
    address_spaces: Mapping[int, AddressSpace] | None = None,
    late: Callable[[], bool] = lambda: False,
    limit: int = MAX_PROCESSES,
) -> ProcessScan:
    """Read every process once, until `late` returns True. A process that exits meanwhile is skipped.

    `address_spaces`: those of the processes, by pid; without them, the size of the code and the parent show which
    processes may be forks of each other (owners.families).
    Raises OSError if `proc` cannot be listed or has no meminfo, ProcFormatError if meminfo is malformed.
    """
    scan = ProcessScan()
    anon_bytes = _anon_bytes(proc)
    code_bytes: dict[int, int] = {}
    identities: dict[ContainerIdentity, ContainerIdentity] = {}
    for pid in _pids(proc):
        if late() or len(scan.processes) >= limit:
            scan.is_whole = False
            break
        try:
            found = _read_process(proc, pid)
        except ProcFormatError:
            scan.malformed += 1
            continue
        if found is None:
            continue
        status, identity = found
        scan.threads += status.threads
        if status.sizes is not None and identity is not None:
            identity = identities.setdefault(identity, identity)
            scan.processes.append(_memory_of(pid, status, status.sizes, identity))
            code_bytes[pid] = status.sizes.code_bytes
    if scan.is_whole:
        scan.anon_bytes = min(anon_bytes, _anon_bytes(proc))
    spaces = address_spaces or {}
    scan.processes = one_for_each_space(scan.processes, spaces)
    for index, family in enumerate(families_of(scan.processes, spaces, code_bytes)):
        scan.processes[index] = replace(scan.processes[index], family=family)  # one by one: two whole lists are large
    return scan


def _anon_bytes(proc: Path) -> int:
    path = proc / "meminfo"
    return parse_meminfo(path.read_bytes(), source=str(path)).anon_bytes


def _pids(proc: Path) -> Iterator[int]:
    with os.scandir(proc) as entries:
        for entry in entries:
            if entry.name.isascii() and entry.name.isdigit():
                yield int(entry.name)


def _read_process(proc: Path, pid: int) -> tuple[ProcessStatus, ContainerIdentity | None] | None:
    """Return the process and its container (None for a kernel thread), or None if it has exited or is hidden.

    All files are read through one open directory, so they describe the same process even if its pid is reused.
    """
    directory = proc / str(pid)
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        status = parse_status(_read(directory_fd, "status"), source=f"{directory}/status")
        if status.sizes is None and status.threads > 1:
            status = _status_of_a_thread(directory_fd, status, source=f"{directory}/task")
        if status.sizes is None:
            return status, None
        return status, parse_cgroup(_read(directory_fd, "cgroup"), source=f"{directory}/cgroup")
    except OSError:
        return None
    finally:
        os.close(directory_fd)


def _status_of_a_thread(directory_fd: int, status: ProcessStatus, *, source: str) -> ProcessStatus:
    """Return the status of a thread with memory: a first thread that has ended has none, while others go on."""
    task_fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory_fd)
    try:
        with os.scandir(task_fd) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MAX_THREADS_TRIED)]
        for name in names:
            try:
                of_thread = parse_status(_read(task_fd, f"{name}/status"), source=f"{source}/{name}/status")
            except OSError:
                continue
            if of_thread.sizes is not None:
                return replace(status, sizes=of_thread.sizes)
    finally:
        os.close(task_fd)
    return status


def _memory_of(pid: int, status: ProcessStatus, sizes: ProcessSizes, identity: ContainerIdentity) -> ProcessMemory:
    return ProcessMemory(
        pid=pid,
        comm=sys.intern(printable(status.comm, MAX_COMM_LENGTH)),
        parent_pid=status.parent_pid,
        identity=identity,
        rss_anon_bytes=sizes.rss_anon_bytes,
        rss_shmem_bytes=sizes.rss_shmem_bytes,
        swap_bytes=sizes.swap_bytes,
        page_table_bytes=sizes.page_table_bytes,
        hugetlb_bytes=sizes.hugetlb_bytes,
        threads=status.threads,
        is_self=pid == os.getpid(),
    )


def _read(directory_fd: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=directory_fd), "rb") as file:  # noqa: PTH123 - a Path cannot be relative to a descriptor
        return file.read()
