"""The record and the lines of the memory of files."""

from dataclasses import replace

import pytest

from memdiag_api import limits
from memdiag_api.census.files import FileCensus, FileKind
from memdiag_api.evidence import Owner
from memdiag_node.census.files.charges import Charge
from memdiag_node.census.files.found import FoundFile, FoundSegment, RawFiles, SystemSum, file_kind, files_record
from memdiag_node.census.files.super_blocks import FileSystem
from memdiag_node.census.files.users import FileUse
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.render.files import files_lines
from memdiag_node.render.text import WIDTH

MIB = 1 << 20
EXT4 = FileSystem("ext4", "vda", is_internal=False)
TMPFS = FileSystem("tmpfs", "tmpfs", is_internal=False)
INTERNAL = FileSystem("tmpfs", "tmpfs", is_internal=True)
CONTAINERS = {77: ContainerIdentity("c" * 64, "pod-uid")}


def owner_of(pid: int) -> Owner | None:
    return Owner(pid=pid, comm=f"app-{pid}", container_id="d" * 64) if pid < 100 else None


def found(**changes: object) -> FoundFile:
    base = FoundFile(
        kind=FileKind.FILE,
        system=EXT4,
        inode=12,
        path="/var/log/app.log",
        is_deleted=True,
        cached_bytes=300 * MIB,
        size_bytes=301 * MIB,
        swapped_bytes=0,
        charge=Charge(77, 0.75),
        uses={5: FileUse([3, 9]), 6: FileUse([], 4096), 200: FileUse([1])},
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # changes of a test


def raw(files: list[FoundFile], *, sampled_share: float = 1.0) -> RawFiles:
    return RawFiles(
        inodes=1000,
        cached_bytes=1000 * MIB,
        shmem_bytes=200 * MIB,
        block_device_bytes=0,
        deleted_bytes=300 * MIB,
        huge_page_bytes=0,
        swapped_bytes=0,
        systems=[SystemSum(EXT4, "/", 900, 800 * MIB, 300 * MIB)],
        systems_total=1,
        files=files,
        segments=[FoundSegment(4, 64 * MIB, 64 * MIB, 0, 0, 200, Charge(0, 1.0))],
        segments_total=1,
        sampled_share=sampled_share,
    )


def record(files: list[FoundFile], *, sampled_share: float = 1.0) -> FileCensus:
    return files_record(raw(files, sampled_share=sampled_share), owner_of, CONTAINERS, page_bytes=4096)


@pytest.mark.parametrize(
    ("system", "name", "is_shmem", "kind"),
    [
        (EXT4, "memfd:trap", False, FileKind.FILE),
        (TMPFS, "memfd:trap", True, FileKind.TMPFS),
        (INTERNAL, "memfd:cache", True, FileKind.MEMFD),
        (INTERNAL, "SYSV00000000", True, FileKind.SYSV_SEGMENT),
        (INTERNAL, "dev/zero", True, FileKind.SHARED_ANONYMOUS),
        (INTERNAL, "drm mm object", True, FileKind.KERNEL),
        (INTERNAL, "", True, FileKind.KERNEL),
        (FileSystem("bdev", "bdev", is_internal=True), "", False, FileKind.BLOCK_DEVICE),
        (FileSystem("hugetlbfs", "hugetlbfs", is_internal=True), "SYSV00000000", False, FileKind.HUGE_PAGES),
    ],
)
def test_the_kind_of_a_file(system: FileSystem, name: str, is_shmem: bool, kind: FileKind) -> None:
    assert file_kind(system, name, is_shmem=is_shmem) is kind


def test_a_file_names_its_users_and_its_container() -> None:
    (file,) = record([found()]).files
    assert [(user.pid, user.comm, user.fds, user.mapped_bytes) for user in file.users] == [
        (6, "app-6", [], 4096),
        (5, "app-5", [3, 9], 0),
        (200, "", [1], 0),
    ]
    assert file.users[0].container_id == "d" * 64
    assert file.charged
    assert (file.charged.container_id, file.charged.pod_uid, file.charged.share) == ("c" * 64, "pod-uid", 0.75)


def test_users_are_bounded() -> None:
    uses = {pid: FileUse(list(range(50))) for pid in range(1, 90)}
    (file,) = record([found(uses=uses)]).files
    assert len(file.users) == limits.MAX_FILE_USERS
    assert file.users_total == 89
    assert all(len(user.fds) == limits.MAX_FILE_FDS for user in file.users)


def test_sums_of_a_part_of_memory_are_scaled_and_files_are_not() -> None:
    half = record([found()], sampled_share=0.5)
    assert (half.inodes, half.cached_bytes, half.deleted_bytes) == (2000, 2000 * MIB, 600 * MIB)
    assert half.file_systems[0].cached_bytes == 1600 * MIB
    assert half.files[0].cached_bytes == 300 * MIB


def test_the_record_stays_small() -> None:
    uses = {pid: FileUse(list(range(50)), 1 << 40) for pid in range(1, 90)}
    full = record([found(uses=uses, path="/" + "p" * 119)] * limits.MAX_CACHED_FILES)
    assert len(full.model_dump_json(by_alias=True)) < 40 * 1024


def test_the_lines_show_owner_and_charge() -> None:
    memfd = found(kind=FileKind.MEMFD, system=INTERNAL, path="memfd:cache", uses={}, charge=None, is_deleted=False)
    lines = files_lines(record([found(), memfd]))
    text = "\n".join(lines)
    assert "300 MiB  /var/log/app.log (file, deleted, ext4 vda)" in text
    assert "app-6[6] mapped, app-5[5] fd 3,9, process 200 fd 1, charged to container cccccccccccc" in text
    assert "300 MiB  memfd:cache (memfd, tmpfs)\n             no process has it open or mapped" in text
    assert "System V segment 4, attached by no process, created by process 200, which has exited" in text
    assert max(map(len, lines)) <= WIDTH
    assert files_lines(record([]).model_copy(update={"cached_bytes": 0})) == []
