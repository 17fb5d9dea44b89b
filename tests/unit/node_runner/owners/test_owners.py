"""Owners of all classes of a breakdown, from what was read."""

import pytest

from memdiag_api.evidence import Breakdown, MemoryClass
from memdiag_node.owners.owners import OwnerSources, owners_of_classes
from memdiag_node.owners.processes import ProcessScan
from memdiag_node.procfs.hugepages import HugePages, used_bytes
from support.processes import process

MIB = 1 << 20


def pool(page_mib: int, pages: int, free: int, *, numa_node: int | None = None) -> HugePages:
    return HugePages(page_mib * MIB, numa_node, pages=pages, free=free, reserved=0, surplus=0)


@pytest.mark.parametrize(
    ("pools", "used_mib"),
    [
        ([], None),
        ([pool(2, 500, 500)], 0),
        ([pool(2, 500, 300), pool(1024, 3, 1)], 400 + 2048),
        ([pool(2, 500, 300), pool(2, 250, 50, numa_node=0), pool(2, 250, 250, numa_node=1)], 400),
        ([pool(2, 10, 12)], 0),  # read while the pool was made smaller
    ],
)
def test_huge_pages_in_use_are_those_of_the_machine_that_are_not_free(
    pools: list[HugePages], used_mib: int | None
) -> None:
    assert used_bytes(pools) == (None if used_mib is None else used_mib * MIB)


@pytest.mark.parametrize(("used_mib", "explained_mib"), [(None, 800), (400, 400), (600, 600), (0, 400)])
def test_huge_pages_explain_no_more_than_is_in_use(used_mib: int | None, explained_mib: int) -> None:
    size_bytes = 1000 * MIB
    breakdown = Breakdown(
        mem_total_bytes=size_bytes,
        classes=[MemoryClass(name="Hugetlb", group="Application", size_bytes=size_bytes)],
        alloc_page_bytes=0,
        alloc_page_error_bytes=0,
    )
    sources = OwnerSources(
        scan=ProcessScan([process(5, "db", hugetlb=400 * MIB), process(6, "db", hugetlb=400 * MIB)]),
        frames=None,
        containers={},
        files=None,
        page_bytes=4096,
        used_huge_page_bytes=None if used_mib is None else used_mib * MIB,
    )
    (found,) = owners_of_classes(breakdown, sources)
    assert (found.size_bytes, found.explained_bytes) == (size_bytes, explained_mib * MIB)
