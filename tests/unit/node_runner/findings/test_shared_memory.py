"""Findings about shared memory: a row for each way in which a file or a segment is kept in memory."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.census.files import FileCensus, FileKind
from memdiag_api.findings import FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, OwnerKind
from memdiag_node.findings.draft import Draft, Tier
from memdiag_node.findings.shared_memory import shared_memory
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from memdiag_node.owners.file_classes import shmem_owners
from memdiag_node.procfs.cgroup import ContainerIdentity
from support.cached_files import cached, census_of, charge, file_system, segment, user

SIZE = 500 * MIB
C1 = ContainerIdentity("c" * 64, "p1")


def found(
    files: FileCensus | None, *, size: int = GIB, charged: dict[ContainerIdentity, int] | None = None
) -> list[Draft]:
    owners: ClassOwners = shmem_owners(size, {}, charged or {}, files)
    drafts = list(shared_memory([owners], files, thresholds=Thresholds(), mem_total_bytes=16 * GIB))
    assert sum(sum(draft.claimed_bytes.values()) for draft in drafts) <= size
    for draft in drafts:
        assert draft.kind is FindingKind.SHARED_MEMORY
        assert list(draft.claimed_bytes) == [ClassName.SHMEM]
        assert draft.finding(0)
    return drafts


FILES: list[Any] = [
    pytest.param(
        cached(FileKind.MEMFD, SIZE, path="memfd:x", users=[user(7, "python3", [3])]),
        "500 MiB are in memfd:x, used by python3[7] (fd 3)",
        FreedBy(action="close fd 3 of python3[7], or end it", size_bytes=SIZE),
        (OwnerKind.PROCESS, 7, [3]),
        Tier.NOTABLE,
        id="memfd",
    ),
    pytest.param(
        cached(FileKind.MEMFD, SIZE, path="memfd:x", users=[user(7, "python3", [3, 4], mapped=SIZE)]),
        "500 MiB are in memfd:x, used by python3[7] (fds 3 and 4)",
        FreedBy(action="end python3[7]", size_bytes=SIZE),
        (OwnerKind.PROCESS, 7, [3, 4]),
        Tier.NOTABLE,
        id="memfd that is mapped too",
    ),
    pytest.param(
        cached(FileKind.TMPFS, SIZE, path="/run/a"),
        "500 MiB are in the file /run/a in tmpfs, which no process has open or mapped",
        FreedBy(action="delete /run/a", size_bytes=SIZE),
        (OwnerKind.FILE, 0, []),
        Tier.NOTABLE,
        id="a tmpfs file that nobody has open",
    ),
    pytest.param(
        cached(FileKind.TMPFS, SIZE, path="/run/a", users=[user(7, "python3", [3])]),
        "500 MiB are in the file /run/a in tmpfs, used by python3[7] (fd 3)",
        FreedBy(action="delete /run/a, and close fd 3 of python3[7], or end it", size_bytes=SIZE),
        (OwnerKind.FILE, 0, []),
        Tier.NOTABLE,
        id="a tmpfs file that is open",
    ),
    pytest.param(
        cached(FileKind.TMPFS, SIZE, path="/run/a", users=[user(7, "python3", [3])], is_deleted=True),
        "500 MiB are in the deleted file /run/a, used by python3[7] (fd 3)",
        FreedBy(action="close fd 3 of python3[7], or end it", size_bytes=SIZE),
        (OwnerKind.PROCESS, 7, [3]),
        Tier.NOTABLE,
        id="deleted tmpfs file",
    ),
    pytest.param(
        cached(FileKind.SHARED_ANONYMOUS, SIZE, users=[user(7, "postgres", mapped=SIZE)], users_total=400),
        "500 MiB are in shared anonymous memory, used by postgres[7] and 399 other processes",
        FreedBy(
            action="end postgres[7] and 399 other processes that use it, or close it in all of them", size_bytes=SIZE
        ),
        (OwnerKind.PROCESS, 7, []),
        Tier.PLAIN,
        id="memory that a parent shares with its children",
    ),
    pytest.param(
        cached(FileKind.KERNEL, SIZE, path="i915"),
        "500 MiB are in i915, a file of the kernel, which no process has open or mapped",
        None,
        (OwnerKind.FILE, 0, []),
        Tier.NOTABLE,
        id="a file of the kernel",
    ),
]


@pytest.mark.parametrize(("file", "sentence", "freed_by", "owner", "tier"), FILES)
def test_files(
    file: Any, sentence: str, freed_by: FreedBy | None, owner: tuple[OwnerKind, int, list[int]], tier: Tier
) -> None:
    (draft,) = found(census_of(files=[file]))
    assert draft.sentence == sentence
    assert draft.freed_by == freed_by
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.pid, draft.owner.fds) == owner
    assert (draft.leak, draft.tier) == (LeakAnswer.NO, tier)


def test_a_file_says_who_is_charged_and_what_is_swapped() -> None:
    file = cached(FileKind.TMPFS, SIZE, path="/run/a", charged=charge(C1), swapped=GIB)
    (draft,) = found(census_of(files=[file]))
    assert draft.reasons == [
        "100% of its sampled pages are charged to container cccccccccccc of pod p1",
        "another 1.00 GiB of it are in swap space",
    ]
    assert draft.owner is not None
    assert draft.owner.container_id == C1.container_id


@pytest.mark.parametrize(
    ("attached", "users", "sentence", "leak", "action"),
    [
        (
            0,
            [],
            "500 MiB are in System V segment 32769, which no process is attached to",
            LeakAnswer.UNKNOWN,
            "ipcrm -m 32769, in its IPC namespace",
        ),
        (
            2,
            [user(7, "oracle", mapped=SIZE), user(8, "oracle", mapped=SIZE)],
            "500 MiB are in System V segment 32769, used by oracle[7] and 1 other process",
            LeakAnswer.NO,
            "ipcrm -m 32769, in its IPC namespace, and end its users",
        ),
        (
            1,
            [],
            "500 MiB are in System V segment 32769, to which processes are attached (1 times)",
            LeakAnswer.NO,
            "ipcrm -m 32769, in its IPC namespace, and end its users",
        ),
    ],
)
def test_segments(attached: int, users: list[Any], sentence: str, leak: LeakAnswer, action: str) -> None:
    files = census_of(
        files=[cached(FileKind.SYSV_SEGMENT, SIZE, inode=32769, users=users)],
        segments=[segment(32769, SIZE, attached=attached, creator="oracle")],
    )
    (draft,) = found(files)
    assert draft.sentence == sentence
    assert draft.leak is leak
    assert draft.freed_by == FreedBy(action=action, size_bytes=SIZE)
    assert draft.owner is not None
    assert draft.owner.kind is OwnerKind.SHARED_MEMORY_SEGMENT
    assert draft.reasons == ["created by oracle[900]"]


def test_small_files_are_grouped_by_process_and_by_mount() -> None:
    files = census_of(
        files=[
            cached(FileKind.MEMFD, 40 * MIB, path="memfd:a", users=[user(7, "web", [3])]),
            cached(FileKind.MEMFD, 40 * MIB, path="memfd:b", users=[user(7, "web", [4]), user(8, "web", [4])]),
            cached(FileKind.MEMFD, 40 * MIB, path="memfd:c", users=[user(9, "other", [4])]),
            cached(FileKind.TMPFS, 100 * MIB, path="/run/x/large"),
            cached(FileKind.TMPFS, 30 * MIB, path="/run/x/small"),
        ],
        file_systems=[
            file_system("tmpfs", 300 * MIB, mount_point="/run/x", deleted=10 * MIB),
            file_system("tmpfs", 20 * MIB, mount_point="/run"),
            file_system("tmpfs", 320 * MIB, is_internal=True),
        ],
    )
    drafts = {draft.sentence: draft for draft in found(files)}
    assert set(drafts) == {
        "100 MiB are in the file /run/x/large in tmpfs, which no process has open or mapped",
        "web[7] keeps 80.0 MiB in 2 files in memory: memfds",
        "200 MiB are in other files of a tmpfs mounted at /run/x",
        "240 MiB are in memfds, System V segments and shared anonymous memory, each of them too small for a finding of "
        "its own",
    }
    group = drafts["web[7] keeps 80.0 MiB in 2 files in memory: memfds"]
    assert group.freed_by == FreedBy(action="end web[7]", size_bytes=40 * MIB)
    assert group.owner is not None
    assert group.owner.fds == [3, 4]
    mount = drafts["200 MiB are in other files of a tmpfs mounted at /run/x"]
    assert mount.freed_by == FreedBy(action="delete files in /run/x", size_bytes=190 * MIB)


def test_a_file_of_an_unknown_mount_is_counted_once() -> None:
    """Its path may be that of a container's own root, so it can be in any of the mounts."""
    files = census_of(
        files=[cached(FileKind.TMPFS, 200 * MIB, path="/dev/shm/x")],
        file_systems=[file_system("tmpfs", 230 * MIB, mount_point="/run/a"), file_system("tmpfs", 90 * MIB)],
    )
    assert [draft.size_bytes for draft in found(files)] == [200 * MIB]


def test_without_the_census_of_files_the_containers_are_said() -> None:
    (draft,) = found(None, charged={C1: 300 * MIB})
    assert draft.sentence == "container cccccccccccc of pod p1 is charged for 300 MiB of shared memory"
    assert draft.freed_by == FreedBy(action="end or restart container cccccccccccc", size_bytes=None)


KINDS = st.sampled_from([FileKind.TMPFS, FileKind.MEMFD, FileKind.SHARED_ANONYMOUS, FileKind.KERNEL])


@given(
    kinds=st.lists(st.tuples(KINDS, st.integers(0, GIB), st.booleans(), st.integers(0, 3)), max_size=10),
    segments=st.lists(st.integers(0, GIB), max_size=4),
    size=st.integers(0, 4 * GIB),
)
def test_findings_never_account_for_more_than_the_class(kinds: Any, segments: Any, size: int) -> None:
    files = census_of(
        files=[
            cached(kind, cached_bytes, is_deleted=deleted, users=[user(pid)] if pid else [])
            for kind, cached_bytes, deleted, pid in kinds
        ],
        segments=[segment(number, cached_bytes) for number, cached_bytes in enumerate(segments)],
        file_systems=[file_system("tmpfs", size), file_system("tmpfs", size, is_internal=True)],
    )
    found(files, size=size)
