"""Finding: sockets that are read, but so slowly that their backlog stays for long (docs/findings.md)."""

from collections.abc import Collection, Iterator, Sequence

from memdiag_api import limits
from memdiag_api.evidence import Holder, Pace, SuspectScope
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.freed import exclusive_bytes
from memdiag_node.findings.groups import (
    Group,
    find_groups,
    group_owner,
    group_subject,
    is_socket,
    kept_together,
    main_class,
)
from memdiag_node.findings.naming import fd_text
from memdiag_node.findings.situation import Situation
from memdiag_node.holding import Holding


def slow_readers(situation: Situation, left: Collection[int]) -> Iterator[Draft]:
    """Yield a finding for each group of slow readers that kept the suspect size at both ends of the window.

    `left`: the indexes of the holders that no finding is about yet.
    """
    holdings = situation.measured.holdings
    slow = [
        index
        for index in sorted(left)
        if is_socket(holdings[index]) and is_slow(holdings[index].holder, situation.thresholds.slow_drain_seconds)
    ]

    def kept_throughout(members: Sequence[Holding]) -> int:
        now_bytes = sum(kept_together(members, situation.page_bytes).values())
        return min(now_bytes, sum(one.holder.kept_throughout_bytes or 0 for one in members))

    for group in find_groups(holdings, slow, situation.suspect_bytes, kept_throughout):
        yield _draft(situation, group)


def is_slow(holder: Holder, drain_seconds: float) -> bool:
    """Return whether a socket is read, and its backlog would take `drain_seconds` or more at the measured rate."""
    if holder.summed_sockets:
        return holder.summed_sockets.reading is Pace.SLOW
    rate = read_rate(holder)
    return rate > 0 and holder.unread_bytes >= rate * drain_seconds


def read_rate(holder: Holder) -> float:
    """Return the bytes that were read per second; 0 if that is not known."""
    measured = holder.summed_sockets or holder.socket
    return (measured.read_bytes_per_second or 0.0) if measured else 0.0


def _arrival_rate(holder: Holder) -> float:
    measured = holder.summed_sockets or holder.socket
    return (measured.arrived_bytes_per_second or 0.0) if measured else 0.0


def _draft(situation: Situation, group: Group) -> Draft:
    holdings = situation.measured.holdings
    members = [holdings[index] for index in group.members]
    holders = [one.holder for one in members]
    claims = kept_together(members, situation.page_bytes)
    size_bytes = sum(claims.values())
    rate, arrival_rate = sum(map(read_rate, holders)), sum(map(_arrival_rate, holders))
    unread_bytes = sum(one.unread_bytes for one in holders)
    return Draft(
        kind=FindingKind.SLOW_READER,
        memory_class=main_class(claims),
        size_bytes=size_bytes,
        claims_bytes=claims,
        owner=group_owner(group.scope, holders),
        leak=LeakAnswer.UNKNOWN,
        is_notable=True,
        freed_by=_freed_by(situation, group, holders),
        confidence=Confidence.MEDIUM,
        sentence=f"{_who(group, holders)} at {format_bytes(rate)}/s, with {format_bytes(unread_bytes)} unread that pin "
        f"{format_bytes(size_bytes)}: {_drain(unread_bytes, rate, arrival_rate)}.",
        reasons=[
            f"at least {format_bytes(group.size_bytes)} were kept from the start of the window to its end (threshold: "
            f"{format_bytes(situation.suspect_bytes)})",
            f"at this rate the backlog takes {format_duration(unread_bytes / rate)} (threshold: "
            f"{format_duration(situation.thresholds.slow_drain_seconds)})",
            f"{format_bytes(arrival_rate)}/s arrived in the window",
            *_ages(holders),
        ],
        advice="Check why it reads so slowly: it may wait for something else, or read too little at a time. If it does "
        "not need the data, let it close the socket.",
        holders=group.members,
        unread_bytes=unread_bytes,
        scope=group.scope,
    )


def _who(group: Group, holders: Sequence[Holder]) -> str:
    subject = group_subject(group.scope, holders)
    sockets = sum(one.summed for one in holders)
    if group.scope is SuspectScope.NODE:
        return f"{subject} read {sockets} sockets"
    if not holders[0].owners:
        return f"{subject} is read"
    return f"{subject} {fd_text(holders[0])} reads" if sockets == 1 else f"{subject} reads {sockets} sockets"


def _drain(unread_bytes: int, rate: float, arrival_rate: float) -> str:
    if arrival_rate >= rate:
        return "data arrives no slower than it is read, so the backlog never drains"
    return f"the backlog would take {format_duration(unread_bytes / rate)} to drain"


def _ages(holders: Sequence[Holder]) -> Iterator[str]:
    ages = [one.unread_age_seconds for one in holders if one.unread_age_seconds]
    if ages:
        yield f"the oldest unread data is at least {format_duration(max(ages))} old"


def _freed_by(situation: Situation, group: Group, holders: Sequence[Holder]) -> FreedBy:
    freed_bytes = exclusive_bytes(group.members, situation.measured.holdings, page_bytes=situation.page_bytes)
    if not holders[0].owners:
        return FreedBy(action="Close the connection at its peer.", size_bytes=freed_bytes)
    who = group_subject(group.scope, holders)
    return FreedBy(
        action=f"Restart or fix {who}: reading or closing the sockets frees it."[: limits.MAX_SENTENCE],
        size_bytes=freed_bytes,
    )
