"""Who has the classes of kernel memory: holders, slab caches, callers of vmalloc, devices (pure)."""

from collections.abc import Iterator, Sequence

from memdiag_api import limits
from memdiag_api.census.slab import SlabCaches
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, ClassShare, MemoryOwner, OwnerKind
from memdiag_node.findings.naming import THIS_RUN, process_owner
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.vmalloc import vmalloc_owners
from memdiag_node.holding import Holding, pinned_together_bytes

_BY_HOLDER = (ClassName.ALLOC_PAGE, ClassName.PERCPU, ClassName.ZSMALLOC)


def kernel_owners(situation: Situation) -> Iterator[ClassOwners]:
    """Yield the owners of each class of kernel memory that the breakdown has and that has known owners."""
    sizes = situation.class_bytes
    census, machine = situation.measured.census, situation.measured.machine
    if census and census.slab:
        for name in (ClassName.SUNRECLAIM, ClassName.SRECLAIMABLE):
            if name in sizes:
                yield slab_owners(name, sizes[name], census.slab)
    if machine and machine.vmalloc and ClassName.VMALLOC in sizes:
        own_bytes = situation.measured.own_bytes(ClassName.VMALLOC)
        yield vmalloc_owners(machine.vmalloc, sizes[ClassName.VMALLOC], own_bytes)
    every = (*situation.measured.holdings, *situation.measured.own_holdings)
    for name in _BY_HOLDER:
        holdings = [one for one in every if one.holder.memory_class == name]
        if name in sizes and holdings:
            held_bytes = situation.held_bytes if name == ClassName.ALLOC_PAGE else None
            yield holder_owners(name, sizes[name], holdings, held_bytes=held_bytes, page_bytes=situation.page_bytes)


def slab_owners(name: ClassName, size_bytes: int, slab: SlabCaches) -> ClassOwners:
    """Return the slab caches of a class. Caches whose objects have no known purpose (kmalloc's) explain nothing."""
    is_reclaimable = name == ClassName.SRECLAIMABLE
    caches = [one for one in slab.caches if one.reclaimable == is_reclaimable]
    return ClassOwners(
        memory_class=name,
        size_bytes=size_bytes,
        explained_bytes=min(size_bytes, sum(one.size_bytes for one in caches if one.purpose)),
        owners=[
            ClassShare(
                owner=MemoryOwner(kind=OwnerKind.SLAB_CACHE, name=one.name[: limits.MAX_SHORT_TEXT]),
                size_bytes=one.size_bytes,
                change_bytes=one.change_bytes,
            )
            for one in caches[: limits.MAX_CLASS_OWNERS]
        ],
        owners_total=len(caches),
    )


def holder_owners(
    name: str, size_bytes: int, holdings: Sequence[Holding], *, held_bytes: int | None, page_bytes: int
) -> ClassOwners:
    """Return who has the holders of a class, each process with all that it pins.

    `held_bytes`: what all holders pin together, with each block once, if that is known.
    """
    grouped: dict[object, list[Holding]] = {}
    for index, one in enumerate(holdings):
        pid = one.holder.owners[0].pid if one.holder.owners else 0
        grouped.setdefault(THIS_RUN if one.is_own else pid or ("holder", index), []).append(one)
    shares = [
        ClassShare(
            owner=MemoryOwner(kind=OwnerKind.PROCESS, name=THIS_RUN)
            if group[0].is_own
            else process_owner([one.holder for one in group]),
            size_bytes=pinned_together_bytes(group, page_bytes=page_bytes),
        )
        for group in grouped.values()
    ]
    total_bytes = held_bytes if held_bytes is not None else sum(one.size_bytes for one in shares)
    return ClassOwners(
        memory_class=name,
        size_bytes=size_bytes,
        explained_bytes=min(size_bytes, total_bytes),
        owners=sorted(shares, key=lambda one: -one.size_bytes)[: limits.MAX_CLASS_OWNERS],
        owners_total=len(shares),
    )
