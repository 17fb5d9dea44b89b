"""Stuck sockets, summed up by process, container and pod: who leaves how much unread (pure)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memdiag_api.evidence import Holder, HolderKind, SuspectScope

PinnedTogether = Callable[[Sequence[int]], int]
"""Bytes that the holders with these indexes pin, blocks that they share counted once."""

_SCOPES = (SuspectScope.PROCESS, SuspectScope.CONTAINER, SuspectScope.POD)
"""From the most to the least precise. What is only found on the whole node has no suspect."""
_TELLING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class StuckSockets:
    """The stuck sockets of one process, container or pod, or of the node."""

    scope: SuspectScope
    holders: tuple[int, ...]
    """Indexes: sockets that can be named before sums, then the most pinned bytes first."""
    sockets: int
    processes: int
    pinned_bytes: int
    """Together, each block once."""
    unread_bytes: int
    stuck_seconds: float
    """All of them, at least."""


def stuck_holders(holders: Sequence[Holder], floor_seconds: float) -> list[int]:
    """Indexes of the sockets, or sums of sockets, of which nothing was read for `floor_seconds`."""
    return [
        index
        for index, holder in enumerate(holders)
        if holder.kind is HolderKind.SOCKET and (holder.stuck_seconds or 0) >= floor_seconds
    ]


def find_suspect(
    holders: Sequence[Holder], stuck: Sequence[int], pinned_together: PinnedTogether, limit_bytes: int
) -> StuckSockets | None:
    """The most precise group of the `stuck` that pins `limit_bytes`, and half of what the largest group pins.

    So one worker among a thousand does not stand for its container, and a container does not hide the one process
    that causes it. None when no process, container or pod pins as much as `limit_bytes`.
    """
    groups: list[StuckSockets] = []
    for scope in _SCOPES:
        members: dict[object, list[int]] = {}
        for index in stuck:
            if key := _key(scope, index, holders[index]):
                members.setdefault(key, []).append(index)
        found = [_summed_up(scope, holders, group, pinned_together) for group in members.values()]
        groups += sorted((one for one in found if one.pinned_bytes >= limit_bytes), key=lambda one: -one.pinned_bytes)
    most_bytes = max((one.pinned_bytes for one in groups), default=0)
    return next((one for one in groups if one.pinned_bytes >= _TELLING_SHARE * most_bytes), None)


def of_node(holders: Sequence[Holder], stuck: Sequence[int], pinned_together: PinnedTogether) -> StuckSockets:
    """All of the `stuck`, whoever has them."""
    return _summed_up(SuspectScope.NODE, holders, stuck, pinned_together)


def _key(scope: SuspectScope, index: int, holder: Holder) -> object:
    """What the members of a group have in common; None for a holder that belongs to no group of this scope.

    Sockets without a process have nothing in common: each is a group by itself, and a sum of them is none.
    """
    owner = holder.owners[0] if holder.owners else None
    match scope:
        case SuspectScope.PROCESS:
            is_of_many = holder.summed > 1 and not holder.owners_total
            return ("process", owner.pid) if owner else None if is_of_many else ("holder", index)
        case SuspectScope.CONTAINER:
            return owner.container_id if owner else None
        case _:
            return owner.pod_uid if owner else None


def _summed_up(
    scope: SuspectScope, holders: Sequence[Holder], group: Sequence[int], pinned_together: PinnedTogether
) -> StuckSockets:
    members = [holders[index] for index in group]
    return StuckSockets(
        scope=scope,
        holders=tuple(sorted(group, key=lambda index: (holders[index].summed > 1, -holders[index].pinned_bytes))),
        sockets=sum(holder.summed for holder in members),
        processes=len({holder.owners[0].pid for holder in members if holder.owners}),
        pinned_bytes=pinned_together(group),
        unread_bytes=sum(holder.unread_bytes for holder in members),
        stuck_seconds=min((holder.stuck_seconds or 0 for holder in members), default=0),
    )
