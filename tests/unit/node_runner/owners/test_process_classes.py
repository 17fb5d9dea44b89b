"""Owners of the classes that processes have."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api import limits
from memdiag_api.owners import ClassOwners, OwnerKind
from memdiag_node.owners.process_classes import (
    anonymous_owners,
    huge_page_owners,
    kernel_stack_owners,
    page_table_owners,
    stack_size_bytes,
)
from memdiag_node.owners.process_memory import ProcessMemory
from memdiag_node.owners.processes import ProcessScan
from memdiag_node.procfs.cgroup import ContainerIdentity
from support.processes import NO_CONTAINER, process

MIB = 1 << 20
C1, C2 = ContainerIdentity("c1", "p1"), ContainerIdentity("c2", "p1")
POD = ContainerIdentity("", "p1")

Row = tuple[OwnerKind, str, int, int]
"""Kind, name or container, processes, MiB."""


def rows(found: ClassOwners) -> list[Row]:
    assert found.explained_bytes == sum(one.size_bytes for one in found.owners)
    assert found.explained_bytes <= found.size_bytes
    return [
        (one.owner.kind, one.owner.name or one.owner.container_id, one.owner.processes, one.size_bytes // MIB)
        for one in found.owners
    ]


@pytest.mark.parametrize(
    ("size_mib", "processes", "charged_mib", "expected"),
    [
        pytest.param(
            1000,
            [
                process(5, "db", identity=C1, anon=400 * MIB, family=1),
                process(6, "db", identity=C1, anon=400 * MIB, family=1),
                process(7, "sshd", anon=100 * MIB),
            ],
            {C1: 500},
            [(OwnerKind.CONTAINER, "c1", 2, 500), (OwnerKind.PROCESS, "sshd[7]", 1, 100)],
            id="a container has what it is charged for, whatever its processes count",
        ),
        pytest.param(
            1000,
            [process(5, identity=C1, anon=100 * MIB)],
            {C1: 100, POD: 30},
            [(OwnerKind.CONTAINER, "c1", 1, 100), (OwnerKind.POD, "", 0, 30)],
            id="a container that was removed counts for its pod",
        ),
        pytest.param(
            600,
            [
                process(5, "a", identity=C1, anon=130 * MIB),
                process(6, "b", identity=C1, anon=10 * MIB, family=9),
                process(7, "b", identity=C1, anon=10 * MIB, family=9),
                process(8, "x", anon=400 * MIB, family=1),
                process(9, "x", anon=100 * MIB, family=1),
            ],
            {C1: 120},
            [
                (OwnerKind.PROCESS, "x[8]", 1, 360),
                (OwnerKind.CONTAINER, "c1", 3, 140),
                (OwnerKind.PROCESS, "x[9]", 1, 60),
            ],
            id="a container whose processes were charged elsewhere before they moved",
        ),
        pytest.param(
            600,
            [
                process(5, "a", identity=C1, anon=200 * MIB, family=1),
                process(6, "a", identity=C1, anon=200 * MIB, family=1),
                process(7, "b", identity=C2, anon=400 * MIB),
            ],
            {},
            [(OwnerKind.CONTAINER, "c2", 1, 400), (OwnerKind.CONTAINER, "c1", 2, 200)],
            id="without charges the processes of a container are added up",
        ),
        pytest.param(
            1000,
            [
                process(5, "db", anon=600 * MIB, family=1),
                process(6, "db", anon=600 * MIB, family=1),
                process(7, "x", identity=C1, anon=9 * MIB),
            ],
            {C1: 300},
            [(OwnerKind.PROCESS, "2 processes named db", 2, 700), (OwnerKind.CONTAINER, "c1", 1, 300)],
            id="processes outside share: their sum is above what containers leave",
        ),
        pytest.param(
            100,
            [process(5, anon=300 * MIB)],
            {C1: 60},
            [(OwnerKind.CONTAINER, "c1", 0, 60), (OwnerKind.PROCESS, "a[5]", 1, 40)],
            id="never more than the class",
        ),
        pytest.param(
            1000,
            [process(4, "postmaster")]
            + [process(pid, "postgres", parent_pid=4, anon=10 * MIB) for pid in range(10, 20)],
            {},
            [(OwnerKind.PROCESS, "10 processes named postgres, children of postmaster[4]", 10, 100)],
            id="a group with one parent",
        ),
        pytest.param(
            1000,
            [process(5, "kube-system/etcd", anon=10 * MIB)],
            {},
            [(OwnerKind.PROCESS, '"kube-system/etcd"[5]', 1, 10)],
            id="a name that could be mistaken is quoted",
        ),
    ],
)
def test_anonymous_memory(
    size_mib: int, processes: list[ProcessMemory], charged_mib: dict[ContainerIdentity, int], expected: list[Row]
) -> None:
    charged = {identity: one * MIB for identity, one in charged_mib.items()}
    assert rows(anonymous_owners(size_mib * MIB, ProcessScan(processes), charged)) == expected


def test_huge_pages_that_two_processes_map_are_not_counted_twice() -> None:
    processes = [process(5, "db", hugetlb=400 * MIB), process(6, "db", hugetlb=400 * MIB), process(7)]
    found = huge_page_owners(1000 * MIB, processes, {}, used_bytes=400 * MIB)
    assert rows(found) == [(OwnerKind.PROCESS, "2 processes named db", 2, 400)]
    assert found.size_bytes == 1000 * MIB


def test_each_process_has_its_own_page_tables() -> None:
    processes = [process(pid, "db", identity=C1, page_tables=46 * MIB, family=1) for pid in range(100, 110)]
    found = page_table_owners(500 * MIB, [*processes, process(5, "x", page_tables=20 * MIB)])
    assert rows(found) == [(OwnerKind.CONTAINER, "c1", 10, 460), (OwnerKind.PROCESS, "x[5]", 1, 20)]


def test_each_thread_has_a_stack() -> None:
    scan = ProcessScan([process(5, "a", threads=6400), process(6, "b", identity=C1, threads=640)], threads=7040 + 320)
    found = kernel_stack_owners(116 * MIB, scan)
    assert rows(found) == [
        (OwnerKind.PROCESS, "a[5]", 1, 100),
        (OwnerKind.CONTAINER, "c1", 1, 10),
        (OwnerKind.KERNEL, "320 threads of the kernel", 0, 5),
    ]


@pytest.mark.parametrize(
    ("size_kib", "threads", "stack_kib"),
    [(2452, 152, 16), (16 * 1000, 1000, 16), (16 * 1000, 1010, 16), (8 * 100, 100, 8), (16 * 128, 100, 16), (5, 0, 0)],
)
def test_the_size_of_a_stack_follows_from_their_sum(size_kib: int, threads: int, stack_kib: int) -> None:
    assert stack_size_bytes(size_kib << 10, threads) == stack_kib << 10


def test_owners_beyond_the_limit_are_counted() -> None:
    processes = [process(pid, f"name{pid}", anon=pid * MIB) for pid in range(1, 40)]
    found = anonymous_owners(10_000 * MIB, ProcessScan(processes), {})
    assert len(found.owners) == limits.MAX_CLASS_OWNERS
    assert found.owners_total == 39
    assert found.explained_bytes == sum(range(1, 40)) * MIB


IDENTITIES = st.sampled_from([NO_CONTAINER, C1, C2])


@given(
    sizes=st.lists(st.tuples(IDENTITIES, st.integers(0, 1000), st.integers(1, 3)), max_size=20),
    charged=st.dictionaries(st.sampled_from([C1, C2, POD]), st.integers(0, 2000)),
    size=st.integers(0, 5000),
)
def test_what_is_explained_is_never_more_than_the_class(sizes: Any, charged: Any, size: int) -> None:
    processes = [
        process(pid, f"n{pid % 3}", identity=identity, anon=anon, hugetlb=anon, page_tables=anon, family=family)
        for pid, (identity, anon, family) in enumerate(sizes, start=2)
    ]
    for found in (
        anonymous_owners(size, ProcessScan(processes), charged),
        huge_page_owners(size, processes, charged),
        page_table_owners(size, processes),
        kernel_stack_owners(size, ProcessScan(processes, threads=len(processes) + 5)),
    ):
        assert found.explained_bytes <= size
        assert sum(one.size_bytes for one in found.owners) <= found.explained_bytes
        assert [one.size_bytes for one in found.owners] == sorted(
            (one.size_bytes for one in found.owners), reverse=True
        )
