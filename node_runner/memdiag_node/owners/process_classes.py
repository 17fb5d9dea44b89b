"""Owners of the classes that processes have: anonymous memory, huge pages, page tables and kernel stacks (pure)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, MemoryOwner, OwnerKind
from memdiag_node.owners.parts import Part, class_owners, common_parent, container_owner, process_owner
from memdiag_node.owners.process_memory import ProcessMemory
from memdiag_node.owners.processes import ProcessScan
from memdiag_node.owners.shares import SizeOf, shares_of, together_bytes
from memdiag_node.procfs.cgroup import ContainerIdentity

_NO_CONTAINER = ContainerIdentity("", "")
_MIN_STACK_BYTES, _MAX_STACK_BYTES = 4 << 10, 256 << 10


@dataclass(frozen=True, slots=True)
class _Pool:
    """The processes, and what is charged to containers; both only those of one class."""

    processes: Sequence[ProcessMemory]
    size_of: SizeOf
    charged_bytes: Mapping[ContainerIdentity, int]


def anonymous_owners(size_bytes: int, scan: ProcessScan, charged_bytes: Mapping[ContainerIdentity, int]) -> ClassOwners:
    """Owners of AnonPages. `charged_bytes`: anonymous frames that each container is charged for; empty if not known.

    A container has what it is charged for; more, if its processes alone have more, because some of it was charged to
    another cgroup before they moved. All other processes have the rest together, so whatever their RssAnon is more than
    that rest is shared by forks and counted once (owners.shares). Without charges, processes of containers are treated
    like all others, and added up by container.
    """
    pool = _Pool(scan.processes, lambda one: one.rss_anon_bytes, charged_bytes)
    exists_bytes = size_bytes if scan.anon_bytes is None else scan.anon_bytes
    return class_owners(ClassName.ANON_PAGES, size_bytes, _parts(pool, exists_bytes))


def huge_page_owners(
    size_bytes: int,
    processes: Sequence[ProcessMemory],
    charged_bytes: Mapping[ContainerIdentity, int],
    *,
    used_bytes: int | None = None,
) -> ClassOwners:
    """Owners of Hugetlb: pages in use. Any processes may share huge pages, so all are treated as one family.

    `used_bytes`: huge pages in use; None if that is not known. Free ones have no owner.
    """
    one_family = [replace(one, family=1) for one in processes if one.hugetlb_bytes]
    exists_bytes = size_bytes if used_bytes is None else min(used_bytes, size_bytes)
    with_charges = {identity: one for identity, one in charged_bytes.items() if one}
    pool = _Pool(one_family, lambda one: one.hugetlb_bytes, with_charges)
    return class_owners(ClassName.HUGETLB, size_bytes, _parts(pool, exists_bytes))


def page_table_owners(size_bytes: int, processes: Sequence[ProcessMemory]) -> ClassOwners:
    """Owners of PageTables: VmPTE of every process. Each has its own page tables, also those for shared memory."""
    return class_owners(ClassName.PAGE_TABLES, size_bytes, _unshared(processes, lambda one: one.page_table_bytes))


def kernel_stack_owners(size_bytes: int, scan: ProcessScan) -> ClassOwners:
    """Owners of KernelStack: each thread has a stack of the same size, which follows from the size of the class.

    Threads of the kernel have one as well, and are one owner.
    """
    stack_bytes = stack_size_bytes(size_bytes, scan.threads)
    kernel_threads = scan.threads - sum(one.threads for one in scan.processes)
    parts = list(_unshared(scan.processes, lambda one: one.threads * stack_bytes))
    if kernel_threads > 0:
        owner = MemoryOwner(kind=OwnerKind.KERNEL, name=f"{kernel_threads} threads of the kernel")
        parts.append((owner, kernel_threads * stack_bytes))
    return class_owners(ClassName.KERNEL_STACK, size_bytes, parts)


def stack_size_bytes(size_bytes: int, threads: int) -> int:
    """Return the size of a kernel stack (THREAD_SIZE), a power of two; 0 if there are no threads.

    `size_bytes` has some stacks more than `threads`: of idle CPUs, and of threads that are ending.
    """
    if not threads:
        return 0
    stack_bytes = _MIN_STACK_BYTES
    while stack_bytes < _MAX_STACK_BYTES and size_bytes / threads > 1.5 * stack_bytes:
        stack_bytes *= 2
    return stack_bytes


def _parts(pool: _Pool, size_bytes: int) -> Iterator[Part]:
    """Yield containers, then processes; see `anonymous_owners`. `size_bytes`: of all."""
    by_container = _by_container(pool.processes)
    outside = by_container.pop(_NO_CONTAINER, [])
    counted_bytes = sum(map(pool.size_of, pool.processes))  # so much excess that only the largest of a family counts
    charged = {
        identity: max(
            charged_bytes, together_bytes(by_container.get(identity, ()), pool.size_of, excess_bytes=counted_bytes)
        )
        for identity, charged_bytes in pool.charged_bytes.items()
    }
    uncharged = {identity: members for identity, members in by_container.items() if identity not in charged}
    left_bytes = max(0, size_bytes - sum(charged.values()))
    others = [*outside, *(one for members in uncharged.values() for one in members)]
    excess_bytes = max(0, sum(map(pool.size_of, others)) - left_bytes)
    together = {
        identity: together_bytes(members, pool.size_of, excess_bytes) for identity, members in uncharged.items()
    }
    for sizes in (charged, together):
        for identity, container_bytes in _largest_first(sizes):
            yield container_owner(identity, len(by_container.get(identity, ()))), container_bytes
    by_pid = {one.pid: one for one in pool.processes}
    for share in shares_of(outside, pool.size_of, excess_bytes):
        yield process_owner(share, common_parent(share.processes, by_pid)), share.size_bytes


def _unshared(processes: Sequence[ProcessMemory], size_of: SizeOf) -> Iterator[Part]:
    """Yield containers and processes outside of them, of memory that no two processes share."""
    return _parts(_Pool(processes, size_of, {}), sum(map(size_of, processes)))


def _by_container(processes: Sequence[ProcessMemory]) -> dict[ContainerIdentity, list[ProcessMemory]]:
    found: dict[ContainerIdentity, list[ProcessMemory]] = {}
    for one in processes:
        found.setdefault(one.identity, []).append(one)
    return found


def _largest_first(sizes: Mapping[ContainerIdentity, int]) -> list[tuple[ContainerIdentity, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])
