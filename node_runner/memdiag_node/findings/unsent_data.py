"""Finding: data that cannot be sent, because the peers do not read or cannot be reached (docs/findings.md)."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from memdiag_api import limits
from memdiag_api.evidence import Holder, Pace, Peer, SuspectScope
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.freed import exclusive_bytes
from memdiag_node.findings.groups import Group, find_groups, group_owner, group_subject, is_socket, kept_together
from memdiag_node.findings.naming import holder_name, process_name
from memdiag_node.findings.situation import Situation
from memdiag_node.holding import PACKET_STRUCT_BYTES, Holding
from memdiag_node.sockets.peers import largest_peers

_UNSENT = ("write", "retransmit")
_PEERS_ON_NODE = 3


def unsent_data(situation: Situation, left: Collection[int]) -> Iterator[Draft]:
    """Yield a finding for each group of sockets that keeps the suspect size in data that their peers do not take.

    `left`: the indexes of the holders that no finding is about yet.
    """
    holdings, thresholds = situation.measured.holdings, situation.thresholds
    chosen = [
        index
        for index in sorted(left)
        if is_socket(holdings[index])
        and is_held_up(
            holdings[index].holder,
            stalled_seconds=thresholds.stuck_floor_seconds,
            drain_seconds=thresholds.slow_drain_seconds,
        )
    ]

    def size_of(members: Sequence[Holding]) -> int:
        return _size_bytes(members, situation.page_bytes)

    for group in find_groups(holdings, chosen, situation.suspect_bytes, size_of):
        yield _draft(situation, group)


def is_held_up(holder: Holder, *, stalled_seconds: float, drain_seconds: float) -> bool:
    """Return whether the peer acknowledged nothing for so long, or so little that the rest would take so long."""
    if holder.summed_sockets:
        sums = holder.summed_sockets
        return sums.sending is Pace.SLOW or (sums.send_stalled_seconds or 0.0) >= stalled_seconds
    if holder.socket is None:
        return False
    rate = holder.socket.acked_bytes_per_second
    is_slow = bool(rate) and unsent_bytes(holder) >= (rate or 0.0) * drain_seconds
    return is_slow or (holder.socket.send_stalled_seconds or 0.0) >= stalled_seconds


def unsent_bytes(holder: Holder) -> int:
    """Return the payload that waits to be sent or acknowledged."""
    if holder.summed_sockets:
        return holder.summed_sockets.unsent_bytes
    return sum(one.unread_bytes for one in holder.socket.queues if one.name in _UNSENT) if holder.socket else 0


def unsent_kept_bytes(holder: Holder) -> int:
    """Return what that payload keeps: blocks of pages, and packets in slab (of a sum of sockets only their heads)."""
    if holder.summed_sockets:
        return holder.summed_sockets.unsent_kept_bytes
    queues = holder.socket.queues if holder.socket else []
    return sum(
        one.pinned_bytes + one.head_bytes + PACKET_STRUCT_BYTES * one.packets for one in queues if one.name in _UNSENT
    )


def _size_bytes(members: Sequence[Holding], page_bytes: int) -> int:
    """Return what unsent data keeps: of blocks in several queues no more than the sockets keep together."""
    kept_bytes = sum(kept_together(members, page_bytes).values())
    return min(kept_bytes, sum(unsent_kept_bytes(one.holder) for one in members))


def _draft(situation: Situation, group: Group) -> Draft:
    holdings = situation.measured.holdings
    members = [holdings[index] for index in group.members]
    holders = [one.holder for one in members]
    kept = kept_together(members, situation.page_bytes)
    pinned_bytes = min(group.size_bytes, kept[ClassName.ALLOC_PAGE])
    claims = {ClassName.ALLOC_PAGE.value: pinned_bytes, ClassName.SUNRECLAIM.value: group.size_bytes - pinned_bytes}
    sockets = sum(one.summed for one in holders)
    stalled = [one for one in holders if _stalled_seconds(one)]
    return Draft(
        kind=FindingKind.UNSENT_DATA,
        memory_class=max(claims, key=lambda name: claims[name]),
        size_bytes=group.size_bytes,
        claims_bytes=claims,
        owner=group_owner(group.scope, holders),
        leak=LeakAnswer.UNKNOWN,
        is_notable=True,
        freed_by=_freed_by(situation, group, holders),
        confidence=Confidence.MEDIUM,
        sentence=f"{format_bytes(group.size_bytes)} unsent in {_connections(sockets)} {_whose(group, holders)}; "
        f"{_peers(holders, is_stalled=bool(stalled))}.",
        reasons=[
            *_stalled(stalled),
            *_slow(holders, stalled),
            *_windows(stalled),
            f"{format_bytes(sum(map(unsent_bytes, holders)))} of payload keep {format_bytes(group.size_bytes)} "
            f"(threshold: {format_bytes(situation.suspect_bytes)})",
            *_on_this_node(holders, holdings),
        ],
        advice="Check why the peers do not read, and whether they are still there. The memory is freed when they read, "
        "or when the connections are closed; a send timeout (TCP_USER_TIMEOUT) closes those that hang.",
        holders=group.members,
        scope=group.scope,
    )


def _connections(count: int) -> str:
    return "a connection" if count == 1 else f"{count:,} connections"


def _whose(group: Group, holders: Sequence[Holder]) -> str:
    if group.scope is not SuspectScope.PROCESS or holders[0].owners:
        return f"of {group_subject(group.scope, holders)}"
    if holders[0].owners_total and not holders[0].unowned_reason:
        return "of a process that has ended"
    return f"that no process holds ({holders[0].unowned_reason or 'reason unknown'})"


def _peers(holders: Sequence[Holder], *, is_stalled: bool) -> str:
    """Return what the peers do, and which have most of it."""
    found = largest_peers(peer for one in holders for peer in _peers_of(one))
    do = "do not read" if is_stalled else "read too slowly"
    if not found:
        return f"the peers {do}"
    names = ", ".join(f"{one.address} ({format_bytes(one.size_bytes)})" for one in found)
    return f"the peers {do}: {names}"


def _peers_of(holder: Holder) -> list[Peer]:
    if holder.summed_sockets:
        return holder.summed_sockets.peers
    if holder.socket is None or not holder.socket.remote_address:
        return []
    return [Peer(address=holder.socket.remote_address, connections=1, size_bytes=unsent_kept_bytes(holder))]


def _stalled_seconds(holder: Holder) -> float:
    measured = holder.summed_sockets or holder.socket
    return (measured.send_stalled_seconds or 0.0) if measured else 0.0


def _stalled(stalled: Sequence[Holder]) -> Iterator[str]:
    if stalled:
        sockets = _connections(sum(one.summed for one in stalled))
        least, most = min(map(_stalled_seconds, stalled)), max(map(_stalled_seconds, stalled))
        longest = f", of one for {format_duration(most)}" if most >= 2 * least else ""
        yield f"the peers of {sockets} acknowledged nothing for at least {format_duration(least)}{longest}"


def _slow(holders: Sequence[Holder], stalled: Sequence[Holder]) -> Iterator[str]:
    slow = [one for one in holders if not _stalled_seconds(one)]
    if slow:
        rate = sum(
            measured.acked_bytes_per_second or 0.0 for one in slow if (measured := one.summed_sockets or one.socket)
        )
        who, left_bytes = "other peers" if stalled else "the peers", sum(map(unsent_bytes, slow))
        yield f"{who} acknowledged {format_bytes(rate)}/s together, with {format_bytes(left_bytes)} left"


def _windows(holders: Sequence[Holder]) -> Iterator[str]:
    """Yield what the receive windows of single connections tell: a closed one is the peer's full receive queue."""
    windows = [one.socket.peer_window_closed for one in holders if one.socket]
    closed = sum(bool(one) for one in windows)
    if closed:
        yield f"the peers of {closed} of the {len(windows)} largest connections have closed their receive windows"
    elif windows:
        yield "no peer of the largest connections has closed its receive window: they may not be reachable"


def _on_this_node(holders: Sequence[Holder], holdings: Sequence[Holding]) -> Iterator[str]:
    """Yield which processes of this node are at the other end of connections, and have unread data there."""
    others = _by_addresses(holdings)
    found = [
        other
        for one in holders
        if one.socket
        and (other := others.get((one.socket.remote_address, one.socket.local_address)))
        and other.unread_bytes
    ]
    by_process: dict[object, list[Holder]] = {}
    for other in found:
        by_process.setdefault(other.owners[0].pid if other.owners else id(other), []).append(other)
    for ends in sorted(by_process.values(), key=lambda one: -len(one))[:_PEERS_ON_NODE]:
        unread = format_bytes(sum(one.unread_bytes for one in ends))
        if len(ends) == 1 or not ends[0].owners:
            yield f"the other end is on this node, and the cause: {holder_name(ends[0])} has {unread} unread"
        else:
            who = process_name(ends[0].owners[0])
            yield f"{len(ends)} of the other ends are on this node, and the cause: {who} has {unread} unread there"


def _by_addresses(holdings: Sequence[Holding]) -> Mapping[tuple[str, str], Holder]:
    """Return the connections by their local and remote address, which are the other end's in the other order."""
    return {
        (one.holder.socket.local_address, one.holder.socket.remote_address): one.holder
        for one in holdings
        if one.holder.socket and one.holder.socket.remote_address
    }


def _freed_by(situation: Situation, group: Group, holders: Sequence[Holder]) -> FreedBy:
    freed_bytes = exclusive_bytes(group.members, situation.measured.holdings, page_bytes=situation.page_bytes)
    whose = f" of {group_subject(group.scope, holders)}" if holders[0].owners else ""
    return FreedBy(
        action=f"Close these connections{whose}, or fix their peers: reading frees it."[: limits.MAX_SENTENCE],
        size_bytes=freed_bytes,
    )
