"""Holders summed up by process, container, pod and node: the smallest group that has most of it (pure)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memdiag_api import limits
from memdiag_api.evidence import Holder, HolderKind, SuspectScope
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_node.findings.naming import holder_name, process_name, process_owner, short_id
from memdiag_node.holding import Holding, kept_bytes, packet_slab_bytes, pinned_together_bytes

SCOPES = (SuspectScope.PROCESS, SuspectScope.CONTAINER, SuspectScope.POD)
"""From the most to the least precise; what only the node has in common comes after them."""
_GROUP_SHARE = 0.5
_MAX_GROUPS = 8
SizeOf = Callable[[Sequence[Holding]], int]


@dataclass(frozen=True, slots=True)
class Group:
    """Holders of one process, container or pod, or of the node."""

    scope: SuspectScope
    members: tuple[int, ...]
    """Indexes of holders: single ones before sums, then the largest first."""
    size_bytes: int


def find_groups(holdings: Sequence[Holding], chosen: Sequence[int], limit_bytes: int, size_of: SizeOf) -> list[Group]:
    """Return groups of the chosen holders with at least `limit_bytes`, each holder in one of them.

    Each is the most precise one with half of the size of the largest. The last one may be of scope Node: holders that
    have only the node in common. `size_of` returns the size of holders together.
    """
    found: list[Group] = []
    left = list(chosen)
    while left and len(found) < _MAX_GROUPS and (group := _smallest(holdings, left, limit_bytes, size_of)):
        found.append(group)
        left = [index for index in left if index not in set(group.members)]
    rest = _group(SuspectScope.NODE, holdings, left, size_of)
    return [*found, rest] if left and rest.size_bytes >= limit_bytes else found


def find_each(holdings: Sequence[Holding], chosen: Sequence[int], limit_bytes: int, size_of: SizeOf) -> Iterator[Group]:
    """Yield every group of the chosen holders with at least `limit_bytes`, each holder in one of them at most.

    Processes come first, then what the rest of a container or a pod has together, then all that no process has. The
    last one may be what is left on the node.
    """
    left = list(chosen)

    def large(groups: Sequence[Group]) -> Iterator[Group]:
        for group in groups:
            if group.size_bytes >= limit_bytes:
                left[:] = [index for index in left if index not in set(group.members)]
                yield group

    for scope in SCOPES:
        yield from large(_groups(scope, holdings, left, size_of))
    without_process = [index for index in left if not holdings[index].holder.owners]
    yield from large([_group(SuspectScope.NODE, holdings, without_process, size_of)])
    yield from large([_group(SuspectScope.NODE, holdings, left, size_of)])


def owner_key(scope: SuspectScope, index: int, holder: Holder) -> object:
    """Return what the members of a group have in common, or None if the holder belongs to no group of this scope.

    Holders without a process have nothing in common: each is a group by itself, and a sum of them is not a group.
    """
    owner = holder.owners[0] if holder.owners else None
    match scope:
        case SuspectScope.PROCESS:
            is_of_many = holder.summed > 1 and not holder.owners_total
            return ("process", owner.pid) if owner else None if is_of_many else ("holder", index)
        case SuspectScope.CONTAINER:
            return owner.container_id if owner else None
        case SuspectScope.POD:
            return owner.pod_uid if owner else None
        case _:
            return "node"


def kept_together(holdings: Sequence[Holding], page_bytes: int) -> dict[str, int]:
    """Return what holders of one class keep by class of memory: blocks, each once, and packets in slab."""
    name = next((one.holder.memory_class for one in holdings), ClassName.ALLOC_PAGE)
    kept: dict[str, int] = {name: pinned_together_bytes(holdings, page_bytes=page_bytes)}
    kept[ClassName.SUNRECLAIM] = kept.get(ClassName.SUNRECLAIM, 0) + sum(
        packet_slab_bytes(one.holder) for one in holdings
    )
    return kept


def main_class(claims_bytes: dict[str, int]) -> str:
    """Return the class that has the most of it."""
    return max(claims_bytes, key=lambda name: claims_bytes[name])


def group_subject(scope: SuspectScope, holders: Sequence[Holder]) -> str:
    """Return who has them: `gateway[7]`, `container 0123456789ab`. `holders`: the members of the group."""
    first = holders[0]
    match scope:
        case SuspectScope.PROCESS:
            return process_name(first.owners[0]) if first.owners else holder_name(first)
        case SuspectScope.CONTAINER:
            return f"container {short_id(first.owners[0].container_id)}"
        case SuspectScope.POD:
            return f"pod {first.owners[0].pod_uid}"
        case _:
            return f"{_processes(holders)} processes of the node"


def group_owner(scope: SuspectScope, holders: Sequence[Holder]) -> MemoryOwner:
    """Return who has them, as a record. `holders`: the members of the group."""
    largest = process_owner(holders)
    match scope:
        case SuspectScope.PROCESS:
            return largest
        case SuspectScope.NODE:
            name = f"{_processes(holders)} processes, the largest being {holder_name(holders[0])}"
            return MemoryOwner(kind=OwnerKind.NODE, name=name[: limits.MAX_SHORT_TEXT], processes=_processes(holders))
        case _:
            is_container = scope is SuspectScope.CONTAINER
            return largest.model_copy(
                update={
                    "kind": OwnerKind.CONTAINER if is_container else OwnerKind.POD,
                    "container_id": largest.container_id if is_container else "",
                    "processes": _processes(holders),
                }
            )


def is_socket(holding: Holding) -> bool:
    """Return whether it is a socket, or a sum of sockets."""
    return holding.holder.kind is HolderKind.SOCKET


def _processes(holders: Sequence[Holder]) -> int:
    return len({one.owners[0].pid for one in holders if one.owners})


def _smallest(holdings: Sequence[Holding], left: Sequence[int], limit_bytes: int, size_of: SizeOf) -> Group | None:
    groups = [group for scope in SCOPES for group in _groups(scope, holdings, left, size_of)]
    floor_bytes = max(limit_bytes, _GROUP_SHARE * max((one.size_bytes for one in groups), default=0))
    return next((one for one in groups if one.size_bytes >= floor_bytes), None)


def _groups(scope: SuspectScope, holdings: Sequence[Holding], left: Sequence[int], size_of: SizeOf) -> list[Group]:
    """Return the groups of a scope, the largest first."""
    members: dict[object, list[int]] = {}
    for index in left:
        if key := owner_key(scope, index, holdings[index].holder):
            members.setdefault(key, []).append(index)
    groups = (_group(scope, holdings, group, size_of) for group in members.values())
    return sorted(groups, key=lambda one: -one.size_bytes)


def _group(scope: SuspectScope, holdings: Sequence[Holding], members: Sequence[int], size_of: SizeOf) -> Group:
    ordered = sorted(
        members, key=lambda index: (holdings[index].holder.summed > 1, -kept_bytes(holdings[index].holder))
    )
    return Group(scope, tuple(ordered), size_of([holdings[index] for index in ordered]))
