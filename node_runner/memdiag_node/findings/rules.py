"""Every rule, applied to one run: the findings before they are ranked."""

from collections.abc import Iterable, Iterator, Sequence

from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_node.findings.allocation_sites import allocation_sites
from memdiag_node.findings.balloon import balloon, reserved_memory
from memdiag_node.findings.classes import CAN_LEAK, growing_classes, known_bytes, plain_classes, unexplained_classes
from memdiag_node.findings.compressed_memory import compressed_memory, gpu_memory
from memdiag_node.findings.container_near_limit import containers_near_limit
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.file_cache import file_cache
from memdiag_node.findings.fragmentation import fragmentation
from memdiag_node.findings.growing_allocation import growing_allocations
from memdiag_node.findings.growing_objects import growing_objects
from memdiag_node.findings.growth_since_run import growth_since_runs
from memdiag_node.findings.huge_page_waste import huge_page_waste
from memdiag_node.findings.huge_pages import unused_huge_pages
from memdiag_node.findings.large_holder import large_holders
from memdiag_node.findings.oom_kills import oom_kills
from memdiag_node.findings.packets_outside import packets_outside
from memdiag_node.findings.page_tables import page_tables
from memdiag_node.findings.process_memory import process_memory
from memdiag_node.findings.ramfs import ramfs_files
from memdiag_node.findings.removed_cgroups import removed_cgroups
from memdiag_node.findings.shared_memory import shared_memory
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.slab import slab_findings, slab_rest, without_repeated
from memdiag_node.findings.slow_reader import slow_readers
from memdiag_node.findings.unread_socket import unread_sockets
from memdiag_node.findings.unsent_data import unsent_data
from memdiag_node.findings.vmalloc import vmalloc_callers
from memdiag_node.findings.zombie_namespace import zombie_namespaces
from memdiag_node.holding import packet_slab_bytes


def find(situation: Situation) -> list[Draft]:
    """Return the findings of every rule. A holder is in one finding only, and so is what it keeps."""
    drafts = list(_about_holders(situation))
    suspects = {index for one in drafts if one.leak is LeakAnswer.YES for index in one.holders}
    drafts += growing_allocations(situation, suspects)
    drafts += _about_owners(situation)
    drafts += _about_cgroups(situation)
    drafts += _about_machine(situation)
    packets_bytes = _packet_slab_bytes(situation)
    objects = list(growing_objects(situation, packet_bytes=packets_bytes))
    slab = list(slab_findings(situation, packet_bytes=packets_bytes, growing=objects))
    drafts += without_repeated(situation, objects, slab)
    slab += slab_rest(situation, _claimed(slab).get(ClassName.SUNRECLAIM, 0), packet_bytes=packets_bytes)
    drafts += slab
    drafts += growing_classes(situation, _judged_growth(situation, drafts))
    drafts += growth_since_runs(situation)
    drafts += unexplained_classes(situation, _claimed(drafts), traced_bytes=_traced_bytes(drafts))
    drafts += plain_classes(situation, _claimed(drafts))
    return drafts


def explained_bytes(situation: Situation, drafts: Sequence[Draft]) -> int:
    """Return the memory of the node that is free, or whose owner is known: by a finding or by the class."""
    others = [one for one in drafts if one.kind is not FindingKind.UNEXPLAINED]
    claimed, traced_bytes = _claimed(one for one in others if one.owner), _traced_bytes(others)
    owned = {one.memory_class for one in situation.measured.owners} | {*CAN_LEAK, ClassName.SUNRECLAIM}
    return sum(
        known_bytes(situation, name, claimed, traced_bytes=traced_bytes) if name in owned else size_bytes
        for name, size_bytes in situation.class_bytes.items()
    )


def _about_holders(situation: Situation) -> Iterator[Draft]:
    """Yield the findings about holders, each holder in one of them."""
    measured = situation.measured
    left = set(range(len(measured.holdings)))
    for draft in unread_sockets(situation):
        yield draft
        left -= set(draft.holders)
    for rule in (slow_readers, unsent_data, zombie_namespaces, packets_outside):
        for draft in list(rule(situation, left)):
            yield draft
            left -= set(draft.holders)
    yield from large_holders(situation, left)


def _about_owners(situation: Situation) -> Iterator[Draft]:
    """Yield the findings about memory that processes, containers and files have."""
    measured, thresholds = situation.measured, situation.thresholds
    total_bytes = measured.host.mem_total_bytes
    files, slab = (measured.census.files, measured.census.slab) if measured.census else (None, None)
    owners, processes = measured.owners, measured.processes
    yield from process_memory(owners, processes, thresholds=thresholds, mem_total_bytes=total_bytes)
    yield from page_tables(owners, processes, thresholds=thresholds, mem_total_bytes=total_bytes, slab=slab)
    yield from file_cache(owners, files, thresholds=thresholds, mem_total_bytes=total_bytes)
    yield from ramfs_files(files, thresholds=thresholds, mem_total_bytes=total_bytes)
    yield from shared_memory(owners, files, thresholds=thresholds, mem_total_bytes=total_bytes)


def _about_cgroups(situation: Situation) -> Iterator[Draft]:
    """Yield the findings about memory cgroups: their limits, their kills, and those that were removed."""
    yield from removed_cgroups(situation)
    yield from containers_near_limit(situation)
    yield from oom_kills(situation)


def _about_machine(situation: Situation) -> Iterator[Draft]:
    """Yield the findings about memory that belongs to the machine rather than to a process."""
    users = [
        share for one in situation.measured.owners if one.memory_class == ClassName.HUGETLB for share in one.owners
    ]
    yield from unused_huge_pages(situation, users)
    for rule in (
        balloon,
        reserved_memory,
        compressed_memory,
        gpu_memory,
        vmalloc_callers,
        fragmentation,
        huge_page_waste,
        allocation_sites,
    ):
        yield from rule(situation)


def _packet_slab_bytes(situation: Situation) -> int:
    return sum(packet_slab_bytes(one.holder) for one in situation.measured.holdings if one.is_alloc_page)


def _judged_growth(situation: Situation, drafts: Iterable[Draft]) -> dict[str, int]:
    """Return the growth in the window that findings about slab caches and call stacks are about, by class.

    The growth of a slab cache counts once: for its own finding, or for those about the stacks that allocate in it.
    """
    seconds, stacks = situation.measured.window_seconds, situation.measured.stacks
    judged: dict[str, int] = {}
    caches = set()
    for one in drafts:
        if one.kind is FindingKind.GROWING_CLASS and one.trend and one.trend.bytes_per_second > 0:
            caches.add(one.owner.name if one.owner else "")
            judged[one.memory_class] = judged.get(one.memory_class, 0) + round(one.trend.bytes_per_second * seconds)
    for one in drafts:
        of_cache = {stacks[index].slab_cache for index in one.stacks} & caches
        if one.kind is FindingKind.GROWING_ALLOCATION and not of_cache:
            judged[one.memory_class] = judged.get(one.memory_class, 0) + one.size_bytes
    return judged


def _traced_bytes(drafts: Iterable[Draft]) -> int:
    """Return the AllocPage that findings about call stacks account for: it is in no holder."""
    return _claimed(one for one in drafts if one.kind is FindingKind.GROWING_ALLOCATION).get(ClassName.ALLOC_PAGE, 0)


def _claimed(drafts: Iterable[Draft]) -> dict[str, int]:
    """Sum up by class what the findings account for."""
    claimed: dict[str, int] = {}
    for draft in drafts:
        for name, size_bytes in draft.claimed_bytes.items():
            claimed[name] = claimed.get(name, 0) + size_bytes
    return claimed
