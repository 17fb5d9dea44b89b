"""Holders summed up by process, container and pod: who leaves data unread, and who pins the most (pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memdiag_api.evidence import Holder, HolderKind, SuspectScope
from memdiag_node.holding import Holding, pinned_together_bytes

_SCOPES = (SuspectScope.PROCESS, SuspectScope.CONTAINER, SuspectScope.POD)
"""From the most to the least precise. Stuck sockets that only add up on the whole node have no suspect."""
_SUSPECT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class StuckSockets:
    """The stuck sockets of one process, container or pod, or of the node."""

    scope: SuspectScope
    holders: tuple[int, ...]
    """Indexes of holders: single sockets before sums, then the most pinned bytes first."""
    sockets: int
    processes: int
    pinned_bytes: int
    """Together, each block once."""
    unread_bytes: int
    stuck_seconds: float
    """Minimum for all of them."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """Holders of one kind that one process has and that are not stuck, or one holder without a process."""

    holder: int
    """Index of the largest of them."""
    count: int
    pinned_bytes: int
    """Together, each block once."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Who pins how many bytes."""

    stuck: StuckSockets
    """All stuck sockets of the node."""
    groups: tuple[StuckSockets, ...]
    """The stuck sockets of each process, container and pod: by scope, then the most pinned bytes first."""
    largest_keeper: Keeper | None
    """The largest among the holders that are not stuck sockets."""


def pinned_by(holdings: Sequence[Holding], *, stuck_floor_seconds: float, page_bytes: int) -> Pinned:
    """Sum up pinned bytes by owner. A socket is stuck if nothing was read from it for `stuck_floor_seconds`."""
    stuck = [
        index
        for index, one in enumerate(holdings)
        if one.holder.kind is HolderKind.SOCKET and (one.holder.stuck_seconds or 0) >= stuck_floor_seconds
    ]
    groups: list[StuckSockets] = []
    for scope in _SCOPES:
        members: dict[object, list[int]] = {}
        for index in stuck:
            if key := _key(scope, index, holdings[index].holder):
                members.setdefault(key, []).append(index)
        found = [_summed_up(scope, holdings, group, page_bytes) for group in members.values()]
        groups += sorted(found, key=lambda one: -one.pinned_bytes)
    return Pinned(
        stuck=_summed_up(SuspectScope.NODE, holdings, stuck, page_bytes),
        groups=tuple(groups),
        largest_keeper=_largest_keeper(holdings, set(range(len(holdings))) - set(stuck), page_bytes),
    )


def find_suspect(groups: Sequence[StuckSockets], limit_bytes: int) -> StuckSockets | None:
    """Return the most precise group that pins at least `limit_bytes`, and half of what the largest group pins.

    One worker among a thousand is not reported instead of its container, and a container does not hide the one
    process that is the cause. None if no process, container or pod pins `limit_bytes`.
    """
    most_bytes = max((one.pinned_bytes for one in groups), default=0)
    floor_bytes = max(limit_bytes, _SUSPECT_SHARE * most_bytes)
    return next((one for one in groups if one.pinned_bytes >= floor_bytes), None)


def _largest_keeper(holdings: Sequence[Holding], chosen: Iterable[int], page_bytes: int) -> Keeper | None:
    groups: dict[object, list[int]] = {}
    for index in chosen:
        holder = holdings[index].holder
        owner = holder.owners[0].pid if holder.owners else f"holder {index}"
        groups.setdefault((holder.kind, owner), []).append(index)
    keepers = (
        Keeper(
            holder=max(group, key=lambda index: holdings[index].holder.pinned_bytes),
            count=sum(holdings[index].holder.summed for index in group),
            pinned_bytes=pinned_together_bytes([holdings[index] for index in group], page_bytes=page_bytes),
        )
        for group in groups.values()
    )
    return max(keepers, key=lambda one: one.pinned_bytes, default=None)


def _key(scope: SuspectScope, index: int, holder: Holder) -> object:
    """Return what the members of a group have in common, or None if the holder belongs to no group of this scope.

    Sockets without a process have nothing in common: each is a group by itself, and a sum of them is not a group.
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


def _summed_up(scope: SuspectScope, holdings: Sequence[Holding], group: Sequence[int], page_bytes: int) -> StuckSockets:
    members = [holdings[index].holder for index in group]
    return StuckSockets(
        scope=scope,
        holders=tuple(
            sorted(group, key=lambda index: (holdings[index].holder.summed > 1, -holdings[index].holder.pinned_bytes))
        ),
        sockets=sum(holder.summed for holder in members),
        processes=len({holder.owners[0].pid for holder in members if holder.owners}),
        pinned_bytes=pinned_together_bytes([holdings[index] for index in group], page_bytes=page_bytes),
        unread_bytes=sum(holder.unread_bytes for holder in members),
        stuck_seconds=min((holder.stuck_seconds or 0 for holder in members), default=0),
    )
