"""Finding: network namespaces that no process uses, and that something keeps from being removed (docs/findings.md)."""

from collections.abc import Collection, Iterator, Sequence

from memdiag_api import limits
from memdiag_api.census.namespaces import NetworkNamespace
from memdiag_api.census.packets import PacketPlace
from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.groups import kept_together
from memdiag_node.findings.situation import Situation
from memdiag_node.holding import kept_bytes

MANY = 8
"""A few may be on their way out: the kernel removes them one by one, and waits for packets of their devices."""
_BEING_REMOVED = "nothing:"
"""The kernel has begun to remove it. Where containers come and go, there are always some."""
_NAMED = 5


def zombie_namespaces(situation: Situation, left: Collection[int]) -> Iterator[Draft]:
    """Yield a finding if many such namespaces are kept, or if they have the notable size together.

    It is about the packets in them that wait outside of sockets, too, except for lost ones, which are a leak by
    themselves. `left`: the indexes of the holders that no finding is about yet.
    """
    census = situation.measured.census
    found = census.namespaces if census else None
    if found is None or not found.zombies:
        return
    zombies = [one for one in found.listed if one.is_zombie]
    leaving = sum(one.kept_by.startswith(_BEING_REMOVED) for one in zombies)
    if found.zombies - leaving < MANY and found.zombie_bytes < situation.notable_bytes:
        return
    holders = _queues_in(situation, zombies, left)
    claims_bytes = kept_together([situation.measured.holdings[index] for index in holders], situation.page_bytes)
    size_bytes = max(found.zombie_bytes, sum(claims_bytes.values()))
    count = f"{found.zombies} network namespaces" if found.zombies > 1 else "A network namespace"
    verb = "are" if found.zombies > 1 else "is"
    yield Draft(
        kind=FindingKind.ZOMBIE_NAMESPACE,
        memory_class=_main_class(situation, zombies),
        size_bytes=size_bytes,
        claims_bytes=claims_bytes,  # other findings are about sockets and slab caches
        holders=holders,
        owner=MemoryOwner(kind=OwnerKind.NETWORK_NAMESPACE, name=_names(zombies)),
        leak=LeakAnswer.UNKNOWN,
        is_notable=True,
        confidence=Confidence.MEDIUM,
        sentence=f"{count} that no process uses {verb} kept, with {format_bytes(size_bytes)} of "
        f"sockets and packets{_because(zombies)}.",
        reasons=[
            f"the thresholds are {MANY} namespaces, or {format_bytes(situation.notable_bytes)}",
            *(_of_namespace(one) for one in zombies[:_NAMED]),
        ],
        advice="Check what keeps them. Connections that wait for a peer end by themselves; a leaked reference stays "
        "until the node restarts, and each namespace keeps slab and per-CPU memory beyond these bytes.",
        sections=["census.namespaces"],
    )


def _queues_in(situation: Situation, zombies: Sequence[NetworkNamespace], left: Collection[int]) -> list[int]:
    """Return the indexes of the queues outside of sockets in these namespaces, the largest first."""
    holdings, inodes = situation.measured.holdings, {one.inode for one in zombies}
    found = [
        index
        for index in left
        if holdings[index].network_namespace in inodes and holdings[index].holder.packet_place is not PacketPlace.LOST
    ]
    return sorted(found, key=lambda index: -kept_bytes(holdings[index].holder))


def _main_class(situation: Situation, zombies: Sequence[NetworkNamespace]) -> str:
    """Return the class of the packets in these namespaces, if they have any."""
    census = situation.measured.census
    inodes = {one.inode for one in zombies}
    groups = [
        one for one in (census.packets.groups if census and census.packets else ()) if one.network_namespace in inodes
    ]
    pinned_bytes, head_bytes = sum(one.pinned_bytes for one in groups), sum(one.head_bytes for one in groups)
    if not pinned_bytes and not head_bytes:
        return ""
    return ClassName.ALLOC_PAGE if pinned_bytes >= head_bytes else ClassName.SUNRECLAIM


def _names(zombies: Sequence[NetworkNamespace]) -> str:
    return ", ".join(f"net:[{one.inode}]" for one in zombies[:_NAMED])[: limits.MAX_SHORT_TEXT]


def _because(zombies: Sequence[NetworkNamespace]) -> str:
    """Return what keeps the largest of them."""
    largest = max(zombies, key=lambda one: one.size_bytes, default=None)
    return f"; the largest is kept by {largest.kept_by}" if largest and largest.kept_by else ""


def _of_namespace(one: NetworkNamespace) -> str:
    devices = f", devices {', '.join(one.device_names)}" if one.device_names else ""
    return f"net:[{one.inode}] has {format_bytes(one.size_bytes)}, kept by {one.kept_by}{devices}"
