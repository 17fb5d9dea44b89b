"""In a guest: what the accounts of containers say, beside the files of the cgroups (version 2).

tests/vm/test_cgroups.py compares the two. Each load has a container of its own.
"""

import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from memdiag_node.breakdown.surroundings import read_kernel_log
from memdiag_node.cgroups.layout import account_layout
from memdiag_node.cgroups.oom_kills import oom_kills
from memdiag_node.cgroups.reader import CgroupReader
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import memory_layout, open_memory
from memdiag_node.procfs.oom_messages import parse_oom_messages
from memdiag_node.procfs.roots import HostRoots
from planted.files import REAL_FOLDER
from planted.memory import MIB, PlantedMemory
from planted.netlink import bring_up

KINDS = ("anon", "shmem", "pipes", "tcp_queues")
PLANTED_BYTES = 24 * MIB
LIMIT_BYTES = 32 * MIB
REMOVED = 5
_POD = "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b95"
_SECONDS = 3  # the kernel adds up its counters every two seconds
_HIERARCHY = Path("/sys/fs/cgroup")
_WRITE = "file = open({path!r}, 'wb'); [file.write(b'x' * (1 << 20)) for _ in range({mib})]"
_IN_CGROUP = 'echo $$ > "$0/cgroup.procs" && exec "$@"'

Seen = dict[str, Any]


def container_id(number: int) -> str:
    """The ID of a container."""
    return f"{number:02x}" * 32


def accounts() -> Seen:
    """The account and the files of a container for each load, of one that reached its limit, and of removed groups."""
    bring_up("lo")
    btf = Btf.load()
    layouts = account_layout(btf), memory_layout(btf)
    with ExitStack() as kept:
        memory = open_memory(layouts[1], kept)
        reader = CgroupReader(memory, layouts[0] | layouts[1], HostRoots(), page_bytes=mmap.PAGESIZE)
        pod = kept.enter_context(_pod())
        reader.start()
        planted = {}
        for number, kind in enumerate(KINDS):
            folder = kept.enter_context(_cgroup(pod, container_id(number)))
            load = kept.enter_context(PlantedMemory(kind, PLANTED_BYTES))
            (folder / "cgroup.procs").write_text(str(load.pid))
            planted[kind] = load.plant()
        full = kept.enter_context(_cgroup(pod, container_id(len(KINDS))))
        (full / "memory.max").write_text(str(LIMIT_BYTES))
        _run_in(full, f"b'x' * {8 * LIMIT_BYTES}")
        _run_in(full, _WRITE.format(path=str(REAL_FOLDER / "full"), mib=2 * LIMIT_BYTES // MIB))
        _remove_with_files(full)
        time.sleep(_SECONDS)
        reading = reader.read()
        files = {one.name: _files(one) for one in sorted(pod.iterdir()) if one.is_dir()}
        removed = reader.removed(reading, charged_slab=None)
        log = read_kernel_log()
        kills = oom_kills(
            parse_oom_messages(log or b"", page_bytes=mmap.PAGESIZE),
            now_seconds=time.clock_gettime(time.CLOCK_MONOTONIC),
        )
        return {
            "planted": planted,
            "accounts": {
                one.record.container_id: one.record.to_json_object()
                for one in reader.accounts(reading)
                if one.record.pod_uid == _POD
            },
            "files": files,
            "removed": removed.to_json_object() if removed else None,
            "kills": [kill.to_json_object() for kill in kills],
        }


@contextmanager
def _pod() -> Iterator[Path]:
    (_HIERARCHY / "cgroup.subtree_control").write_text("+memory")
    with _cgroup(_HIERARCHY, f"pod{_POD}") as pod:
        (pod / "cgroup.subtree_control").write_text("+memory")
        yield pod


@contextmanager
def _cgroup(parent: Path, name: str) -> Iterator[Path]:
    """A cgroup; removed at the end, when its processes have ended."""
    folder = parent / name
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


def _run_in(folder: Path, program: str) -> int:
    return subprocess.run(["sh", "-c", _IN_CGROUP, folder, sys.executable, "-c", program], check=False).returncode


def _remove_with_files(container: Path) -> None:
    """Remove cgroups that are charged with the page cache of a file."""
    pod = container.parent
    for number in range(REMOVED):
        with _cgroup(pod, container_id(16 + number)) as folder:
            _run_in(folder, _WRITE.format(path=str(REAL_FOLDER / f"removed-{number}"), mib=1))


def _files(folder: Path) -> Seen:
    figures = (folder / "memory.stat").read_text().splitlines() + (folder / "memory.events").read_text().splitlines()
    seen = {name: int(figure) for name, figure in (line.split() for line in figures)}
    return seen | {"usage": int((folder / "memory.current").read_text())}
