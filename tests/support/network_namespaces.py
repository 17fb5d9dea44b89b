"""What the kernel itself shows of the sockets and processes of network namespaces, for tests."""

import re
from pathlib import Path

_SOCKET = re.compile(r"socket:\[(\d+)\]")
_TABLES = {  # the column of the inode in each file of /proc/PID/net
    **dict.fromkeys(("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6"), 9),
    "packet": 8,
    "unix": 6,
    "netlink": 9,
}

_NOT_FULL = ("03", "06")  # SYN-RECV, TIME-WAIT


def sockets_in_tables(pid: int) -> list[int]:
    """The inode of every socket in the kernel's tables of the namespace of a process, where it has an inode."""
    found = []
    for name, column in _TABLES.items():
        file = Path(f"/proc/{pid}/net/{name}")
        rows = [line.split() for line in file.read_text().splitlines()[1:]] if file.exists() else []
        found += [int(row[column]) for row in rows]
    return [inode for inode in found if inode]


def connections_without_inode(pid: int) -> int:
    """The number of TCP connections in the tables that no process has, without those that are not full sockets."""
    files = (Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6"))
    rows = [line.split() for file in files for line in file.read_text().splitlines()[1:]]
    return sum(row[9] == "0" and row[3] not in _NOT_FULL for row in rows)


def sockets_of_fds(pid: int) -> set[int]:
    """The inodes of the sockets that a process has open."""
    targets = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return {int(match[1]) for target in targets if (match := _SOCKET.fullmatch(target))}


def processes_in(inode: int) -> int:
    """The number of processes in the network namespace with this inode."""
    return sum(_namespace_of(file) == inode for file in Path("/proc").glob("[0-9]*/ns/net"))


def _namespace_of(file: Path) -> int:
    try:
        return int(str(file.readlink()).removeprefix("net:[").rstrip("]"))
    except OSError:
        return 0
