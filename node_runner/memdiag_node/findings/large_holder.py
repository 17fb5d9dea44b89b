"""Finding: holders that keep much memory: rings, maps, pipes, page pools, sockets that are read (docs/findings.md)."""

from collections.abc import Collection, Iterator, Sequence

from memdiag_api import limits
from memdiag_api.evidence import Holder, HolderKind, SuspectScope
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.owners import MemoryOwner
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.freed import exclusive_bytes
from memdiag_node.findings.groups import Group, find_each, group_owner, group_subject, kept_together
from memdiag_node.findings.naming import KINDS, counted, holder_name, process_owner
from memdiag_node.findings.situation import Situation
from memdiag_node.holding import Holding

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


def large_holders(situation: Situation, others: Collection[int]) -> Iterator[Draft]:
    """Yield a finding for each process that keeps the notable size in holders of one kind.

    What is less is summed up by container and pod, and what is less there over the node: first that of no process by
    itself. `others` are the indexes of the holdings that no other finding is about.
    """
    holdings = situation.measured.holdings
    by_kind: dict[tuple[HolderKind, str], list[int]] = {}
    for index in sorted(others):
        holder = holdings[index].holder
        by_kind.setdefault((holder.kind, holder.memory_class), []).append(index)

    def size_of(members: Sequence[Holding]) -> int:
        return sum(kept_together(members, situation.page_bytes).values())

    for chosen in by_kind.values():
        for group in find_each(holdings, chosen, situation.notable_bytes, size_of):
            yield _draft(situation, group)


def _draft(situation: Situation, group: Group) -> Draft:
    holdings = situation.measured.holdings
    members = [holdings[index] for index in group.members]
    holders = [one.holder for one in members]
    first = holders[0]
    leak, why = _leak(situation, group, holders)
    count = sum(one.summed for one in holders)
    subject = counted(first.kind, count)
    return Draft(
        kind=FindingKind.LARGE_HOLDER,
        memory_class=first.memory_class,
        size_bytes=group.size_bytes,
        claims_bytes=kept_together(members, situation.page_bytes),
        owner=_owner(group, holders),
        leak=leak,
        freed_by=_freed_by(group, holders, exclusive_bytes(group.members, holdings, page_bytes=situation.page_bytes)),
        confidence=Confidence.HIGH if leak is LeakAnswer.NO else Confidence.MEDIUM,
        sentence=f"{subject[0].upper()}{subject[1:]} of {_whose(group, holders)} keep"
        f"{'s' if count == 1 else ''} {format_bytes(group.size_bytes)} of {first.memory_class or 'memory'}.",
        reasons=[
            f"the threshold for memory of a holder is {format_bytes(situation.notable_bytes)}",
            why,
            *([f"the largest: {first.description}"] if first.description else []),
        ],
        advice=_ADVICE.get(first.kind, "Check the holders below: their memory is freed when they read, send or close."),
        holders=group.members,
        is_notable=True,
    )


def _leak(situation: Situation, group: Group, holders: Sequence[Holder]) -> tuple[LeakAnswer, str]:
    """Return whether it is a leak, and why."""
    kind = holders[0].kind
    without_process_bytes = sum(one.pinned_bytes for one in holders if not one.owners)
    has_process = without_process_bytes < situation.notable_bytes
    if kind is HolderKind.PAGE_POOL:
        if any("detached" in one.description for one in holders):
            return LeakAnswer.UNKNOWN, "the device no longer uses the pool, but not all of its pages came back"
        if group.size_bytes < situation.large_bytes:
            return LeakAnswer.NO, "the pool belongs to a device that is in use"
    if kind in _SIZED_BY_REQUEST:
        if has_process or kind in _WITHOUT_PROCESS:
            return LeakAnswer.NO, "it has the size that was asked for, and does not grow by itself"
        return LeakAnswer.UNKNOWN, "no process has it open"
    if kind is HolderKind.SOCKET and group.size_bytes < situation.large_bytes:
        return LeakAnswer.NO, "the sockets are read, or their data is being sent"
    return LeakAnswer.UNKNOWN, "no check can determine whether it is needed"


def _whose(group: Group, holders: Sequence[Holder]) -> str:
    first = holders[0]
    if not any(one.owners for one in holders):
        return f"no process ({first.unowned_reason or first.description or 'reason unknown'})"
    if group.scope is SuspectScope.NODE:
        return f"several owners, the largest being {holder_name(first)},"
    return group_subject(group.scope, holders)


def _owner(group: Group, holders: Sequence[Holder]) -> MemoryOwner:
    if len(holders) == 1:
        return process_owner(holders)
    owner = group_owner(group.scope, holders)
    is_of_node = group.scope is SuspectScope.NODE
    return owner.model_copy(update={"name": process_owner(holders).name}) if is_of_node else owner


def _freed_by(group: Group, holders: Sequence[Holder], size_bytes: int) -> FreedBy | None:
    kind = holders[0].kind
    if kind is HolderKind.FTRACE_BUFFER:
        return FreedBy(action="Reduce buffer_size_kb of the ftrace instance.", size_bytes=size_bytes)
    if kind is HolderKind.BPF_MAP and not any(one.owners for one in holders):
        return FreedBy(
            action="Unload the programs that use these maps, if any, and delete the maps' files in the BPF file system "
            "(bpftool map list --bpffs).",
            size_bytes=size_bytes,
        )
    if kind is HolderKind.PAGE_POOL or not holders[0].owners:
        return None
    who = _whose(group, holders)
    return FreedBy(
        action=f"End or restart {who}, or let it close its {KINDS[kind]}s."[: limits.MAX_SENTENCE],
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
