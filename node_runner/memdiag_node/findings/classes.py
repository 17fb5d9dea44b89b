"""Findings about what is left of each class of the breakdown: unexplained, growing, or plain (docs/findings.md)."""

from collections.abc import Iterator, Mapping, Sequence

from memdiag_api.evidence import Census, Holder, Stack
from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.allocation_sites import page_owner_reasons, sites_for
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.naming import counted, process_owner, short_id
from memdiag_node.findings.situation import FREE_CLASSES, RECLAIMABLE_CLASSES, Situation
from memdiag_node.trace.stacks import first_name

CAN_LEAK = (ClassName.ALLOC_PAGE, ClassName.VMALLOC, ClassName.PERCPU, ClassName.SHMEM)
"""Classes in which unexplained memory rules out NoLeak, besides SUnreclaim, which is judged by cache."""
_GROWS = (ClassName.SUNRECLAIM, ClassName.VMALLOC, ClassName.PERCPU, ClassName.SECONDARY_PAGE_TABLES)
"""Classes whose growth is judged as a whole. AllocPage is judged by call stack, user memory by owner."""
_MAX_PARTS = 4
_PART_SHARE = 0.1
_OWNER_SHARE = 0.5
"""Who has half as much as a class grew by is named: growth of single holders is not measured."""

_ADVICE: dict[str, str] = {
    ClassName.VMALLOC: "Check in /proc/vmallocinfo which kernel functions allocated the most, and whether it grows.",
    ClassName.PERCPU: "Check the number of cgroups, network interfaces and BPF maps, and whether it grows.",
    ClassName.SHMEM: "Check the contents of tmpfs mounts (df -t tmpfs) and shared memory (ipcs -m): files stay until "
    "they are deleted.",
}


def known_bytes(situation: Situation, name: str, claimed_bytes: Mapping[str, int], *, traced_bytes: int) -> int:
    """Return how much of a class has a known owner: holders, owners of the class, or a finding. Never above its size.

    `claimed_bytes`: what the other findings account for, by class. A finding about unexplained memory is not one.
    `traced_bytes`: AllocPage of call stacks that findings are about and that is in no holder.
    """
    size_bytes = situation.class_bytes.get(name, 0)
    if name == ClassName.ALLOC_PAGE:
        known = max(situation.held_bytes + traced_bytes, claimed_bytes.get(name, 0))
    else:
        owned = next((one.explained_bytes for one in situation.measured.owners if one.memory_class == name), 0)
        known = max(owned, claimed_bytes.get(name, 0), _held_bytes(situation, name))
    return min(size_bytes, known)


def _held_bytes(situation: Situation, name: str) -> int:
    held_bytes = sum(one.holder.pinned_bytes for one in situation.measured.holdings if one.holder.memory_class == name)
    return held_bytes + situation.measured.own_bytes(name)


def unexplained_classes(
    situation: Situation, claimed_bytes: Mapping[str, int], *, traced_bytes: int
) -> Iterator[Draft]:
    """Yield a finding for each class that can leak and of which the large size has no known owner.

    If no single class has so much, but all of them together do, one finding is about the sum. `claimed_bytes` and
    `traced_bytes` as for `known_bytes`.
    """
    rests: dict[str, int] = {
        name: situation.class_bytes[name] - known_bytes(situation, name, claimed_bytes, traced_bytes=traced_bytes)
        for name in CAN_LEAK
        if name in situation.class_bytes
    }
    found = False
    for name, rest_bytes in rests.items():
        limit_bytes = situation.large_bytes
        if name == ClassName.ALLOC_PAGE:
            limit_bytes = min(limit_bytes, situation.thresholds.unexplained_ceiling_bytes)
        if rest_bytes >= limit_bytes:
            found = True
            yield _unexplained(situation, name, rest_bytes, limit_bytes)
    total_bytes = sum(rests.values())
    if not found and total_bytes >= situation.large_bytes:
        parts = ", ".join(f"{name} {format_bytes(rest)}" for name, rest in rests.items() if rest)
        yield Draft(
            kind=FindingKind.UNEXPLAINED,
            size_bytes=total_bytes,
            claims_bytes=dict(rests),
            leak=LeakAnswer.UNKNOWN,
            confidence=Confidence.MEDIUM,
            sentence=f"{format_bytes(total_bytes)} of kernel memory in several classes are not explained.",
            reasons=[
                f"the threshold for unexplained memory is {format_bytes(situation.large_bytes)}",
                f"unexplained: {parts}",
            ],
            advice="Run it again later to see which of these classes grows.",
            sections=["breakdown"],
        )


def _unexplained(situation: Situation, name: str, rest_bytes: int, limit_bytes: int) -> Draft:
    if name == ClassName.ALLOC_PAGE:
        return _unheld(situation, rest_bytes, limit_bytes)
    return Draft(
        kind=FindingKind.UNEXPLAINED,
        memory_class=name,
        size_bytes=rest_bytes,
        leak=LeakAnswer.UNKNOWN,
        confidence=Confidence.MEDIUM,
        sentence=f"{name} has {format_bytes(rest_bytes)} that no check explains.",
        reasons=[f"the threshold for unexplained memory of a class is {format_bytes(limit_bytes)}"],
        advice=_ADVICE.get(name, ""),
        sections=["breakdown"],
    )


def _unheld(situation: Situation, rest_bytes: int, limit_bytes: int) -> Draft:
    """Return the finding about the part of AllocPage that is in no known holder."""
    measured = situation.measured
    stacks, census = measured.stacks, measured.census
    stack = max(range(len(stacks)), key=lambda index: _unheld_bytes(stacks[index]), default=None)
    taken_bytes = _unheld_bytes(stacks[stack]) if stack is not None else 0
    reasons = list(_where(census, rest_bytes)) if census else []
    if census and census.clues:
        reasons += [f"{use.share:.0%} of the {use.subject}: {use.property}" for use in census.clues.frame_uses[:2]]
    reasons += [*page_owner_reasons(measured.machine), *sites_for(measured.machine, ClassName.ALLOC_PAGE)]
    if stack is not None and taken_bytes >= _PART_SHARE * rest_bytes:
        frame = first_name(stacks[stack].frames) or "an unknown stack"
        reasons.insert(0, f"{format_bytes(taken_bytes)} of it were allocated in the window through {frame}")
    else:
        stack = None
    total = format_bytes(situation.class_bytes.get(ClassName.ALLOC_PAGE, 0))
    return Draft(
        kind=FindingKind.UNEXPLAINED,
        memory_class=ClassName.ALLOC_PAGE,
        size_bytes=rest_bytes,
        leak=LeakAnswer.UNKNOWN,
        confidence=Confidence.MEDIUM,
        sentence=f"AllocPage has {total}; {format_bytes(rest_bytes)} of it are neither held by a known holder nor "
        "growing now.",
        reasons=[f"the threshold for unexplained memory of a class is {format_bytes(limit_bytes)}", *reasons],
        advice="Check the call stack in the reasons to see what allocates this memory."
        if stack is not None
        else "It was allocated before the window. Run a longer trace under the usual workload to see whether it grows, "
        "or check what drivers and other kernel users preallocate.",
        stacks=[] if stack is None else [stack],
        sections=["ledger", *(["census"] if census else [])],
    )


def growing_classes(situation: Situation, judged: Mapping[str, int]) -> Iterator[Draft]:
    """Yield a finding for each kernel class that grew by the suspect size in the window.

    `judged`: growth by class that other findings are about, in bytes. What this run itself loaded after the first
    readings is left out.
    """
    seconds = situation.measured.window_seconds
    for name in _GROWS:
        one = situation.classes.get(name)
        if one is None or one.change_bytes is None or not seconds:
            continue
        grown_bytes = one.change_bytes - judged.get(name, 0) - situation.measured.own_bytes(name)
        if grown_bytes < situation.suspect_bytes:
            continue
        members = _largest_holders(situation, name, _OWNER_SHARE * grown_bytes)
        holders = [situation.measured.holdings[index].holder for index in members]
        yield Draft(
            kind=FindingKind.GROWING_CLASS,
            memory_class=name,
            size_bytes=min(grown_bytes, one.size_bytes),
            claims_bytes={},
            owner=process_owner(holders) if holders else MemoryOwner(kind=OwnerKind.KERNEL, name=str(name)),
            trend=situation.trend(grown_bytes / seconds, 0, seconds),
            leak=LeakAnswer.UNKNOWN,
            confidence=Confidence.MEDIUM,
            sentence=f"{name} grew by {format_bytes(grown_bytes)} in the window, to {format_bytes(one.size_bytes)}.",
            reasons=[
                f"the threshold for growth in the window is {format_bytes(situation.suspect_bytes)}",
                *_held_by(holders),
            ],
            holders=members,
            advice="Run it again to see whether the growth continues.",
            sections=["breakdown"],
        )


def _largest_holders(situation: Situation, name: str, least_bytes: float) -> list[int]:
    """Return the holders of the process that has the most of a class, if it has so much; the largest first."""
    grouped: dict[int, list[int]] = {}
    for index, one in enumerate(situation.measured.holdings):
        if one.holder.memory_class == name and one.holder.owners:
            grouped.setdefault(one.holder.owners[0].pid, []).append(index)

    def size_bytes(index: int) -> int:
        return situation.measured.holdings[index].holder.pinned_bytes

    largest = max(grouped.values(), key=lambda group: sum(map(size_bytes, group)), default=[])
    if sum(map(size_bytes, largest)) < least_bytes:
        return []
    return sorted(largest, key=lambda index: -size_bytes(index))


def _held_by(holders: Sequence[Holder]) -> list[str]:
    if not holders:
        return []
    size = format_bytes(sum(one.pinned_bytes for one in holders))
    return [f"{process_owner(holders).name} has {size} of it now, in {counted(holders[0].kind, len(holders))}"]


def plain_classes(situation: Situation, claimed_bytes: Mapping[str, int]) -> Iterator[Draft]:
    """Yield a plain finding for each class of which the notable size is in no other finding."""
    for name, size_bytes in situation.class_bytes.items():
        rest_bytes = size_bytes - claimed_bytes.get(name, 0)
        if name in FREE_CLASSES or rest_bytes < situation.notable_bytes:
            continue
        is_reclaimable = name in RECLAIMABLE_CLASSES
        others = " in no other finding" if claimed_bytes.get(name, 0) else ""
        yield Draft(
            kind=_PLAIN_KINDS.get(name, FindingKind.LARGE_CLASS),
            memory_class=name,
            size_bytes=rest_bytes,
            leak=LeakAnswer.NO,
            reclaimable=is_reclaimable,
            sentence=f"{name} has {format_bytes(rest_bytes)}{others}"
            f"{', which the kernel frees when memory is needed' if is_reclaimable else ''}.",
            sections=["breakdown"],
        )


_PLAIN_KINDS: dict[str, FindingKind] = {
    ClassName.ANON_PAGES: FindingKind.PROCESS_MEMORY,
    ClassName.FILE_CACHE: FindingKind.FILE_CACHE,
    ClassName.SHMEM: FindingKind.SHARED_MEMORY,
    ClassName.SRECLAIMABLE: FindingKind.RECLAIMABLE_SLAB,
    ClassName.BALLOON: FindingKind.BALLOON,
}


def _unheld_bytes(stack: Stack) -> int:
    return stack.outstanding_bytes - stack.explained_bytes if stack.memory_class == ClassName.ALLOC_PAGE else 0


def _where(census: Census, unexplained_bytes: int) -> Iterator[str]:
    """Yield bounds from the census for the unexplained part, if they are at least a tenth of it.

    A census that was cut short has bounds only for the frames that it scanned, which the sentence says. What is in no
    compound block is mostly single pages, such as those of a driver that loses them one by one.
    """
    blocks = [(one.size_bytes - one.held_bytes, one.order) for one in census.compound if one.held_bytes is not None]
    parts = [(size_bytes, f"are blocks of order {order}") for size_bytes, order in blocks]
    parts += [
        (
            share.single_bytes + share.compound_bytes - share.held_bytes,
            f"are charged to container {short_id(share.container_id)}",
        )
        for share in census.charged or ()
        if share.container_id and share.held_bytes is not None
    ]
    is_whole = census.scanned_share >= 1
    frames = "" if is_whole else f"in the {census.scanned_share:.0%} of page frames that were scanned, "
    for size_bytes, what in sorted(parts, reverse=True)[:_MAX_PARTS]:
        if size_bytes >= _PART_SHARE * unexplained_bytes * census.scanned_share:
            yield f"{frames}at most {format_bytes(size_bytes)} of it {what} and in no known holder"
    single_bytes = unexplained_bytes - sum(size_bytes for size_bytes, _ in blocks)
    if is_whole and len(blocks) == len(census.compound) and single_bytes >= _PART_SHARE * unexplained_bytes:
        yield f"at least {format_bytes(single_bytes)} of it are single pages, or blocks without __GFP_COMP"
