"""Findings about the cache of files."""

from memdiag_api.census.files import FileCensus, FileKind
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.draft import Draft, Tier
from memdiag_node.findings.file_cache import file_cache
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from memdiag_node.owners.file_classes import file_cache_owners
from memdiag_node.procfs.cgroup import ContainerIdentity
from support.cached_files import cached, census_of, charge, file_system

C1, C2 = ContainerIdentity("c" * 64, ""), ContainerIdentity("d" * 64, "")


def found(size: int, charged: dict[ContainerIdentity, int], files: FileCensus | None) -> list[Draft]:
    owners = file_cache_owners(size, {}, charged, files)
    drafts = list(file_cache([owners], files, thresholds=Thresholds(), mem_total_bytes=16 * GIB))
    assert sum(sum(draft.claimed_bytes.values()) for draft in drafts) <= size
    for draft in drafts:
        assert (draft.kind, draft.leak, draft.tier) == (FindingKind.FILE_CACHE, LeakAnswer.NO, Tier.RECLAIMABLE)
        assert draft.reclaimable
        assert draft.finding(0)
    return drafts


def test_all_of_it_is_one_finding_with_file_systems_and_files() -> None:
    files = census_of(
        file_systems=[file_system("ext4", 5 * GIB, mount_point="/", device="sda1"), file_system("bdev", MIB)],
        files=[cached(FileKind.FILE, GIB, path="/var/log/big"), cached(FileKind.FILE, MIB, path="/etc/small")],
    )
    (draft,) = found(6 * GIB, {}, files)
    assert draft.sentence == "6.00 GiB are cache of files; the kernel gives it back when memory is needed"
    assert draft.reasons == ["5.00 GiB of it belong to / (ext4)", "the largest files: /var/log/big (1.00 GiB)"]
    assert draft.owner is not None
    assert draft.owner.kind is OwnerKind.NODE


def test_a_container_with_much_cache_has_a_finding_of_its_own() -> None:
    files = census_of(
        files=[
            cached(FileKind.FILE, GIB, path="/data/a", charged=charge(C1)),
            cached(FileKind.FILE, GIB, path="/data/b", charged=charge(C2)),
            cached(FileKind.MEMFD, GIB, path="memfd:x", charged=charge(C1)),
        ]
    )
    of_container, rest = found(8 * GIB, {C1: 5 * GIB, C2: 200 * MIB}, files)
    assert of_container.sentence == (
        "5.00 GiB are cache of files that container cccccccccccc uses; the kernel gives it back when memory is needed"
    )
    assert of_container.reasons == ["the largest files: /data/a (1.00 GiB)"]
    assert rest.size_bytes == 3 * GIB
    assert rest.reasons == [
        "200 MiB of it belong to container dddddddddddd",
        "the largest files: /data/b (1.00 GiB)",
    ]


def test_little_of_it_is_not_said() -> None:
    assert found(30 * MIB, {}, None) == []


def test_without_the_class_there_is_nothing_to_say() -> None:
    assert list(file_cache([], None, thresholds=Thresholds(), mem_total_bytes=16 * GIB)) == []
