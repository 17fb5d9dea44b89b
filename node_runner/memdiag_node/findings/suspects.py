"""Holders summed up by process, container and pod: who leaves data unread, and who keeps the most (pure)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memdiag_api.evidence import Holder, HolderKind, SuspectScope
from memdiag_node.holding import Holding, kept_bytes, pinned_together_bytes

_SCOPES = (SuspectScope.PROCESS, SuspectScope.CONTAINER, SuspectScope.POD)
"""From the most to the least precise. Stuck sockets that only add up on the whole node have no suspect."""
_SUSPECT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class StuckSockets:
    """The stuck sockets of one process, container or pod, or of the node."""

    scope: SuspectScope
    holders: tuple[int, ...]
    """Indexes of holders: single sockets before sums, then the largest first."""
    sockets: int
    processes: int
    pinned_bytes: int
    """Together, each block once."""
    head_bytes: int
    """Linear heads of their packets, in slab."""
    unread_bytes: int
    stuck_seconds: float
    """Minimum for all of them."""

    @property
    def kept_bytes(self) -> int:
        """What would be freed if they were read or closed."""
        return self.pinned_bytes + self.head_bytes


@dataclass(frozen=True, slots=True)
class Keeper:
    """Holders of one kind and class that one process has and that are not stuck, or one holder without a process."""

    holder: int
    """Index of the largest of them."""
    count: int
    pinned_bytes: int
    """Together, each block once."""
    memory_class: str


@dataclass(frozen=True, slots=True)
class Pinned:
    """Who keeps how many bytes."""

    stuck: StuckSockets
    """All stuck sockets of the node."""
    groups: tuple[StuckSockets, ...]
    """The stuck sockets of each process, container and pod: by scope, then the largest first."""
    largest_keepers: Mapping[str, Keeper]
    """By class of memory, the largest among the holders that are not stuck sockets."""


def pinned_by(holdings: Sequence[Holding], *, stuck_floor_seconds: float, page_bytes: int) -> Pinned:
    """Sum up by owner what is kept. A socket is stuck if nothing was read from it for `stuck_floor_seconds`."""
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
        groups += sorted(found, key=lambda one: -one.kept_bytes)
    return Pinned(
        stuck=_summed_up(SuspectScope.NODE, holdings, stuck, page_bytes),
        groups=tuple(groups),
        largest_keepers=_largest_keepers(holdings, sorted(set(range(len(holdings))) - set(stuck)), page_bytes),
    )


def find_suspect(groups: Sequence[StuckSockets], limit_bytes: int) -> StuckSockets | None:
    """Return the most precise group that keeps at least `limit_bytes`, and half of what the largest group keeps.

    One worker among a thousand is not reported instead of its container, and a container does not hide the one
    process that is the cause. None if no process, container or pod keeps `limit_bytes`.
    """
    most_bytes = max((one.kept_bytes for one in groups), default=0)
    floor_bytes = max(limit_bytes, _SUSPECT_SHARE * most_bytes)
    return next((one for one in groups if one.kept_bytes >= floor_bytes), None)


def _largest_keepers(holdings: Sequence[Holding], chosen: Iterable[int], page_bytes: int) -> dict[str, Keeper]:
    groups: dict[tuple[str, object, object], list[int]] = {}
    for index in chosen:
        holder = holdings[index].holder
        owner = holder.owners[0].pid if holder.owners else f"holder {index}"
        groups.setdefault((holder.memory_class, holder.kind, owner), []).append(index)
    largest: dict[str, Keeper] = {}
    for (memory_class, _, _), group in groups.items():
        keeper = Keeper(
            holder=max(group, key=lambda index: holdings[index].holder.pinned_bytes),
            count=sum(holdings[index].holder.summed for index in group),
            pinned_bytes=pinned_together_bytes([holdings[index] for index in group], page_bytes=page_bytes),
            memory_class=memory_class,
        )
        if memory_class not in largest or keeper.pinned_bytes > largest[memory_class].pinned_bytes:
            largest[memory_class] = keeper
    return largest


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
            sorted(group, key=lambda index: (holdings[index].holder.summed > 1, -kept_bytes(holdings[index].holder)))
        ),
        sockets=sum(holder.summed for holder in members),
        processes=len({holder.owners[0].pid for holder in members if holder.owners}),
        pinned_bytes=pinned_together_bytes([holdings[index] for index in group], page_bytes=page_bytes),
        head_bytes=sum(holder.head_bytes for holder in members),
        unread_bytes=sum(holder.unread_bytes for holder in members),
        stuck_seconds=min((holder.stuck_seconds or 0 for holder in members), default=0),
    )
