"""Stuck sockets summed up by process, container and pod: who leaves data unread (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

from memdiag_api.evidence import HolderKind, SuspectScope
from memdiag_node.findings.groups import owner_key
from memdiag_node.holding import Holding, kept_bytes, pinned_together_bytes

_SCOPES = (SuspectScope.PROCESS, SuspectScope.CONTAINER, SuspectScope.POD)
"""From the most to the least precise. Stuck sockets that only add up on the whole node have no suspect."""
_SUSPECT_SHARE = 0.5
_MAX_SUSPECTS = 8


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
class Pinned:
    """The stuck sockets of a node, for grouping."""

    stuck: tuple[int, ...]
    """Indexes of the holdings that are stuck sockets."""
    holdings: Sequence[Holding]
    page_bytes: int

    def together(self, scope: SuspectScope, members: Sequence[int]) -> StuckSockets:
        """Sum up these stuck sockets."""
        return _summed_up(scope, self.holdings, members, self.page_bytes)

    def groups(self, members: Sequence[int]) -> list[StuckSockets]:
        """Return these stuck sockets by process, container and pod: by scope, then the largest first."""
        found: list[StuckSockets] = []
        for scope in _SCOPES:
            grouped: dict[object, list[int]] = {}
            for index in members:
                if key := owner_key(scope, index, self.holdings[index].holder):
                    grouped.setdefault(key, []).append(index)
            found += sorted(
                (self.together(scope, group) for group in grouped.values()), key=lambda one: -one.kept_bytes
            )
        return found


def pinned_by(holdings: Sequence[Holding], *, stuck_floor_seconds: float, page_bytes: int) -> Pinned:
    """Find the stuck sockets: nothing was read from them for `stuck_floor_seconds`."""
    return Pinned(
        stuck=tuple(
            index
            for index, one in enumerate(holdings)
            if one.holder.kind is HolderKind.SOCKET and (one.holder.stuck_seconds or 0) >= stuck_floor_seconds
        ),
        holdings=holdings,
        page_bytes=page_bytes,
    )


def find_suspects(pinned: Pinned, limit_bytes: int) -> list[StuckSockets]:
    """Return groups of stuck sockets that keep at least `limit_bytes`, largest first, each socket in one of them.

    The last one may be of scope Node: sockets that have only the node in common.
    """
    suspects: list[StuckSockets] = []
    left = list(pinned.stuck)
    while len(suspects) < _MAX_SUSPECTS and (suspect := find_suspect(pinned.groups(left), limit_bytes)):
        suspects.append(suspect)
        left = [index for index in left if index not in set(suspect.holders)]
    if (rest := pinned.together(SuspectScope.NODE, left)).kept_bytes >= limit_bytes:
        suspects.append(rest)
    return suspects


def find_suspect(groups: Sequence[StuckSockets], limit_bytes: int) -> StuckSockets | None:
    """Return the most precise group that keeps at least `limit_bytes`, and half of what the largest group keeps.

    One worker among a thousand is not reported instead of its container, and a container does not hide the one
    process that is the cause. None if no process, container or pod keeps `limit_bytes`.
    """
    most_bytes = max((one.kept_bytes for one in groups), default=0)
    floor_bytes = max(limit_bytes, _SUSPECT_SHARE * most_bytes)
    return next((one for one in groups if one.kept_bytes >= floor_bytes), None)


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
