"""The verdict: one rule for each answer, decided from the evidence alone. docs/verdicts.md says the same for users."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from memdiag_api.evidence import (
    Breakdown,
    Census,
    Check,
    Confidence,
    Holder,
    HolderKind,
    Owner,
    Queue,
    Stack,
    Trend,
    Verdict,
    VerdictKind,
)
from memdiag_api.units import format_bytes
from memdiag_node.analyze.stacks import first_name, lacks_names

MIB = 1 << 20
_MAX_PARTS = 4
_PART_SHARE = 0.1
_ID_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which size on a finding matters: the larger of a floor and a share of the node's memory.

    The floors keep small machines quiet: a healthy node's queues and caches move by some MiB all the time. The shares
    keep large ones quiet: 0.1 % of 512 GiB is what a busy server's queues hold in passing.
    """

    suspect_floor_bytes: int = 16 * MIB
    suspect_share: float = 0.001
    large_floor_bytes: int = 1024 * MIB
    large_share: float = 0.1
    stuck_floor_seconds: float = 1.0

    def suspect_bytes(self, mem_total_bytes: int) -> int:
        """Bytes from which on pinned or growing memory makes a suspect."""
        return max(self.suspect_floor_bytes, round(self.suspect_share * mem_total_bytes))

    def large_bytes(self, mem_total_bytes: int) -> int:
        """Bytes from which on allocpage is large by itself."""
        return max(self.large_floor_bytes, round(self.large_share * mem_total_bytes))


@dataclass(frozen=True, slots=True)
class Findings:
    """What the verdict rests on."""

    mem_total_bytes: int
    checks: Sequence[Check]
    """The checks that could be made."""
    interrupted: bool
    window_seconds: float
    """Time between the two looks at the sockets, about."""
    breakdown: Breakdown | None = None
    census: Census | None = None
    stacks: Sequence[Stack] = field(default_factory=tuple)
    holders: Sequence[Holder] = field(default_factory=tuple)
    explained_bytes: int = 0
    """Of allocpage: known to be held by somebody."""
    pinned_together_bytes: Callable[[Sequence[int]], int] | None = None
    """What these holders pin together, blocks that they share counted once; None: they share none."""

    def pinned_together(self, holders: Sequence[int]) -> int:
        """Bytes that the holders with these indexes pin together."""
        if self.pinned_together_bytes is not None:
            return self.pinned_together_bytes(holders)
        return sum(self.holders[index].pinned_bytes for index in holders)


def decide_verdict(findings: Findings, thresholds: Thresholds) -> Verdict:
    """The first rule that applies: a stuck socket, a growing stack, a large remainder, no leak."""
    return (
        _pinned(findings, thresholds)
        or _growing(findings, thresholds)
        or _large(findings, thresholds)
        or _nothing_found(findings, thresholds)
    )


@dataclass(frozen=True, slots=True)
class _StuckOwner:
    """The stuck sockets of one process, and what they pin together."""

    holders: tuple[int, ...]
    pinned_bytes: int
    unread_bytes: int
    stuck_seconds: float


def _stuck_owners(findings: Findings, thresholds: Thresholds) -> list[_StuckOwner]:
    def pid(index: int) -> int:
        owners = findings.holders[index].owners
        return owners[0].pid if owners else 0

    stuck = [
        index
        for index, holder in enumerate(findings.holders)
        if holder.kind is HolderKind.SOCKET and (holder.stuck_seconds or 0) >= thresholds.stuck_floor_seconds
    ]
    groups = [tuple(group) for _, group in groupby(sorted(stuck, key=lambda index: (pid(index), index)), key=pid)]
    owners = [
        _StuckOwner(
            holders=tuple(sorted(group, key=lambda index: _by_weight(findings.holders[index]))),
            pinned_bytes=findings.pinned_together(group),
            unread_bytes=sum(findings.holders[index].unread_bytes for index in group),
            stuck_seconds=min(findings.holders[index].stuck_seconds or 0 for index in group),
        )
        for group in groups
    ]
    return sorted(owners, key=lambda owner: -owner.pinned_bytes)


def _by_weight(holder: Holder) -> tuple[bool, int]:
    """A single socket before many that are summed up: it can be named."""
    return holder.summed > 1, -holder.pinned_bytes


def _pinned(findings: Findings, thresholds: Thresholds) -> Verdict | None:
    limit_bytes = thresholds.suspect_bytes(findings.mem_total_bytes)
    suspects = [owner for owner in _stuck_owners(findings, thresholds) if owner.pinned_bytes >= limit_bytes]
    if not suspects:
        return None
    suspect = suspects[0]
    index = suspect.holders[0]
    holder = findings.holders[index]
    others = sum(findings.holders[one].summed for one in suspect.holders[1:])
    who = _who(holder) + (f" and {others} more of its sockets" if others else "")
    unread, pinned = format_bytes(suspect.unread_bytes), format_bytes(suspect.pinned_bytes)
    incomplete = [queue for one in suspect.holders for queue in _queues(findings.holders[one]) if not queue.complete]
    main_stack = holder.filled_by[0].stack if holder.filled_by else None
    return Verdict(
        kind=VerdictKind.PINNED_BY_UNREAD_SOCKET,
        confidence=Confidence.MEDIUM if incomplete or findings.interrupted else Confidence.HIGH,
        sentence=f"{who}: {unread} unread for at least {suspect.stuck_seconds:.0f} s pins {pinned}.",
        reasons=[
            f"nothing was read in the meantime, and {pinned} are pinned: a suspect from {format_bytes(limit_bytes)} on",
            f"each unread byte keeps {suspect.pinned_bytes / max(1, suspect.unread_bytes):.0f} bytes from being freed",
            *_filled_by(holder, findings.stacks),
        ],
        advice=f"Find out why {_process(holder)} does not read {_fd(holder)}, and restart or fix it: "
        f"the memory comes back as soon as it reads or closes.",
        holder=index,
        stack=main_stack,
        suspect_bytes=suspect.pinned_bytes,
    )


def _growing(findings: Findings, thresholds: Thresholds) -> Verdict | None:
    limit_bytes = thresholds.suspect_bytes(findings.mem_total_bytes)
    for index, stack in enumerate(findings.stacks):
        frame = first_name(stack.frames)
        if stack.trend is not Trend.GROWING or stack.outstanding_bytes < limit_bytes or frame is None:
            continue
        size, rate = format_bytes(stack.outstanding_bytes), format_bytes(stack.growth_bytes_per_second)
        return Verdict(
            kind=VerdictKind.GROWING_KERNEL_ALLOCATION,
            confidence=Confidence.MEDIUM if findings.interrupted else Confidence.HIGH,
            sentence=f"Allocations through {frame} grow by {rate}/s: {size} were not freed in the window.",
            reasons=[
                f"{size} outstanding, a suspect from {format_bytes(limit_bytes)} on, born all through the window",
                f"growth {rate}/s, give or take {format_bytes(stack.growth_error_bytes_per_second)}/s",
            ],
            advice="Trace for longer to see whether it goes on; the call stack names the kernel code that allocates, "
            "and held-by names who keeps it where that is known.",
            stack=index,
            suspect_bytes=stack.outstanding_bytes,
        )
    return None


def _large(findings: Findings, thresholds: Thresholds) -> Verdict | None:
    if findings.breakdown is None:
        return None
    limit_bytes = thresholds.large_bytes(findings.mem_total_bytes)
    alloc_page_bytes = findings.breakdown.alloc_page_bytes
    unexplained_bytes = alloc_page_bytes - findings.explained_bytes
    if unexplained_bytes < limit_bytes:
        return None
    return Verdict(
        kind=VerdictKind.LARGE_BUT_UNEXPLAINED,
        confidence=Confidence.MEDIUM,
        sentence=f"Allocpage has {format_bytes(alloc_page_bytes)}; {format_bytes(unexplained_bytes)} of it are neither "
        f"held by a known holder nor growing now.",
        reasons=[
            f"unexplained allocpage matters from {format_bytes(limit_bytes)} on",
            *(_where(findings.census, unexplained_bytes) if findings.census else ()),
        ],
        advice="It was allocated before the window. Trace for longer while the workload runs, so that growth shows, "
        "or look at what drivers and other kernel users preallocate.",
        suspect_bytes=unexplained_bytes,
    )


def _where(census: Census, unexplained_bytes: int) -> Iterator[str]:
    """What the census says of the unexplained part: bounds from above, those that are a tenth of it or more."""
    parts = [
        (blocks.size_bytes - blocks.held_bytes, f"are blocks of order {blocks.order}")
        for blocks in census.compound
        if blocks.held_bytes is not None
    ]
    parts += [
        (
            share.single_bytes + share.compound_bytes - share.held_bytes,
            f"are charged to container {share.container_id[:_ID_SHOWN]}",
        )
        for share in census.charged or ()
        if share.container_id and share.held_bytes is not None
    ]
    for size_bytes, what in sorted(parts, reverse=True)[:_MAX_PARTS]:
        if size_bytes >= _PART_SHARE * unexplained_bytes:
            yield f"at most {format_bytes(size_bytes)} of it {what} and in no known holder"


def _nothing_found(findings: Findings, thresholds: Thresholds) -> Verdict:
    limit = format_bytes(thresholds.suspect_bytes(findings.mem_total_bytes))
    looked_for = []
    if Check.SOCKET_QUEUES in findings.checks and findings.window_seconds >= thresholds.stuck_floor_seconds:
        looked_for.append(f"no process leaves {limit} or more pinned by unread data")
    if Check.ALLOC_PAGE_TRACE in findings.checks:
        looked_for.append(f"no call stack keeps allocating {limit} or more without freeing")
    if findings.breakdown is not None:
        looked_for.append(f"allocpage has {format_bytes(findings.breakdown.alloc_page_bytes)}")
    if not looked_for:
        return Verdict(
            kind=VerdictKind.INCONCLUSIVE,
            confidence=Confidence.LOW,
            sentence="None of the checks that were asked for could be made.",
            advice="See the needs below: each says what is missing and how to mend it.",
        )
    complete = {Check.SOCKET_QUEUES, Check.ALLOC_PAGE_TRACE} <= set(findings.checks)
    is_judged = complete and not lacks_names(findings.stacks, thresholds.suspect_bytes(findings.mem_total_bytes))
    confidence = Confidence.LOW if not is_judged else Confidence.MEDIUM if findings.interrupted else Confidence.HIGH
    sentence = "; ".join(looked_for)
    return Verdict(
        kind=VerdictKind.NO_LEAK,
        confidence=confidence,
        sentence=sentence[:1].upper() + sentence[1:] + ".",
        reasons=[f"the window was {findings.window_seconds:.0f} s: a slower leak needs a longer window"],
    )


def _queues(holder: Holder) -> Sequence[Queue]:
    return holder.socket.queues if holder.socket else ()


def _who(holder: Holder) -> str:
    if holder.owners:
        return f"{_process(holder)} {_fd(holder)}"
    subject = f"{holder.summed} sockets" if holder.summed > 1 else "a socket"
    return f"{subject} that no process holds ({holder.unowned_reason})"


def _process(holder: Holder) -> str:
    if not holder.owners:
        return "its peer"
    owner: Owner = holder.owners[0]
    return f"{owner.comm}[{owner.pid}]"


def _fd(holder: Holder) -> str:
    if holder.summed > 1:
        return f"{holder.summed} of its sockets"
    fds = holder.owners[0].fds if holder.owners else []
    return "fd " + ",".join(map(str, fds[:3])) if fds else "its socket"


def _filled_by(holder: Holder, stacks: Sequence[Stack]) -> list[str]:
    return [
        f"{part.share:.0%} of what it pins was allocated in the window through {stacks[part.stack].frames[0]}"
        for part in holder.filled_by[:2]
        if part.stack < len(stacks) and stacks[part.stack].frames
    ]
