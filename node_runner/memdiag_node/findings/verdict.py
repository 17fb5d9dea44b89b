"""The verdict: one rule for each answer, decided from the evidence alone. docs/verdicts.md documents the rules."""

from collections.abc import Sequence

from memdiag_api import limits
from memdiag_api.evidence import (
    LEAK_CHECKS,
    Holder,
    Owner,
    Queue,
    Stack,
    SuspectScope,
    Trend,
    Verdict,
    VerdictKind,
)
from memdiag_api.findings import Confidence
from memdiag_api.memory_classes import ClassName
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.findings.doubts import (
    Doubt,
    census_doubts,
    check_doubts,
    name_doubts,
    scan_doubts,
    trace_doubts,
)
from memdiag_node.findings.large import held, other_classes, unheld
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.suspects import Pinned, StuckSockets, find_suspect
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.trace.stacks import first_name

_ID_SHOWN = 12


def decide_verdict(measured: Measurements, pinned: Pinned, thresholds: Thresholds, *, held_bytes: int) -> Verdict:
    """Return the verdict of the first rule that applies: a leak, a reason why none can be ruled out, no leak.

    `pinned` is what `measured.holdings` pin, by owner. `held_bytes` is the part of allocpage that they have.
    """
    doubts = _doubts(measured, pinned.stuck, thresholds)
    return (
        _pinned(measured, pinned, thresholds)
        or _growing(measured, thresholds)
        or _large(measured, pinned, thresholds, held_bytes=held_bytes, doubts=doubts)
        or _doubtful(measured, pinned.stuck, thresholds, doubts)
        or _no_leak(measured, thresholds, doubts)
    )


def _doubts(measured: Measurements, together: StuckSockets, thresholds: Thresholds) -> list[Doubt]:
    """Return everything that reduces the confidence in NoLeak, with doubts that rule it out first."""
    suspect_bytes = thresholds.suspect_bytes(measured.host.mem_total_bytes)
    doubts = list(
        check_doubts(
            measured.checks,
            window_seconds=measured.window_seconds,
            stuck_seconds=thresholds.stuck_floor_seconds,
        )
    )
    if together.kept_bytes >= suspect_bytes:
        doubts.append(_pinned_by_many(together, suspect_bytes))
    if measured.coverage:
        holders = [measured.holdings[index].holder for index in together.holders]
        doubts += scan_doubts(measured.coverage, holders, suspect_bytes=suspect_bytes)
    if measured.trace:
        doubts += trace_doubts(measured.trace, measured.breakdown, suspect_bytes=suspect_bytes)
    doubts += name_doubts(measured.stacks, suspect_bytes=suspect_bytes)
    if measured.census:
        doubts += census_doubts(measured.census)
    if measured.window.interrupted:
        doubts.append(Doubt("the window was ended early", forbids_no=False))
    doubts += measured.doubts
    return sorted(doubts, key=lambda doubt: not doubt.forbids_no)


def _pinned_by_many(together: StuckSockets, limit_bytes: int) -> Doubt:
    """Return the doubt about stuck sockets with only the node in common: they keep much, but there is no suspect."""
    return Doubt(
        f"{together.sockets} stuck sockets of the node together pin {_kept(together)} "
        f"with {format_bytes(together.unread_bytes)} unread for at least {together.stuck_seconds:.0f} s, but no single "
        f"process, container or pod pins {format_bytes(limit_bytes)}",
        forbids_no=True,
    )


def _kept(sockets: StuckSockets) -> str:
    """Return what they keep: the part in slab heads apart, because it is not allocpage."""
    kept = format_bytes(sockets.kept_bytes)
    if not sockets.head_bytes:
        return f"{kept} of AllocPage"
    pinned, heads = format_bytes(sockets.pinned_bytes), format_bytes(sockets.head_bytes)
    return f"{kept} ({pinned} of AllocPage and {heads} of packet heads in slab)"


def _confidence(measured: Measurements, *, is_complete: bool = True) -> Confidence:
    """Return the confidence in a leak that was found."""
    is_whole = is_complete and not measured.window.interrupted and set(measured.checks) >= set(LEAK_CHECKS)
    return Confidence.HIGH if is_whole else Confidence.MEDIUM


def _pinned(measured: Measurements, pinned: Pinned, thresholds: Thresholds) -> Verdict | None:
    limit_bytes = thresholds.suspect_bytes(measured.host.mem_total_bytes)
    suspect = find_suspect(pinned.groups, limit_bytes)
    if suspect is None:
        return None
    holders = measured.holders
    index = suspect.holders[0]
    holder = holders[index]
    size = format_bytes(suspect.kept_bytes)
    incomplete = [queue for one in suspect.holders for queue in _queues(holders[one]) if not queue.complete]
    main_stack = holder.filled_by[0].stack if holder.filled_by else None
    return _verdict(
        VerdictKind.PINNED_BY_UNREAD_SOCKET,
        _confidence(measured, is_complete=not incomplete),
        f"{_who(suspect, holders)} pins {size}.",
        reasons=[
            f"nothing was read during that time, and {size} are pinned (threshold: {format_bytes(limit_bytes)})",
            *_heads(suspect),
            f"each unread byte keeps {suspect.kept_bytes / max(1, suspect.unread_bytes):.0f} bytes from being freed",
            *_filled_by(holder, measured.stacks),
        ],
        advice=_advice(suspect, holder),
        holder=index,
        stack=main_stack,
        suspect=suspect,
    )


def _heads(suspect: StuckSockets) -> list[str]:
    """Return what part of it is slab, if any."""
    if not suspect.head_bytes:
        return []
    pinned, heads = format_bytes(suspect.pinned_bytes), format_bytes(suspect.head_bytes)
    return [f"{pinned} of it are blocks of pages, and {heads} are heads of packets in slab, not allocpage"]


def _growing(measured: Measurements, thresholds: Thresholds) -> Verdict | None:
    limit_bytes = thresholds.suspect_bytes(measured.host.mem_total_bytes)
    for index, stack in enumerate(measured.stacks):
        frame = first_name(stack.frames)
        if stack.trend is not Trend.GROWING or stack.outstanding_bytes < limit_bytes or frame is None:
            continue
        size, rate = format_bytes(stack.outstanding_bytes), format_bytes(stack.growth_bytes_per_second)
        return _verdict(
            VerdictKind.GROWING_KERNEL_ALLOCATION,
            _confidence(measured),
            f"Allocations through {frame} grow by {rate}/s: {size} were not freed in the window.",
            reasons=[
                f"{size} are outstanding, allocated throughout the window (threshold: {format_bytes(limit_bytes)})",
                f"growth is {rate}/s, with a standard error of {format_bytes(stack.growth_error_bytes_per_second)}/s",
            ],
            advice="Run a longer trace to see whether the growth continues. The call stack shows the kernel code that "
            "allocates, and held-by shows the holder, if known.",
            stack=index,
            suspect_bytes=stack.outstanding_bytes,
        )
    return None


def _large(
    measured: Measurements, pinned: Pinned, thresholds: Thresholds, *, held_bytes: int, doubts: Sequence[Doubt]
) -> Verdict | None:
    if measured.breakdown is None:
        return None
    limit_bytes = thresholds.large_bytes(measured.host.mem_total_bytes)
    candidates = [
        unheld(measured.breakdown, held_bytes, measured.stacks, measured.census),
        *other_classes(measured.breakdown, measured.holders, pinned.largest_keepers),
    ]
    if keeper := pinned.largest_keepers.get(ClassName.ALLOC_PAGE):
        candidates.append(held(measured.holders, keeper, held_bytes - pinned.stuck.pinned_bytes))
    parts = sorted((part for part in candidates if part.size_bytes >= limit_bytes), key=lambda part: -part.size_bytes)
    if not parts:
        return None
    sentence = "; ".join(part.sentence for part in parts)
    return _verdict(
        VerdictKind.LARGE_BUT_UNEXPLAINED,
        Confidence.MEDIUM,
        sentence[:1].upper() + sentence[1:] + ".",
        reasons=[
            f"the threshold for unexplained memory of a class is {format_bytes(limit_bytes)}",
            *(reason for part in parts for reason in part.reasons),
            *(doubt.sentence for doubt in doubts),
        ],
        advice=parts[0].advice,
        holder=next((part.holder for part in parts if part.holder is not None), None),
        stack=next((part.stack for part in parts if part.stack is not None), None),
        suspect_bytes=parts[0].size_bytes,
    )


def _doubtful(
    measured: Measurements, together: StuckSockets, thresholds: Thresholds, doubts: Sequence[Doubt]
) -> Verdict | None:
    grave = [doubt.sentence for doubt in doubts if doubt.forbids_no]
    if not grave:
        return None
    is_pinned = together.kept_bytes >= thresholds.suspect_bytes(measured.host.mem_total_bytes)
    largest = together.holders[0] if is_pinned else None
    named = "" if largest is None else f" One of the largest holders is {_name(measured.holdings[largest].holder)}."
    return _verdict(
        VerdictKind.INCONCLUSIVE,
        Confidence.LOW,
        f"No leak was found, but a leak cannot be ruled out: {'; '.join(grave)}.{named}",
        reasons=[doubt.sentence for doubt in doubts if not doubt.forbids_no],
        advice="Check the holders below: do their processes read late, or not at all?"
        if is_pinned
        else "Check the missing and degraded needs below, or run again with all checks when the node is less busy.",
        holder=largest,
        suspect=together if is_pinned else None,
    )


def _no_leak(measured: Measurements, thresholds: Thresholds, doubts: Sequence[Doubt]) -> Verdict:
    limit = format_bytes(thresholds.suspect_bytes(measured.host.mem_total_bytes))
    large = format_bytes(thresholds.large_bytes(measured.host.mem_total_bytes))
    breakdown = measured.breakdown
    alloc_page = f"; allocpage has {format_bytes(breakdown.alloc_page_bytes)}" if breakdown else ""
    return _verdict(
        VerdictKind.NO_LEAK,
        Confidence.MEDIUM if doubts else Confidence.HIGH,
        f"No process, container or pod pins {limit} or more with unread data; no call stack keeps allocating "
        f"{limit} or more without freeing it; no class of memory that can leak has {large} or more unexplained"
        f"{alloc_page}.",
        reasons=[
            f"the window was {measured.window_seconds:.0f} s: a slower leak needs a longer window",
            *(doubt.sentence for doubt in doubts),
        ],
    )


def _verdict(
    kind: VerdictKind,
    confidence: Confidence,
    sentence: str,
    *,
    reasons: Sequence[str] = (),
    advice: str = "",
    holder: int | None = None,
    stack: int | None = None,
    suspect: StuckSockets | None = None,
    suspect_bytes: int = 0,
) -> Verdict:
    """Return a verdict with all texts cut to the limits of the document: names in them can be long."""
    return Verdict(
        kind=kind,
        confidence=confidence,
        sentence=sentence[: limits.MAX_SENTENCE],
        reasons=[reason[: limits.MAX_SENTENCE] for reason in reasons[: limits.MAX_REASONS]],
        advice=advice[: limits.MAX_SENTENCE],
        holder=holder,
        stack=stack,
        suspect_bytes=suspect.kept_bytes if suspect else suspect_bytes,
        suspect_unread_bytes=suspect.unread_bytes if suspect else 0,
        scope=suspect.scope if suspect else None,
    )


def _queues(holder: Holder) -> Sequence[Queue]:
    return holder.socket.queues if holder.socket else ()


def _who(suspect: StuckSockets, holders: Sequence[Holder]) -> str:
    """Return who has unread data, how much, and for how long."""
    first = holders[suspect.holders[0]]
    unread = f"{format_bytes(suspect.unread_bytes)} unread for at least {suspect.stuck_seconds:.0f} s"
    if suspect.scope is SuspectScope.PROCESS:
        others = suspect.sockets - first.summed
        more = f" and {others} more of its sockets" if others else ""
        return f"{_name(first)}{more}: {unread}"
    return (
        f"{_group(suspect, first)}, {suspect.sockets} sockets of {suspect.processes} processes, the largest being "
        f"{_name(first)}: {unread}"
    )


def _group(suspect: StuckSockets, first: Holder) -> str:
    owner = first.owners[0]
    if suspect.scope is SuspectScope.CONTAINER:
        return f"container {owner.container_id[:_ID_SHOWN]}"
    return f"pod {owner.pod_uid}"


def _advice(suspect: StuckSockets, first: Holder) -> str:
    if not first.owners:
        return (
            "No process can be restarted to free it. Check what the peer still sends, and close the connection there."
        )
    if suspect.scope is SuspectScope.PROCESS:
        return (
            f"Check why {_process(first)} is not reading {_fd(first)}. Restarting or fixing it frees the memory as "
            "soon as it reads or closes the sockets."
        )
    return (
        f"Check why the processes of {_group(suspect, first)} are not reading their sockets. Restarting or fixing them "
        "frees the memory as soon as they read or close the sockets."
    )


def _name(holder: Holder) -> str:
    if holder.owners:
        return f"{_process(holder)} {_fd(holder)}"
    subject = f"{holder.summed} sockets" if holder.summed > 1 else "a socket"
    if holder.owners_total and not holder.unowned_reason:
        return f"{subject} of a process that has ended"
    return f"{subject} that no process holds ({holder.unowned_reason or 'reason unknown'})"


def _process(holder: Holder) -> str:
    owner: Owner = holder.owners[0]
    return shown_process(owner.comm, owner.pid)


def _fd(holder: Holder) -> str:
    if holder.summed > 1:
        return f"{holder.summed} of its sockets"
    fds = holder.owners[0].fds
    return "fd " + ",".join(map(str, fds[:3])) if fds else "its socket"


def _filled_by(holder: Holder, stacks: Sequence[Stack]) -> list[str]:
    return [
        f"{part.share:.0%} of what it pins was allocated in the window through {stacks[part.stack].frames[0]}"
        for part in holder.filled_by[:2]
        if part.stack < len(stacks) and stacks[part.stack].frames
    ]
