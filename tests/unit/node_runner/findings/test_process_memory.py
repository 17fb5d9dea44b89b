"""Findings about memory of processes: anonymous memory, huge pages, page tables, kernel stacks."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.census.slab import SlabCache, SlabCaches
from memdiag_api.findings import FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners
from memdiag_node.findings.draft import Draft, Tier
from memdiag_node.findings.page_tables import page_tables
from memdiag_node.findings.process_memory import process_memory
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from memdiag_node.owners.process_classes import (
    anonymous_owners,
    huge_page_owners,
    kernel_stack_owners,
    page_table_owners,
)
from memdiag_node.owners.process_memory import ProcessMemory
from memdiag_node.owners.processes import ProcessScan
from memdiag_node.procfs.cgroup import ContainerIdentity
from support.processes import NO_CONTAINER, process

POD = "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b94"
CONTAINER = ContainerIdentity("4f1c" * 16, POD)
SHOWN = f"container 4f1c4f1c4f1c of pod {POD}"


def used(owners: ClassOwners, processes: Sequence[ProcessMemory]) -> list[Draft]:
    return list(process_memory([owners], processes, thresholds=Thresholds(), mem_total_bytes=16 * GIB))


def tables(owners: ClassOwners, processes: Sequence[ProcessMemory], slab: SlabCaches | None = None) -> list[Draft]:
    return list(page_tables([owners], processes, thresholds=Thresholds(), mem_total_bytes=16 * GIB, slab=slab))


def slab_of(*, name: str = "task_struct", threads: int = 1, places: int = 5) -> SlabCaches:
    """A cache with room for five objects in each slab of 32 KiB."""
    slabs = places // 5
    cache = SlabCache(
        name=name,
        size_bytes=slabs * 32 * 1024,
        slabs=slabs,
        objects=threads,
        places=places,
        object_bytes=5888,
        reclaimable=False,
    )
    return SlabCaches(caches=[cache], reclaimable_bytes=0, unreclaimable_bytes=cache.size_bytes, difference_bytes=0)


@pytest.mark.parametrize(
    ("processes", "charged", "sentence", "freed_by", "reasons"),
    [
        pytest.param(
            [process(5, "java", anon=8 * GIB)],
            {},
            "java[5] uses 8.00 GiB of anonymous memory",
            FreedBy(action="end or restart java[5]", size_bytes=8 * GIB),
            [],
            id="process",
        ),
        pytest.param(
            [process(5, "java", identity=CONTAINER, anon=8 * GIB, swap=GIB)],
            {CONTAINER: 8 * GIB},
            f"{SHOWN} uses 8.00 GiB of anonymous memory",
            FreedBy(action="end or restart container 4f1c4f1c4f1c", size_bytes=8 * GIB),
            ["another 1.00 GiB of it are in swap space"],
            id="container with swap",
        ),
        pytest.param(
            [process(pid, "db", identity=CONTAINER, anon=pid * GIB, family=1) for pid in (1, 2)],
            {CONTAINER: 2 * GIB},
            f"{SHOWN} uses 2.00 GiB of anonymous memory",
            FreedBy(action="end or restart container 4f1c4f1c4f1c", size_bytes=2 * GIB),
            [
                "it has 2 processes, the largest are db[2] (2.00 GiB) and db[1] (1.00 GiB)",
                "its processes count 3.00 GiB, each for itself; what they share is counted once here",
            ],
            id="container whose processes share",
        ),
        pytest.param(
            [
                process(7, "postmaster"),
                *(process(pid, "postgres", parent_pid=7, anon=4 * MIB) for pid in range(100, 500)),
            ],
            {},
            "400 processes named postgres, children of postmaster[7] use 1.56 GiB of anonymous memory",
            FreedBy(
                action="end or restart all of the 400 processes named postgres, children of postmaster[7]",
                size_bytes=400 * 4 * MIB,
            ),
            [
                "it has 400 processes, the largest are postgres[100] (4.00 MiB), postgres[101] (4.00 MiB), "
                "postgres[102] (4.00 MiB) and postgres[103] (4.00 MiB)"
            ],
            id="many of one name",
        ),
        pytest.param([process(5, "a", anon=50 * MIB)], {}, None, None, [], id="small"),
        pytest.param([process(5, "memdiag-node", anon=GIB, is_self=True)], {}, None, None, [], id="this run"),
        pytest.param(
            [process(5, "x", identity=CONTAINER, anon=GIB, is_self=True)],
            {CONTAINER: GIB},
            None,
            None,
            [],
            id="this run's container",
        ),
    ],
)
def test_anonymous_memory(
    processes: list[ProcessMemory],
    charged: dict[ContainerIdentity, int],
    sentence: str | None,
    freed_by: FreedBy | None,
    reasons: list[str],
) -> None:
    drafts = used(anonymous_owners(12 * GIB, ProcessScan(processes), charged), processes)
    if sentence is None:
        assert drafts == []
        return
    (draft,) = drafts
    assert draft.sentence == sentence
    assert draft.freed_by == freed_by
    assert draft.reasons == reasons
    assert (draft.kind, draft.leak, draft.tier, draft.reclaimable) == (
        FindingKind.PROCESS_MEMORY,
        LeakAnswer.NO,
        Tier.PLAIN,
        False,
    )
    assert draft.memory_class == ClassName.ANON_PAGES
    assert draft.finding(0)


def test_huge_pages() -> None:
    processes = [process(5, "dpdk", hugetlb=2 * GIB)]
    (draft,) = used(huge_page_owners(4 * GIB, processes, {}), processes)
    assert draft.sentence == "dpdk[5] uses 2.00 GiB of huge pages"
    assert draft.memory_class == ClassName.HUGETLB


@pytest.mark.parametrize(
    ("processes", "sentence"),
    [
        pytest.param(
            [process(pid, "postgres", identity=CONTAINER, page_tables=46 * MIB) for pid in range(100, 500)],
            f"18.0 GiB of page tables: 400 processes of {SHOWN}, 46.0 MiB each",
            id="container",
        ),
        pytest.param(
            [process(pid, "postgres", page_tables=46 * MIB) for pid in range(100, 500)],
            "18.0 GiB of page tables: 400 processes named postgres, 46.0 MiB each",
            id="processes of one name",
        ),
        pytest.param([process(5, "sparse", page_tables=GIB)], "1.00 GiB of page tables: sparse[5]", id="one process"),
        pytest.param([process(5, "sparse", page_tables=50 * MIB)], None, id="small"),
    ],
)
def test_page_tables(processes: list[ProcessMemory], sentence: str | None) -> None:
    drafts = tables(page_table_owners(20 * GIB, processes), processes)
    assert [draft.sentence for draft in drafts] == ([sentence] if sentence else [])
    for draft in drafts:
        assert (draft.kind, draft.leak, draft.tier) == (FindingKind.PROCESS_MEMORY, LeakAnswer.NO, Tier.NOTABLE)
        assert draft.memory_class == ClassName.PAGE_TABLES
        assert draft.freed_by is not None
        assert draft.freed_by.size_bytes == draft.size_bytes
        assert draft.finding(0)


def test_kernel_stacks() -> None:
    processes = [process(5, "leaky", threads=20_000), process(6, "b", threads=10)]
    scan = ProcessScan(processes, threads=20_010)
    (draft,) = tables(kernel_stack_owners(20_010 * 16 * 1024, scan), processes)
    assert draft.sentence == "312 MiB of kernel stacks: leaky[5], 20000 threads"
    assert draft.reasons == ["leaky[5] has 20000 threads"]
    assert draft.tier is Tier.NOTABLE


def test_ending_threads_frees_their_slab_as_well() -> None:
    """Five threads fit into a slab of 32 KiB; free places are not freed with the threads."""
    processes = [process(5, "leaky", threads=20_000)]
    owners = kernel_stack_owners(20_000 * 16 * 1024, ProcessScan(processes, threads=20_000))
    (draft,) = tables(owners, processes, slab_of(threads=20_000, places=25_000))
    assert draft.freed_by == FreedBy(action="end or restart leaky[5]", size_bytes=20_000 * 16 * 1024 + 4000 * 32 * 1024)
    assert dict(draft.claimed_bytes) == {ClassName.KERNEL_STACK: 20_000 * 16 * 1024}
    assert draft.reasons == [
        "leaky[5] has 20000 threads",
        "what would come back is 312 MiB of stacks and 125 MiB of slab: the kernel has a task_struct for each thread",
    ]


def test_the_slab_of_threads_is_never_more_than_the_cache() -> None:
    processes = [process(5, "leaky", threads=20_000)]
    owners = kernel_stack_owners(20_000 * 16 * 1024, ProcessScan(processes, threads=20_000))
    (draft,) = tables(owners, processes, slab_of(threads=5000, places=5000))  # many began after the census
    assert draft.freed_by is not None
    assert draft.freed_by.size_bytes == 20_000 * 16 * 1024 + 1000 * 32 * 1024


@pytest.mark.parametrize("slab", [None, slab_of(name="another"), slab_of(threads=0, places=0)])
def test_without_the_size_of_a_thread_only_stacks_come_back(slab: SlabCaches | None) -> None:
    processes = [process(5, "leaky", threads=20_000)]
    owners = kernel_stack_owners(20_000 * 16 * 1024, ProcessScan(processes, threads=20_000))
    (draft,) = tables(owners, processes, slab)
    assert draft.freed_by is not None
    assert draft.freed_by.size_bytes == draft.size_bytes
    assert draft.reasons == ["leaky[5] has 20000 threads"]


@given(
    sizes=st.lists(
        st.tuples(st.sampled_from([NO_CONTAINER, CONTAINER]), st.integers(0, 4 * GIB), st.integers(1, 3)), max_size=12
    ),
    charged=st.dictionaries(st.just(CONTAINER), st.integers(0, 4 * GIB)),
    size=st.integers(0, 8 * GIB),
)
def test_findings_never_account_for_more_than_the_class(
    sizes: list[tuple[ContainerIdentity, int, int]], charged: dict[ContainerIdentity, int], size: int
) -> None:
    processes = [
        process(pid, f"n{pid % 3}", identity=identity, anon=anon, hugetlb=anon, page_tables=anon, family=family)
        for pid, (identity, anon, family) in enumerate(sizes, start=2)
    ]
    for owners in (
        anonymous_owners(size, ProcessScan(processes), charged),
        huge_page_owners(size, processes, charged),
        page_table_owners(size, processes),
        kernel_stack_owners(size, ProcessScan(processes, threads=len(processes))),
    ):
        drafts = [*used(owners, processes), *tables(owners, processes)]
        assert sum(sum(draft.claimed_bytes.values()) for draft in drafts) <= size
        assert all(list(draft.claimed_bytes) == [owners.memory_class] for draft in drafts)
