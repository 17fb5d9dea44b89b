"""Rule: what the kernel's own account of allocations shows, by source line since boot (docs/machine.md)."""

from collections.abc import Iterator

from memdiag_api import limits
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.machine import AllocationSite, AllocationSites, Machine
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.situation import Situation

_SITES = 3


def allocation_sites(situation: Situation) -> Iterator[Draft]:
    """Yield a finding about the largest source line whose file does not show the class, if it has the large size.

    It claims no memory: what the line allocated is slab, pages or vmalloc, which other findings account for.
    """
    machine = situation.measured.machine
    found = machine.allocation_sites if machine else None
    site = next(iter(_unclassed(found)), None) if found else None
    if site is None or site.size_bytes < situation.large_bytes:
        return
    yield Draft(
        kind=FindingKind.LARGE_CLASS,
        size_bytes=site.size_bytes,
        claims_bytes={},
        owner=_owner(site),
        leak=LeakAnswer.NO,
        sentence=f"{format_bytes(site.size_bytes)} were allocated at {site_name(site)} since boot and not freed, in "
        f"{site.calls} allocations.",
        reasons=[f"the threshold is {format_bytes(situation.large_bytes)}", *sites_for(machine)],
        advice="Compare it with the findings about slab, AllocPage and Vmalloc: it is part of one of them.",
        sections=["machine.allocationSites"],
        is_notable=True,
    )


def sites_for(machine: Machine | None, *memory_classes: str, growing: bool = False, count: int = _SITES) -> list[str]:
    """Return the largest sites that may be of these classes as reasons of another finding, most bytes first.

    These are sites of the classes, and sites whose class is not known. `growing`: those that grew most in the window.
    Empty if this kernel does not count allocations.
    """
    found = machine.allocation_sites if machine else None
    if found is None:
        return []
    # Pages of slabs are counted for the slab allocator itself, which says nothing.
    sites = [
        one
        for one in found.sites
        if (one.memory_class in memory_classes or not one.memory_class) and one.memory_class != ClassName.SLAB
    ]
    if growing:
        sites = sorted((one for one in sites if (one.change_bytes or 0) > 0), key=lambda one: -(one.change_bytes or 0))
    return [_reason(one) for one in sites[:count]]


def page_owner_reasons(machine: Machine | None, *, count: int = _SITES) -> list[str]:
    """Return the largest stacks of page_owner as reasons of a finding about AllocPage."""
    return [
        f"{format_bytes(one.size_bytes)} of pages were allocated since boot through {' < '.join(one.frames[:6])}"
        for one in (machine.page_owner if machine else [])[:count]
    ]


def site_name(site: AllocationSite) -> str:
    """Return `FUNCTION (FILE:LINE)`, with [module] if it is in one."""
    module = f" [{site.module}]" if site.module else ""
    return f"{site.function}{module} ({site.place})"


def _unclassed(found: AllocationSites) -> Iterator[AllocationSite]:
    return (one for one in found.sites if not one.memory_class)


def _reason(site: AllocationSite) -> str:
    grown_bytes = site.change_bytes or 0
    change = f", {format_bytes(grown_bytes)} of it in the window" if grown_bytes > 0 else ""
    return f"since boot, {site_name(site)} has allocated {format_bytes(site.size_bytes)}{change} and not freed it"


def _owner(site: AllocationSite) -> MemoryOwner:
    kind = OwnerKind.MODULE if site.module else OwnerKind.KERNEL_CALLER
    return MemoryOwner(kind=kind, name=site_name(site)[: limits.MAX_SHORT_TEXT])
