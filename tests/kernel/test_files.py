"""The memory of files on this machine, against planted files and the kernel's own figures."""

import contextlib
import ctypes
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memdiag_api.census.files import CachedFile, FileCensus, FileKind
from memdiag_node.census.files.files import fields, read_files
from memdiag_node.census.files.found import files_record
from memdiag_node.census.files.paths import cut_path
from memdiag_node.cgroups.tree import container_cgroups, memory_cgroup_layout
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.processes import read_owner
from memdiag_node.procfs.kpageflags import open_frame_table
from planted import files
from planted.child import Truth
from planted.sockets.common import MIB, libc
from support.memory_cgroup import container_cgroup
from support.slab_census import opened_memory, take_slab_census

_TESTS = Path(__file__).parents[1]
_FILE_BYTES = 300 * MIB
_MEMFD_BYTES = 500 * MIB
_SEGMENT_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def memory(btf: Btf) -> Iterator[KernelMemory]:
    with opened_memory(btf) as opened:
        yield opened


def take(memory: KernelMemory, btf: Btf, *, with_paths: bool = True) -> FileCensus:
    with ExitStack() as opened:
        charges = open_frame_table(Path("/proc/kpagecgroup"), opened)
        raw = read_files(
            take_slab_census(memory, btf),
            fields(btf),
            read_charges=charges.read if charges else None,
            with_paths=with_paths,
        )
        assert raw
        containers = container_cgroups(memory, memory_cgroup_layout(btf))
        return files_record(raw, lambda pid: read_owner(Path("/proc"), pid), containers, page_bytes=mmap.PAGESIZE)


def with_inode(census: FileCensus, inode: int, kind: FileKind) -> CachedFile:
    (found,) = [one for one in census.files if one.inode == inode and one.kind is kind]
    return found


def components(path: str) -> list[str]:
    return path.strip("/").split("/")


def cached_bytes() -> int:
    """Cached and Buffers, neither of which includes the swap cache."""
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    return sum(int(line[1]) << 10 for line in lines if line[0] in ("Cached:", "Buffers:"))


def test_the_sum_of_all_files_agrees_with_meminfo(memory: KernelMemory, btf: Btf) -> None:
    before = cached_bytes()
    census = take(memory, btf)
    after = cached_bytes()
    tolerance = max(16 * MIB, before // 100)
    assert min(before, after) - tolerance < census.cached_bytes < max(before, after) + tolerance
    assert sum(one.cached_bytes for one in census.file_systems) <= census.cached_bytes + census.huge_page_bytes


@pytest.mark.parametrize("deleted", [False, True])
def test_a_file_of_a_disk_is_found_with_its_path_and_its_process(memory: KernelMemory, btf: Btf, deleted: bool) -> None:
    with files.cached_file(_FILE_BYTES, deleted=deleted) as planted:
        census = take(memory, btf)
    found = with_inode(census, planted.inode, FileKind.FILE)
    assert found.cached_bytes == pytest.approx(planted.size_bytes, rel=0.02)
    assert found.size_bytes == planted.size_bytes
    assert found.is_deleted == deleted
    assert found.path == cut_path(components(planted.path))
    assert [(user.pid, user.fds) for user in found.users] == [(planted.pid, [planted.fd])]
    assert (census.deleted_bytes >= found.cached_bytes) == deleted
    (system,) = [one for one in census.file_systems if (one.name, one.device) == (found.file_system, found.device)]
    assert system.cached_bytes >= found.cached_bytes


def test_a_tmpfs_of_another_mount_namespace_is_found_where_it_is_mounted(memory: KernelMemory, btf: Btf) -> None:
    with files.tmpfs_mount(files=3, file_bytes=50 * MIB) as planted:
        census = take(memory, btf)
    (system,) = [one for one in census.file_systems if one.mount_point == cut_path(components(planted.mount_point))]
    assert system.name == "tmpfs"
    assert system.cached_bytes == pytest.approx(planted.size_bytes, rel=0.02)
    found = [one for one in census.files if one.path.startswith(system.mount_point + "/")]
    assert {one.path for one in found} == {f"{planted.mount_point}/file-{number}" for number in range(planted.files)}
    assert {(one.kind, one.users_total, one.is_deleted) for one in found} == {(FileKind.TMPFS, 0, False)}


def test_a_deleted_file_of_a_tmpfs_of_another_mount_namespace_is_found(memory: KernelMemory, btf: Btf) -> None:
    with files.tmpfs_mount(files=1, file_bytes=MIB) as mount:
        inside = Path(f"/proc/{mount.pid}/root{mount.mount_point}")
        with files.cached_file(_FILE_BYTES, deleted=True, folder=inside) as planted:
            census = take(memory, btf)
    (found,) = [one for one in census.files if one.path == f"{mount.mount_point}/{Path(planted.path).name}"]
    assert found.kind is FileKind.TMPFS
    assert found.is_deleted
    assert found.inode == planted.inode
    assert found.cached_bytes == pytest.approx(planted.size_bytes, rel=0.02)
    assert [(user.pid, user.fds) for user in found.users] == [(planted.pid, [planted.fd])]
    (system,) = [one for one in census.file_systems if one.mount_point == mount.mount_point]
    assert system.deleted_bytes == pytest.approx(planted.size_bytes, rel=0.02)


def test_a_memfd_is_found_with_its_name_and_its_process(memory: KernelMemory, btf: Btf) -> None:
    with files.memfd(_MEMFD_BYTES) as planted:
        census = take(memory, btf)
    found = with_inode(census, planted.inode, FileKind.MEMFD)
    assert found.path == f"memfd:{planted.path}"
    assert found.cached_bytes == pytest.approx(planted.size_bytes, rel=0.02)
    assert not found.is_deleted
    assert [(user.pid, user.fds, user.mapped_bytes) for user in found.users] == [(planted.pid, [planted.fd], 0)]
    assert census.shmem_bytes >= found.cached_bytes


def test_a_file_that_is_only_mapped_is_found_with_its_process(memory: KernelMemory, btf: Btf) -> None:
    with files.memfd(_SEGMENT_BYTES) as planted, mapped(f"/proc/{planted.pid}/fd/{planted.fd}", planted.size_bytes):
        census = take(memory, btf)
    found = with_inode(census, planted.inode, FileKind.MEMFD)
    users = {user.pid: (user.fds, user.mapped_bytes) for user in found.users}
    assert users == {planted.pid: ([planted.fd], 0), os.getpid(): ([], planted.size_bytes)}


@contextlib.contextmanager
def mapped(path: str, size_bytes: int) -> Iterator[None]:
    """Map a file without a descriptor of it; mmap.mmap would keep one."""
    map_memory = libc.mmap
    map_memory.restype = ctypes.c_void_p
    fd = os.open(path, os.O_RDWR)
    address = map_memory(None, ctypes.c_size_t(size_bytes), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    os.close(fd)
    try:
        yield
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes))


def test_a_segment_without_a_process_is_found_with_its_creator(memory: KernelMemory, btf: Btf) -> None:
    with files.sysv_segment(_SEGMENT_BYTES) as planted:
        census = take(memory, btf)
    (found,) = [one for one in census.segments if one.creator.pid == planted.creator_pid]
    assert found.id == planted.segment
    assert found.attached == 0
    assert found.size_bytes == planted.size_bytes
    assert found.cached_bytes == pytest.approx(planted.size_bytes, rel=0.02)
    assert with_inode(census, planted.segment, FileKind.SYSV_SEGMENT).cached_bytes == found.cached_bytes


@contextlib.contextmanager
def held_under(prefix: list[str], load: str) -> Iterator[tuple[int, Truth]]:
    """Plant with a command in front of the child's own, which must run it in its place; yields pid and truth."""
    command = [*prefix, sys.executable, "-m", "planted.child", "planted.files", load, json.dumps([_SEGMENT_BYTES])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_TESTS) as child:
        assert child.stdout is not None
        yield child.pid, json.loads(child.stdout.readline())
        child.communicate()


def test_a_segment_of_another_ipc_namespace_is_found_with_its_creator(memory: KernelMemory, btf: Btf) -> None:
    with held_under(["unshare", "--ipc"], "_sysv_segment") as (pid, planted):
        census = take(memory, btf)
    (found,) = [one for one in census.segments if one.creator.pid == pid]
    assert (found.id, found.attached, found.size_bytes) == (planted["segment"], 0, _SEGMENT_BYTES)
    assert found.cached_bytes == pytest.approx(_SEGMENT_BYTES, rel=0.02)


def test_a_file_is_charged_to_the_container_that_filled_it(memory: KernelMemory, btf: Btf) -> None:
    with container_cgroup() as container:
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(container.path)]
        with held_under(enter, "_memfd") as (_, planted):
            census = take(memory, btf)
        found = with_inode(census, planted["inode"], FileKind.MEMFD)
        assert found.charged
        assert (found.charged.container_id, found.charged.pod_uid) == (container.container_id, container.pod_uid)
        assert found.charged.share == 1
        assert [user.container_id for user in found.users] == [container.container_id]


def test_without_paths_no_name_of_a_file_is_reported(memory: KernelMemory, btf: Btf) -> None:
    with files.memfd(_SEGMENT_BYTES) as planted, files.cached_file(_SEGMENT_BYTES) as other:
        census = take(memory, btf, with_paths=False)
    assert with_inode(census, planted.inode, FileKind.MEMFD).users[0].pid == planted.pid
    assert with_inode(census, other.inode, FileKind.FILE).users[0].pid == other.pid
    assert {one.path for one in census.files} == {""}
    assert {one.mount_point for one in census.file_systems} == {""}
    assert files.MEMFD_NAME not in census.model_dump_json()
