"""Large memory that no check explains, which rules out NoLeak: by class of the breakdown (pure)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memdiag_api import limits
from memdiag_api.evidence import Breakdown, Census, Holder, HolderKind, Stack
from memdiag_api.memory_classes import ClassName
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.findings.suspects import Keeper

OTHER_CLASSES = (ClassName.SUNRECLAIM, ClassName.VMALLOC, ClassName.PERCPU, ClassName.SHMEM)
"""Classes besides AllocPage that can leak. No check covers them yet."""
_KINDS = {
    HolderKind.SOCKET: "socket",
    HolderKind.PIPE: "pipe",
    HolderKind.PAGE_POOL: "page pool",
    HolderKind.PACKET_RING: "packet ring",
    HolderKind.RING_BUFFER: "ring buffer",
    HolderKind.TUN_QUEUE: "tun queue",
    HolderKind.PACKET_QUEUE: "packet queue",
    HolderKind.IO_URING: "io_uring",
    HolderKind.FTRACE_BUFFER: "ftrace buffer",
    HolderKind.BPF_MAP: "BPF map",
    HolderKind.BPF_PROGRAM: "BPF program",
    HolderKind.XDP_SOCKET: "AF_XDP socket",
    HolderKind.EVENT_QUEUE: "event queue",
    HolderKind.DRM_BUFFER: "graphics client",
}
_MAX_PARTS = 4
_PART_SHARE = 0.1
_ID_SHOWN = 12


@dataclass(frozen=True, slots=True)
class LargePart:
    """A part of one class, and why it is not explained."""

    size_bytes: int
    sentence: str
    """Without a full stop."""
    advice: str
    reasons: tuple[str, ...] = ()
    holder: int | None = None
    """Index of the holder in the sentence."""
    stack: int | None = None
    """Index of the stack in a reason."""


def other_classes(
    breakdown: Breakdown, holders: Sequence[Holder], keepers: Mapping[str, Keeper]
) -> Iterator[LargePart]:
    """Yield each of OTHER_CLASSES as a whole: no check examines all of it.

    If a known holder has a large part of it, that is a reason. `keepers` has the largest for each class.
    """
    for one in breakdown.classes:
        if one.name not in OTHER_CLASSES:
            continue
        keeper = keepers.get(one.name)
        is_much = keeper is not None and keeper.pinned_bytes >= _PART_SHARE * one.size_bytes
        yield LargePart(
            one.size_bytes,
            f"{one.name} has {format_bytes(one.size_bytes)} that no check explains"
            if not is_much
            else f"{one.name} has {format_bytes(one.size_bytes)}, and no check can determine whether it is needed",
            advice=_ADVICE[one.name],
            reasons=(_kept_part(one.name, holders, keeper),) if keeper is not None and is_much else (),
            holder=keeper.holder if keeper is not None and is_much else None,
        )


def _kept_part(name: str, holders: Sequence[Holder], keeper: Keeper) -> str:
    return f"{format_bytes(keeper.pinned_bytes)} of {name} are kept by {_name(holders[keeper.holder], keeper.count)}"


_ADVICE: dict[str, str] = {
    ClassName.SUNRECLAIM: "Run slabtop to see which kernel objects are most numerous, and whether their number grows.",
    ClassName.VMALLOC: "Check in /proc/vmallocinfo which kernel functions allocated the most, and whether it grows.",
    ClassName.PERCPU: "Check the number of cgroups, network interfaces and BPF maps, and whether it grows.",
    ClassName.SHMEM: "Check the contents of tmpfs mounts (df -t tmpfs) and shared memory (ipcs -m): files stay until "
    "they are deleted.",
}


def unheld(breakdown: Breakdown, held_bytes: int, stacks: Sequence[Stack], census: Census | None) -> LargePart:
    """Return the part of AllocPage that is in no known holder. `held_bytes`: the part that is in known holders."""
    size_bytes = breakdown.alloc_page_bytes - held_bytes
    stack = max(range(len(stacks)), key=lambda index: _unheld_bytes(stacks[index]), default=None)
    taken_bytes = _unheld_bytes(stacks[stack]) if stack is not None else 0
    reasons = list(_where(census, size_bytes)) if census else []
    if stack is not None and taken_bytes >= _PART_SHARE * size_bytes:
        frame = stacks[stack].frames[0] if stacks[stack].frames else "an unknown stack"
        reasons.insert(0, f"{format_bytes(taken_bytes)} of it were allocated in the window through {frame}")
    else:
        stack = None
    return LargePart(
        size_bytes,
        f"AllocPage has {format_bytes(breakdown.alloc_page_bytes)}; {format_bytes(size_bytes)} of it are neither held "
        "by a known holder nor growing now",
        reasons=tuple(reasons),
        advice="Check the call stack in the reasons to see what allocates this memory."
        if stack is not None
        else "It was allocated before the window. Run a longer trace under the usual workload to see whether it grows, "
        "or check what drivers and other kernel users preallocate.",
        stack=stack,
    )


def held(holders: Sequence[Holder], keeper: Keeper, held_bytes: int) -> LargePart:
    """Return the part of AllocPage that is in known holders. `keeper` has the most of it."""
    who = _name(holders[keeper.holder], keeper.count)
    return LargePart(
        held_bytes,
        f"known holders keep {format_bytes(held_bytes)} of AllocPage, {who} the most "
        f"({format_bytes(keeper.pinned_bytes)}), and no check can determine whether it is needed",
        advice="Check the holders below: their memory is freed when they read, send or close.",
        holder=keeper.holder,
    )


def _name(holder: Holder, count: int) -> str:
    what = f"a {_KINDS[holder.kind]}" if count == 1 else f"{count} {_KINDS[holder.kind]}s"
    if holder.owners:
        owner = holder.owners[0]
        return f"{shown_process(owner.comm, owner.pid)} in {what}"
    return (holder.description or what)[: limits.MAX_SHORT_TEXT]


def _unheld_bytes(stack: Stack) -> int:
    return stack.outstanding_bytes - stack.explained_bytes if stack.memory_class == ClassName.ALLOC_PAGE else 0


def _where(census: Census, unexplained_bytes: int) -> Iterator[str]:
    """Yield upper bounds from the census for the unexplained part, if they are at least a tenth of it.

    A census that was cut short has bounds only for the frames that it scanned, which the sentence says.
    """
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
    is_whole = census.scanned_share >= 1
    frames = "" if is_whole else f"in the {census.scanned_share:.0%} of page frames that were scanned, "
    for size_bytes, what in sorted(parts, reverse=True)[:_MAX_PARTS]:
        if size_bytes >= _PART_SHARE * unexplained_bytes * census.scanned_share:
            yield f"{frames}at most {format_bytes(size_bytes)} of it {what} and in no known holder"
