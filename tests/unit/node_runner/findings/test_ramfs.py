"""Files of a ramfs: cache of files that stays."""

import pytest

from memdiag_api.census.files import FileKind
from memdiag_api.findings import LeakAnswer
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.file_cache import file_cache
from memdiag_node.findings.ramfs import ramfs_files
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from memdiag_node.owners.file_classes import file_cache_owners
from support.cached_files import cached, census_of, file_system, user


@pytest.mark.parametrize(
    ("name", "mount_point", "size_bytes", "sentence"),
    [
        (
            "ramfs",
            "/scratch",
            GIB,
            "1.00 GiB are in files of a ramfs mounted at /scratch",
        ),
        ("secretmem", "", GIB, "1.00 GiB are in files of a secretmem"),
        ("ramfs", "/scratch", MIB, None),
        ("ext4", "/data", GIB, None),
        ("tmpfs", "/dev/shm", GIB, None),
    ],
)
def test_a_file_system_without_storage(name: str, mount_point: str, size_bytes: int, sentence: str | None) -> None:
    files = census_of(file_systems=[file_system(name, size_bytes, mount_point=mount_point)])
    found = list(ramfs_files(files, thresholds=Thresholds(), mem_total_bytes=16 * GIB))
    assert [draft.sentence for draft in found] == ([f"{sentence}; the kernel cannot give it back"] if sentence else [])
    for draft in found:
        assert (draft.leak, draft.reclaimable, draft.is_notable) == (LeakAnswer.NO, False, True)
        assert draft.freed_by is not None
        assert draft.freed_by.size_bytes == size_bytes


def test_it_is_not_in_the_finding_about_the_cache() -> None:
    files = census_of(
        file_systems=[file_system("ext4", 5 * GIB, mount_point="/"), file_system("ramfs", GIB, mount_point="/scratch")],
        files=[
            cached(FileKind.FILE, GIB, path="/var/log/big"),
            cached(FileKind.FILE, GIB, path="/scratch/file").model_copy(update={"file_system": "ramfs"}),
        ],
    )
    owners = [file_cache_owners(6 * GIB, {}, {}, files)]
    (draft,) = file_cache(owners, files, thresholds=Thresholds(), mem_total_bytes=16 * GIB)
    assert draft.size_bytes == 5 * GIB
    assert draft.reasons == ["5.00 GiB of it belong to / (ext4)", "the largest files: /var/log/big (1.00 GiB)"]


def test_secret_memory_of_one_process_is_its_own() -> None:
    inodes = [
        cached(FileKind.FILE, size, inode=number, users=[user(77, "vault", [number])], users_total=1).model_copy(
            update={"file_system": "secretmem"}
        )
        for number, size in ((7, GIB), (8, 3 * GIB))
    ]
    files = census_of(file_systems=[file_system("secretmem", 4 * GIB)], files=inodes)
    (draft,) = ramfs_files(files, thresholds=Thresholds(), mem_total_bytes=16 * GIB)
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.pid, draft.owner.fds) == (OwnerKind.PROCESS, 77, [7, 8])
    assert draft.reasons[1] == "inode 8 has 3.00 GiB, used by vault[77]"
    assert draft.freed_by is not None
    assert draft.freed_by.action == "end process vault[77]"
