"""Finding: sockets whose data nobody reads, by process, container, pod and node (docs/findings.md)."""

from collections.abc import Iterator, Sequence

from memdiag_api import limits
from memdiag_api.evidence import Holder, Queue, Stack, SuspectScope
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.freed import exclusive_bytes
from memdiag_node.findings.groups import group_owner
from memdiag_node.findings.naming import fd_text, holder_name, process_name, short_id
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.suspects import StuckSockets, find_suspects, stuck_sockets
from memdiag_node.holding import kept_bytes

REST_PACKETS, REST_BYTES = 2, 4096
"""The most that an idle connection leaves unread: the rest of a request, the end of a TLS session."""
_NOTABLE_SLAB_SHARE = 0.01


def unread_sockets(situation: Situation) -> Iterator[Draft]:
    """Yield a finding for each group of stuck sockets that keeps the suspect size, and for the rest of the node."""
    holdings = situation.measured.holdings
    stuck = stuck_sockets(holdings, stuck_floor_seconds=situation.thresholds.stuck_floor_seconds)
    suspects = find_suspects(holdings, stuck, limit_bytes=situation.suspect_bytes, page_bytes=situation.page_bytes)
    for suspect in suspects:
        yield _draft(situation, suspect)


def leak_answer(situation: Situation, suspect: StuckSockets) -> LeakAnswer:
    """Return whether unread data is leaked: Yes if the suspect size has waited for the leak age, or was added.

    Data that was not read for a few seconds may be back-pressure. The rest of a request on an idle connection is one
    or two packets. Sockets with only the node in common may each have a reason of their own.
    """
    if suspect.scope is SuspectScope.NODE:
        return LeakAnswer.UNKNOWN
    holders = [situation.measured.holdings[index].holder for index in suspect.holders]
    aged = [
        one for one in holders if waited_seconds(one) >= situation.thresholds.leak_age_seconds and not _is_rest(one)
    ]
    if _grown_bytes(holders) >= situation.suspect_bytes and not all(map(_is_rest, holders)):
        return LeakAnswer.YES
    share = sum(map(kept_bytes, aged)) / max(1, sum(map(kept_bytes, holders)))
    return LeakAnswer.YES if share * suspect.kept_bytes >= situation.suspect_bytes else LeakAnswer.UNKNOWN


def waited_seconds(holder: Holder) -> float:
    """Return the minimum time for which the oldest unread data has waited."""
    return max(holder.stuck_seconds or 0.0, holder.unread_age_seconds or 0.0)


def _grown_bytes(holders: Sequence[Holder]) -> int:
    """Return how much more they keep than at the start of the window."""
    return sum(max(0, kept_bytes(one) - one.kept_throughout_bytes) for one in holders if one.kept_throughout_bytes)


def _is_rest(holder: Holder) -> bool:
    """Return whether the unread data may be what idle connections leave."""
    few_packets = holder.unread_packets <= REST_PACKETS * holder.summed
    return few_packets and holder.unread_bytes <= REST_BYTES * holder.summed


def _draft(situation: Situation, suspect: StuckSockets) -> Draft:
    measured = situation.measured
    holders = [measured.holdings[index].holder for index in suspect.holders]
    first = holders[0]
    size = format_bytes(suspect.kept_bytes)
    incomplete = any(not queue.complete for one in holders for queue in _queues(one))
    leak = leak_answer(situation, suspect)
    return Draft(
        kind=FindingKind.UNREAD_SOCKET,
        memory_class=ClassName.ALLOC_PAGE if suspect.pinned_bytes >= suspect.slab_bytes else ClassName.SUNRECLAIM,
        size_bytes=suspect.kept_bytes,
        claims_bytes={ClassName.ALLOC_PAGE: suspect.pinned_bytes, ClassName.SUNRECLAIM: suspect.slab_bytes},
        owner=group_owner(suspect.scope, holders),
        leak=leak,
        freed_by=_freed_by(situation, suspect, first),
        confidence=_confidence(leak, is_complete=not incomplete),
        sentence=f"{_who(suspect, holders)} pins {size}.",
        reasons=[
            f"nothing was read during that time, and {size} are pinned (threshold: "
            f"{format_bytes(situation.suspect_bytes)})",
            *_slab_part(suspect),
            *_ratio(suspect),
            *_filled_by(first, measured.stacks),
            *_why_unknown(situation, suspect, holders, leak),
        ],
        advice=_advice(suspect, first),
        holders=suspect.holders,
        stacks=[part.stack for part in first.filled_by[:1]],
        unread_bytes=suspect.unread_bytes,
        scope=suspect.scope,
    )


def _confidence(leak: LeakAnswer, *, is_complete: bool) -> Confidence:
    if leak is not LeakAnswer.YES:
        return Confidence.MEDIUM
    return Confidence.HIGH if is_complete else Confidence.MEDIUM


def _why_unknown(
    situation: Situation, suspect: StuckSockets, holders: Sequence[Holder], leak: LeakAnswer
) -> Iterator[str]:
    if leak is LeakAnswer.YES:
        return
    if suspect.scope is SuspectScope.NODE:
        yield (
            f"no single process, container or pod pins {format_bytes(situation.suspect_bytes)}: it is not known to be "
            "a leak"
        )
    elif max(map(waited_seconds, holders)) < situation.thresholds.leak_age_seconds:
        yield (
            f"it is called a leak only after {situation.thresholds.leak_age_seconds:.0f} s without a read: "
            "back-pressure of a few seconds is not a leak"
        )
    else:
        yield "most of these sockets have one or two unread packets, as idle connections do"


def _freed_by(situation: Situation, suspect: StuckSockets, first: Holder) -> FreedBy:
    freed_bytes = exclusive_bytes(suspect.holders, situation.measured.holdings, page_bytes=situation.page_bytes)
    if not first.owners:
        return FreedBy(action="Close the connection at its peer.", size_bytes=freed_bytes)
    who = {
        SuspectScope.PROCESS: process_name(first.owners[0]),
        SuspectScope.CONTAINER: f"the processes of container {short_id(first.owners[0].container_id)}",
        SuspectScope.POD: f"the processes of pod {first.owners[0].pod_uid}",
    }.get(suspect.scope, "their processes")
    return FreedBy(
        action=f"Restart or fix {who}: reading or closing the sockets frees it."[: limits.MAX_SENTENCE],
        size_bytes=freed_bytes,
    )


def _slab_part(suspect: StuckSockets) -> list[str]:
    """Return what part of it is slab, unless that is little."""
    if suspect.slab_bytes < _NOTABLE_SLAB_SHARE * suspect.kept_bytes:
        return []
    pinned, slab = format_bytes(suspect.pinned_bytes), format_bytes(suspect.slab_bytes)
    return [f"{pinned} of it are blocks of pages, and {slab} are packets in slab, not allocpage"]


def _ratio(suspect: StuckSockets) -> list[str]:
    """Return how much memory an unread byte keeps, if that is much more than itself."""
    ratio = round(suspect.kept_bytes / max(1, suspect.unread_bytes))
    return [f"each unread byte keeps {ratio} bytes from being freed"] if ratio > 1 else []


def _queues(holder: Holder) -> Sequence[Queue]:
    return holder.socket.queues if holder.socket else ()


def _who(suspect: StuckSockets, holders: Sequence[Holder]) -> str:
    """Return who has unread data, how much, and for how long."""
    first = holders[0]
    unread = f"{format_bytes(suspect.unread_bytes)} unread for at least {suspect.stuck_seconds:.0f} s"
    if suspect.scope is SuspectScope.PROCESS:
        others = suspect.sockets - first.summed
        more = f" and {others} more of its sockets" if others else ""
        return f"{holder_name(first)}{more}: {unread}"
    return (
        f"{_group(suspect, first)}, {suspect.sockets} sockets of {suspect.processes} processes, the largest being "
        f"{holder_name(first)}: {unread}"
    )


def _group(suspect: StuckSockets, first: Holder) -> str:
    match suspect.scope:
        case SuspectScope.CONTAINER:
            return f"container {short_id(first.owners[0].container_id)}"
        case SuspectScope.POD:
            return f"pod {first.owners[0].pod_uid}"
        case _:
            return "The node"


def _advice(suspect: StuckSockets, first: Holder) -> str:
    if suspect.scope is SuspectScope.NODE:
        return "Check the holders below: do their processes read late, or not at all?"
    if not first.owners:
        return (
            "No process can be restarted to free it. Check what the peer still sends, and close the connection there."
        )
    if suspect.scope is SuspectScope.PROCESS:
        return (
            f"Check why {process_name(first.owners[0])} is not reading {fd_text(first)}. Restarting or fixing it frees "
            "the memory as soon as it reads or closes the sockets."
        )
    return (
        f"Check why the processes of {_group(suspect, first)} are not reading their sockets. Restarting or fixing them "
        "frees the memory as soon as they read or close the sockets."
    )


def _filled_by(holder: Holder, stacks: Sequence[Stack]) -> list[str]:
    return [
        f"{part.share:.0%} of what it pins was allocated in the window through {stacks[part.stack].frames[0]}"
        for part in holder.filled_by[:2]
        if part.stack < len(stacks) and stacks[part.stack].frames
    ]
