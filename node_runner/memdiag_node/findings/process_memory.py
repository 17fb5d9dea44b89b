"""Memory of processes and containers: who uses how much anonymous memory, and how many huge pages (pure)."""

from collections.abc import Callable, Iterator, Sequence

from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, ClassShare
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.owner_words import ending, is_this_run, largest, processes_of, uses, who
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.owners.process_memory import ProcessMemory

_CLASSES: dict[str, tuple[str, Callable[[ProcessMemory], int]]] = {
    ClassName.ANON_PAGES: ("anonymous memory", lambda one: one.rss_anon_bytes),
    ClassName.HUGETLB: ("huge pages", lambda one: one.hugetlb_bytes),
}


def process_memory(
    owners: Sequence[ClassOwners],
    processes: Sequence[ProcessMemory],
    *,
    thresholds: Thresholds,
    mem_total_bytes: int,
) -> Iterator[Draft]:
    """Yield each owner of anonymous memory or huge pages that has at least `notable_bytes` of it.

    That is an ordinary use of memory. Whether it grows, and whether its owner needs it, is not known here. Sizes count
    nothing twice (owners.shares), so ending the owner brings back at least as much.
    """
    least_bytes = thresholds.notable_bytes(mem_total_bytes)
    for one in owners:
        if one.memory_class in _CLASSES:
            for share in one.owners:
                if share.size_bytes >= least_bytes and not is_this_run(share.owner, processes):
                    yield _draft(one.memory_class, share, processes_of(share.owner, processes, one.owners))


def _draft(memory_class: str, share: ClassShare, members: Sequence[ProcessMemory]) -> Draft:
    owner = share.owner
    what, size_of = _CLASSES[memory_class]
    return Draft(
        kind=FindingKind.PROCESS_MEMORY,
        memory_class=memory_class,
        size_bytes=share.size_bytes,
        owner=owner,
        leak=LeakAnswer.NO,
        freed_by=ending(owner, share.size_bytes),
        sentence=f"{who(owner)} {uses(owner)} {format_bytes(share.size_bytes)} of {what}",
        reasons=list(_reasons(members, size_of, share.size_bytes)),
        advice="If this is more than it should need, check its own memory statistics, or set a memory limit.",
        sections=("owners",),
    )


def _reasons(
    members: Sequence[ProcessMemory], size_of: Callable[[ProcessMemory], int], size_bytes: int
) -> Iterator[str]:
    sum_bytes = sum(map(size_of, members))
    if len(members) > 1:
        yield f"it has {len(members)} processes, the largest are {largest(members, size_of)}"
    if sum_bytes > size_bytes and len(members) > 1:
        yield (f"its processes count {format_bytes(sum_bytes)}, each for itself; what they share is counted once here")
    swap_bytes = sum(one.swap_bytes for one in members)
    if swap_bytes:
        yield f"another {format_bytes(swap_bytes)} of it are in swap space"
