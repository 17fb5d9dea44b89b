"""Rule: huge pages that were set aside, and that nothing uses (docs/machine.md)."""

from collections.abc import Iterator, Sequence

from memdiag_api.findings import FindingKind, FreedBy, LeakAnswer
from memdiag_api.machine import HugePagePool
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassShare, MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.situation import Situation

_MAX_USERS = 3


def unused_huge_pages(situation: Situation, users: Sequence[ClassShare] = ()) -> Iterator[Draft]:
    """Yield a finding for each page size of which the notable size is free and promised to nothing.

    `users`: who uses huge pages, for a reason. The kernel does not show which page size a process has.
    """
    machine = situation.measured.machine
    pools = machine.huge_pages if machine else []
    for pool in pools:
        unused_bytes = unused_pages(pool) * pool.page_size_bytes
        if pool.numa_node is None and unused_bytes >= situation.notable_bytes:
            yield _draft(situation, pool, [one for one in pools if _is_part(one, pool)], users)


def unused_pages(pool: HugePagePool) -> int:
    """Return the pages that a smaller pool would give back: free, not reserved, and not surplus ones.

    The kernel takes surplus pages first when it makes a pool smaller, so they stay until they are used and freed.
    """
    return max(0, pool.free_pages - pool.reserved_pages - pool.surplus_pages)


def _is_part(one: HugePagePool, whole: HugePagePool) -> bool:
    return one.numa_node is not None and one.page_size_bytes == whole.page_size_bytes


def _draft(
    situation: Situation, pool: HugePagePool, nodes: Sequence[HugePagePool], users: Sequence[ClassShare]
) -> Draft:
    unused_bytes = unused_pages(pool) * pool.page_size_bytes
    keep = max(0, pool.pages - pool.surplus_pages - unused_pages(pool))
    size = format_bytes(pool.page_size_bytes)
    kilobytes = pool.page_size_bytes // 1024
    reasons = [
        f"the pool has {pool.pages} pages of {size}: {pool.free_pages} are free, {pool.reserved_pages} of them reserved"
        f"{f', and {pool.surplus_pages} are surplus' if pool.surplus_pages else ''}",
        f"the threshold for unused huge pages is {format_bytes(situation.notable_bytes)}",
    ]
    if nodes:
        parts = ", ".join(f"{one.free_pages} on node {one.numa_node}" for one in nodes if one.free_pages)
        reasons.append(f"free pages by NUMA node: {parts}")
    if users:
        parts = ", ".join(f"{one.owner.name} {format_bytes(one.size_bytes)}" for one in users[:_MAX_USERS])
        reasons.append(f"huge pages are used by {parts}")
    return Draft(
        kind=FindingKind.UNUSED_HUGE_PAGES,
        memory_class=ClassName.HUGETLB,
        size_bytes=unused_bytes,
        owner=MemoryOwner(kind=OwnerKind.KERNEL, name=f"pool of huge pages of {size}"),
        leak=LeakAnswer.NO,
        freed_by=FreedBy(
            action=f"Write {keep} to /sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/nr_hugepages.",
            size_bytes=unused_bytes,
        ),
        sentence=f"{unused_pages(pool)} huge pages of {size} are set aside and unused: {format_bytes(unused_bytes)} "
        "that no other memory can use.",
        reasons=reasons,
        advice="Make the pool smaller, and change what sets it (sysctl vm.nr_hugepages, the kernel's command line), "
        "unless a workload that needs these pages is about to start.",
        sections=["machine.hugePages"],
        is_notable=True,
    )
