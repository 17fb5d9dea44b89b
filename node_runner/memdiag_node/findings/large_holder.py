"""Finding: holders that keep much memory: rings, maps, pipes, page pools, sockets that are read (docs/findings.md)."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from memdiag_api import limits
from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.freed import exclusive_bytes
from memdiag_node.findings.naming import KINDS, counted, holder_name, process_owner, short_id
from memdiag_node.findings.situation import Situation
from memdiag_node.holding import pinned_together_bytes

_SIZED_BY_REQUEST = frozenset(
    {
        HolderKind.PACKET_RING,
        HolderKind.RING_BUFFER,
        HolderKind.IO_URING,
        HolderKind.FTRACE_BUFFER,
        HolderKind.BPF_MAP,
        HolderKind.BPF_PROGRAM,
        HolderKind.XDP_SOCKET,
        HolderKind.DRM_BUFFER,
    }
)
"""Their memory has the size that was asked for when they were made. It does not grow by itself."""
_WITHOUT_PROCESS = frozenset({HolderKind.FTRACE_BUFFER, HolderKind.PAGE_POOL})
"""They belong to the kernel or a device. Only other holders are expected to have a process."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Holders of one kind and class, of one process, container or of several owners."""

    kind: HolderKind
    memory_class: str
    scope: OwnerKind
    members: tuple[int, ...]
    """Indexes of holdings, the largest first."""
    kept_bytes: int
    head_bytes: int


def large_holders(situation: Situation, others: Collection[int]) -> Iterator[Draft]:
    """Yield a finding for each process that keeps the notable size in holders of one kind.

    What is less is summed up by container, and what is less there over the node: first that of no process by itself.
    `others` are the indexes of the holdings that no other finding is about.
    """
    for group in _groups(situation, others):
        yield _draft(situation, group)


def _groups(situation: Situation, others: Collection[int]) -> Iterator[_Group]:
    holdings = situation.measured.holdings
    by_kind: dict[tuple[HolderKind, str], list[int]] = {}
    for index in sorted(others):
        holder = holdings[index].holder
        by_kind.setdefault((holder.kind, holder.memory_class), []).append(index)
    for (kind, memory_class), members in by_kind.items():
        left: Sequence[int] = members
        for scope, key in _SCOPES:
            found, left = _of_scope(situation, left, key)
            for group in found:
                kept_bytes, head_bytes = _kept_bytes(situation, group)
                yield _Group(kind, memory_class, scope, tuple(group), kept_bytes, head_bytes)


def _of_scope(
    situation: Situation, members: Sequence[int], key: Callable[[Holder, int], object]
) -> tuple[list[list[int]], list[int]]:
    """Return the groups that keep the notable size, and the other members."""
    grouped: dict[object, list[int]] = {}
    for index in members:
        grouped.setdefault(key(situation.measured.holdings[index].holder, index), []).append(index)
    large, left = [], list(grouped.pop(None, []))
    for group in grouped.values():
        if sum(_kept_bytes(situation, group)) >= situation.notable_bytes:
            large.append(sorted(group, key=lambda index: -situation.measured.holdings[index].holder.pinned_bytes))
        else:
            left += group
    return large, left


def _kept_bytes(situation: Situation, members: Sequence[int]) -> tuple[int, int]:
    """Return the pinned bytes of holders, each block once, and the bytes of packet heads."""
    holdings = [situation.measured.holdings[index] for index in members]
    return (
        pinned_together_bytes(holdings, page_bytes=situation.page_bytes),
        sum(one.holder.head_bytes for one in holdings),
    )


def _by_process(holder: Holder, index: int) -> object:
    return holder.owners[0].pid if holder.owners else ("holder", index)


def _by_container(holder: Holder, _: int) -> object:
    return holder.owners[0].container_id or None if holder.owners else None


def _without_process(holder: Holder, _: int) -> object:
    return None if holder.owners else "no process"


def _by_node(_: Holder, __: int) -> object:
    return "node"


_SCOPES: tuple[tuple[OwnerKind, Callable[[Holder, int], object]], ...] = (
    (OwnerKind.PROCESS, _by_process),
    (OwnerKind.CONTAINER, _by_container),
    (OwnerKind.NODE, _without_process),
    (OwnerKind.NODE, _by_node),
)


def _draft(situation: Situation, group: _Group) -> Draft:
    holders = [situation.measured.holdings[index].holder for index in group.members]
    size_bytes = group.kept_bytes + group.head_bytes
    leak, why = _leak(situation, group, holders)
    count = sum(one.summed for one in holders)
    subject = counted(group.kind, count)
    return Draft(
        kind=FindingKind.LARGE_HOLDER,
        memory_class=group.memory_class,
        size_bytes=size_bytes,
        claims_bytes={group.memory_class: group.kept_bytes, ClassName.SUNRECLAIM: group.head_bytes},
        owner=_owner(group, holders),
        leak=leak,
        freed_by=_freed_by(
            group, holders, exclusive_bytes(group.members, situation.measured.holdings, page_bytes=situation.page_bytes)
        ),
        confidence=Confidence.HIGH if leak is LeakAnswer.NO else Confidence.MEDIUM,
        sentence=f"{subject[0].upper()}{subject[1:]} of {_whose(group, holders)} keep"
        f"{'s' if count == 1 else ''} {format_bytes(size_bytes)} of {group.memory_class or 'memory'}.",
        reasons=[
            f"the threshold for memory of a holder is {format_bytes(situation.notable_bytes)}",
            why,
            *(f"the largest: {one.description}" for one in holders[:1] if one.description),
        ],
        advice=_ADVICE.get(group.kind, "Check the holders below: their memory is freed when they read, send or close."),
        holders=group.members,
        is_notable=True,
    )


def _leak(situation: Situation, group: _Group, holders: Sequence[Holder]) -> tuple[LeakAnswer, str]:
    """Return whether it is a leak, and why."""
    without_process_bytes = sum(one.pinned_bytes for one in holders if not one.owners)
    has_process = without_process_bytes < situation.notable_bytes
    if group.kind is HolderKind.PAGE_POOL:
        if any("detached" in one.description for one in holders):
            return LeakAnswer.UNKNOWN, "the device no longer uses the pool, but not all of its pages came back"
        if group.kept_bytes < situation.large_bytes:
            return LeakAnswer.NO, "the pool belongs to a device that is in use"
    if group.kind in _SIZED_BY_REQUEST:
        if has_process or group.kind in _WITHOUT_PROCESS:
            return LeakAnswer.NO, "it has the size that was asked for, and does not grow by itself"
        return LeakAnswer.UNKNOWN, "no process has it open"
    if group.kind is HolderKind.SOCKET and group.kept_bytes + group.head_bytes < situation.large_bytes:
        return LeakAnswer.NO, "the sockets are read, or their data is being sent"
    return LeakAnswer.UNKNOWN, "no check can determine whether it is needed"


def _whose(group: _Group, holders: Sequence[Holder]) -> str:
    first = holders[0]
    if group.scope is OwnerKind.NODE and any(one.owners for one in holders):
        return f"several owners, the largest being {holder_name(first)},"
    if group.scope is OwnerKind.CONTAINER:
        return f"container {short_id(first.owners[0].container_id)}"
    if first.owners:
        return process_owner(holders).name
    return f"no process ({first.unowned_reason or first.description or 'reason unknown'})"


def _owner(group: _Group, holders: Sequence[Holder]) -> MemoryOwner:
    largest = process_owner(holders)
    if group.scope is OwnerKind.PROCESS:
        return largest
    processes = len({one.owners[0].pid for one in holders if one.owners})
    if group.scope is OwnerKind.CONTAINER:
        return largest.model_copy(update={"kind": OwnerKind.CONTAINER, "processes": processes})
    return MemoryOwner(kind=OwnerKind.NODE, name=largest.name, processes=processes)


def _freed_by(group: _Group, holders: Sequence[Holder], size_bytes: int) -> FreedBy | None:
    first = holders[0]
    if group.kind is HolderKind.FTRACE_BUFFER:
        return FreedBy(action="Reduce buffer_size_kb of the ftrace instance.", size_bytes=size_bytes)
    if group.kind is HolderKind.PAGE_POOL or not first.owners:
        return None
    who = _whose(group, holders)
    return FreedBy(
        action=f"End or restart {who}, or let it close its {KINDS[group.kind]}s."[: limits.MAX_SENTENCE],
        size_bytes=size_bytes,
    )


_ADVICE = {
    HolderKind.PIPE: "Check why nobody reads these pipes: their memory is freed when they are read or closed.",
    HolderKind.FTRACE_BUFFER: "Check who enlarged the buffer (buffer_size_kb), and whether tracing is still needed.",
    HolderKind.PACKET_RING: "Check the ring size of this program (PACKET_RX_RING): it is memory that the container's "
    "limit does not cover.",
    HolderKind.RING_BUFFER: "Check the ring size of this program: perf rings are allocated for each CPU.",
    HolderKind.IO_URING: "Check how many rings this program opens, and their number of entries.",
    HolderKind.BPF_MAP: "Check max_entries of these maps: arrays and preallocated maps take all of it at once.",
    HolderKind.PAGE_POOL: "Check which driver has the pool, and which sockets keep its pages.",
}
