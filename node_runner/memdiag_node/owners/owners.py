"""Owners of all classes that processes and containers have (pure)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memdiag_api.census.files import FileCensus
from memdiag_api.evidence import Breakdown
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners
from memdiag_node.census.frames.frames import FrameCensus, UserFrames
from memdiag_node.owners.charges import by_container
from memdiag_node.owners.file_classes import file_cache_owners, shmem_owners
from memdiag_node.owners.process_classes import (
    anonymous_owners,
    huge_page_owners,
    kernel_stack_owners,
    page_table_owners,
)
from memdiag_node.owners.processes import ProcessScan
from memdiag_node.procfs.cgroup import ContainerIdentity


@dataclass(frozen=True, slots=True)
class OwnerSources:
    """What owners are determined from. A part is None or empty if it was not read."""

    scan: ProcessScan
    frames: FrameCensus | None
    containers: Mapping[int, ContainerIdentity]
    """The container of each memory cgroup, by its inode."""
    files: FileCensus | None
    page_bytes: int
    used_huge_page_bytes: int | None = None
    """Huge pages of all sizes that are not free (procfs.hugepages.used_bytes)."""


def owners_of_classes(breakdown: Breakdown, sources: OwnerSources) -> list[ClassOwners]:
    """Return the owners of each class of the breakdown that has some here, largest class first."""
    frames = by_container(sources.frames, sources.containers)
    processes: dict[ContainerIdentity, int] = {}
    for one in sources.scan.processes:
        processes[one.identity] = processes.get(one.identity, 0) + 1

    def charged(frames_of: Callable[[UserFrames], int]) -> dict[ContainerIdentity, int]:
        return {identity: frames_of(one) * sources.page_bytes for identity, one in frames.items()}

    determined: dict[ClassName, Callable[[int], ClassOwners]] = {
        ClassName.ANON_PAGES: lambda size_bytes: anonymous_owners(
            size_bytes, sources.scan, charged(lambda one: one.anonymous)
        ),
        ClassName.FILE_CACHE: lambda size_bytes: file_cache_owners(
            size_bytes, processes, charged(lambda one: one.file), sources.files
        ),
        ClassName.SHMEM: lambda size_bytes: shmem_owners(
            size_bytes, processes, charged(lambda one: one.shmem), sources.files
        ),
        ClassName.HUGETLB: lambda size_bytes: huge_page_owners(
            size_bytes,
            sources.scan.processes,
            charged(lambda one: one.hugetlb),
            used_bytes=sources.used_huge_page_bytes,
        ),
        ClassName.PAGE_TABLES: lambda size_bytes: page_table_owners(size_bytes, sources.scan.processes),
        ClassName.KERNEL_STACK: lambda size_bytes: kernel_stack_owners(size_bytes, sources.scan),
    }
    found = [
        determine(one.size_bytes)
        for one in breakdown.classes
        for name, determine in determined.items()
        if one.name == name
    ]
    return sorted(found, key=lambda one: -one.size_bytes)
