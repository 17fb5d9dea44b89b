"""Stuck sockets summed up by process, container and pod: who leaves data unread (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

from memdiag_api.evidence import SuspectScope
from memdiag_api.memory_classes import ClassName
from memdiag_node.findings.groups import Group, find_groups, is_socket, kept_together
from memdiag_node.holding import Holding


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
    slab_bytes: int
    """Their packets in slab: linear heads and the packets themselves."""
    unread_bytes: int
    stuck_seconds: float
    """Minimum for all of them."""

    @property
    def kept_bytes(self) -> int:
        """What would be freed if they were read or closed."""
        return self.pinned_bytes + self.slab_bytes


def stuck_sockets(holdings: Sequence[Holding], *, stuck_floor_seconds: float) -> list[int]:
    """Return the indexes of the stuck sockets: nothing was read from them for `stuck_floor_seconds`."""
    return [
        index
        for index, one in enumerate(holdings)
        if is_socket(one) and (one.holder.stuck_seconds or 0) >= stuck_floor_seconds
    ]


def find_suspects(
    holdings: Sequence[Holding], stuck: Sequence[int], *, limit_bytes: int, page_bytes: int
) -> list[StuckSockets]:
    """Return groups of stuck sockets that keep at least `limit_bytes`, each socket in one of them (groups.find_groups).

    One worker among a thousand is not reported instead of its container, and a container does not hide the one
    process that is the cause. The last one may be of scope Node: sockets that have only the node in common.
    """

    def kept_bytes(members: Sequence[Holding]) -> int:
        return sum(kept_together(members, page_bytes).values())

    groups = find_groups(holdings, stuck, limit_bytes, kept_bytes)
    return [_summed_up(group, [holdings[index] for index in group.members], page_bytes) for group in groups]


def _summed_up(group: Group, members: Sequence[Holding], page_bytes: int) -> StuckSockets:
    kept = kept_together(members, page_bytes)
    holders = [one.holder for one in members]
    return StuckSockets(
        scope=group.scope,
        holders=group.members,
        sockets=sum(one.summed for one in holders),
        processes=len({one.owners[0].pid for one in holders if one.owners}),
        pinned_bytes=kept[ClassName.ALLOC_PAGE],
        slab_bytes=kept[ClassName.SUNRECLAIM],
        unread_bytes=sum(one.unread_bytes for one in holders),
        stuck_seconds=min((one.stuck_seconds or 0 for one in holders), default=0),
    )
