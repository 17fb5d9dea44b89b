"""Kernel memory that processes need to exist: page tables and the stacks of threads (pure)."""

from collections.abc import Iterator, Sequence

from memdiag_api.census.slab import SlabCaches
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, ClassShare, OwnerKind
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.owner_words import ending, largest, processes_of, who
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.owners.process_memory import ProcessMemory

_MAX_LISTED = 4
_THREAD_CACHE = "task_struct"
"""The kernel has one object of it for each thread, in slab. What else it has for each thread is small beside it."""


def page_tables(
    owners: Sequence[ClassOwners],
    processes: Sequence[ProcessMemory],
    *,
    thresholds: Thresholds,
    mem_total_bytes: int,
    slab: SlabCaches | None = None,
) -> Iterator[Draft]:
    """Yield each owner of page tables or kernel stacks that has at least `notable_bytes` of them.

    So much is unusual: 400 processes that map the same large memory each have page tables for it, and a program that
    keeps creating threads has a stack for each. It is not a leak of the kernel.

    `slab`: the census of slabs, for what a thread has besides its stack; None if it was not taken.
    """
    least_bytes = thresholds.notable_bytes(mem_total_bytes)
    for one in owners:
        for share in one.owners:
            if share.size_bytes < least_bytes:
                continue
            members = processes_of(share.owner, processes, one.owners)
            if one.memory_class == ClassName.PAGE_TABLES:
                yield _page_tables(share, members)
            elif one.memory_class == ClassName.KERNEL_STACK:
                yield _stacks(share, members, slab)


def _page_tables(share: ClassShare, members: Sequence[ProcessMemory]) -> Draft:
    count = share.owner.processes
    return _draft(
        share,
        memory_class=ClassName.PAGE_TABLES,
        what="page tables",
        detail=f", {format_bytes(share.size_bytes / count)} each" if count > 1 else "",
        reasons=[f"the largest are {largest(members, lambda one: one.page_table_bytes)}"] if len(members) > 1 else [],
        advice="Processes that map the same large memory each need page tables for it. Use huge pages for it, fewer "
        "processes (a connection pool), or smaller or denser mappings.",
    )


def _stacks(share: ClassShare, members: Sequence[ProcessMemory], slab: SlabCaches | None) -> Draft:
    threads = sum(one.threads for one in members)
    most = sorted(members, key=lambda one: -one.threads)[:_MAX_LISTED]
    reasons = [f"{shown_process(one.comm, one.pid)} has {one.threads} threads" for one in most]
    task_bytes = _task_bytes(threads, slab)
    if task_bytes:
        reasons.append(
            f"what would come back is {format_bytes(share.size_bytes)} of stacks and {format_bytes(task_bytes)} of "
            f"slab: the kernel has a {_THREAD_CACHE} for each thread"
        )
    return _draft(
        share,
        memory_class=ClassName.KERNEL_STACK,
        what="kernel stacks",
        detail=f", {threads} threads" if threads else "",
        reasons=reasons,
        advice="Check whether the number of its threads grows: a program that does not end its threads keeps a kernel "
        "stack for each.",
        slab_bytes=task_bytes,
    )


def _task_bytes(threads: int, slab: SlabCaches | None) -> int:
    """Return the slab memory of so many threads: of whole slabs, with the part at their ends that no object fits in.

    Free places do not count: they can be in slabs that stay. 0 if the census does not list the cache.
    """
    for cache in slab.caches if slab else ():
        if cache.name == _THREAD_CACHE and cache.places:
            return min(threads, cache.places) * cache.size_bytes // cache.places
    return 0


def _draft(
    share: ClassShare,
    *,
    memory_class: ClassName,
    what: str,
    detail: str,
    reasons: Sequence[str],
    advice: str,
    slab_bytes: int = 0,
) -> Draft:
    """`slab_bytes`: what ending the owner brings back besides memory of the class."""
    return Draft(
        kind=FindingKind.PROCESS_MEMORY,
        memory_class=memory_class,
        size_bytes=share.size_bytes,
        owner=share.owner,
        leak=LeakAnswer.NO,
        is_notable=True,
        freed_by=ending(share.owner, share.size_bytes + slab_bytes),
        sentence=f"{format_bytes(share.size_bytes)} of {what}: {_members(share)}{detail}",
        reasons=reasons,
        advice=advice,
        sections=("owners",),
    )


def _members(share: ClassShare) -> str:
    """Return `400 processes of container C`, or who it is if it is one process or a named group."""
    owner = share.owner
    if owner.kind in {OwnerKind.CONTAINER, OwnerKind.POD} and owner.processes:
        return f"{owner.processes} {'process' if owner.processes == 1 else 'processes'} of {who(owner)}"
    return who(owner)
