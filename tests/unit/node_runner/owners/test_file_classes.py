"""Owners of file cache and shared memory, and what containers are charged for."""

from memdiag_api.census.files import FileCensus, FileKind
from memdiag_api.owners import ClassOwners, OwnerKind
from memdiag_node.census.frames.frames import FrameCensus, UserFrames
from memdiag_node.owners.charges import by_container
from memdiag_node.owners.file_classes import file_cache_owners, shmem_owners
from memdiag_node.procfs.cgroup import ContainerIdentity
from support.cached_files import cached, census_of, charge, file_system, segment

MIB = 1 << 20
C1, C2 = ContainerIdentity("c1", "p1"), ContainerIdentity("c2", "p1")


def rows(found: ClassOwners) -> list[tuple[OwnerKind, str, int, int]]:
    return [
        (one.owner.kind, one.owner.name or one.owner.container_id, one.owner.processes, one.size_bytes // MIB)
        for one in found.owners
    ]


def test_cache_of_containers_and_of_file_systems() -> None:
    files = census_of(
        file_systems=[
            file_system("ext4", 500 * MIB, mount_point="/", device="sda1"),
            file_system("xfs", 100 * MIB, device="sdb"),
            file_system("tmpfs", 300 * MIB, mount_point="/run"),
            file_system("hugetlbfs", 300 * MIB),
        ]
    )
    found = file_cache_owners(600 * MIB, {C1: 3}, {C1: 60 * MIB, C2: 20 * MIB}, files)
    assert rows(found) == [
        (OwnerKind.FILE_SYSTEM, "/ (ext4)", 0, 420),
        (OwnerKind.CONTAINER, "c1", 3, 60),
        (OwnerKind.CONTAINER, "c2", 0, 20),
        (OwnerKind.FILE_SYSTEM, "sdb (xfs)", 0, 20),
    ]
    assert found.explained_bytes == 520 * MIB


def test_cache_without_a_census_of_files() -> None:
    assert rows(file_cache_owners(600 * MIB, {}, {C1: 60 * MIB}, None)) == [(OwnerKind.CONTAINER, "c1", 0, 60)]


def test_shared_memory_of_containers_and_of_files_that_no_container_is_charged_for() -> None:
    files = census_of(
        files=[
            cached(FileKind.TMPFS, 100 * MIB, path="/run/a"),
            cached(FileKind.MEMFD, 50 * MIB, path="memfd:x", charged=charge(C1)),
            cached(FileKind.FILE, 70 * MIB, path="/var/log/x"),
            cached(FileKind.SYSV_SEGMENT, 30 * MIB, inode=7),
        ],
        segments=[segment(7, 30 * MIB), segment(8, 20 * MIB, charged=charge(C1))],
    )
    found = shmem_owners(400 * MIB, {C1: 1}, {C1: 90 * MIB}, files)
    assert rows(found) == [
        (OwnerKind.FILE, "/run/a", 0, 100),
        (OwnerKind.CONTAINER, "c1", 1, 90),
        (OwnerKind.SHARED_MEMORY_SEGMENT, "System V segment 7", 0, 30),
    ]


def test_the_rest_of_a_tmpfs_belongs_to_it() -> None:
    files = census_of(
        files=[
            cached(FileKind.TMPFS, 100 * MIB, path="/run/a"),
            cached(FileKind.MEMFD, 50 * MIB, path="memfd:x"),
            cached(FileKind.MEMFD, 8 * MIB, path="memfd:x", charged=charge(C1)),
        ],
        segments=[segment(7, 30 * MIB)],
        file_systems=[
            file_system("tmpfs", 170 * MIB, mount_point="/run"),
            file_system("tmpfs", 5 * MIB, mount_point="/tmp"),
            file_system("tmpfs", 140 * MIB, is_internal=True),
        ],
    )
    assert rows(shmem_owners(400 * MIB, {}, {C1: 10 * MIB}, files)) == [
        (OwnerKind.FILE, "/run/a", 0, 100),
        (OwnerKind.FILE_SYSTEM, "/run (tmpfs)", 0, 60),
        (OwnerKind.FILE, "memfd:x", 0, 50),
        (OwnerKind.FILE_SYSTEM, "other memfds, System V segments and shared anonymous memory", 0, 50),
        (OwnerKind.SHARED_MEMORY_SEGMENT, "System V segment 7", 0, 30),
        (OwnerKind.CONTAINER, "c1", 0, 10),
    ]


def test_files_charged_to_a_container_whose_charges_are_not_known_are_owners() -> None:
    files: FileCensus = census_of(files=[cached(FileKind.MEMFD, 50 * MIB, path="memfd:x", charged=charge(C1))])
    (only,) = shmem_owners(400 * MIB, {}, {}, files).owners
    assert (only.owner.kind, only.owner.container_id, only.owner.pod_uid) == (OwnerKind.FILE, "c1", "p1")


def test_charges_are_added_up_by_container() -> None:
    census = FrameCensus(
        user={1: UserFrames(anonymous=1), 2: UserFrames(anonymous=2), 3: UserFrames(file=3), 9: UserFrames(shmem=7)},
        knows_charges=True,
    )
    found = by_container(census, {1: C1, 2: C1, 3: C2, 4: C2})
    assert found == {C1: UserFrames(anonymous=3), C2: UserFrames(file=3)}


def test_charges_of_a_part_of_memory_are_not_used() -> None:
    census = FrameCensus(user={1: UserFrames(anonymous=1)}, knows_charges=True, scanned_share=0.9)
    assert by_container(census, {1: C1}) == {}
    assert by_container(FrameCensus(user={0: UserFrames(anonymous=1)}), {1: C1}) == {}
    assert by_container(None, {1: C1}) == {}
