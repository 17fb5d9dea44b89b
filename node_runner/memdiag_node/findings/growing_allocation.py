"""Finding: a call stack that keeps allocating and does not free, steadily or in bursts (docs/findings.md)."""

import re
from collections.abc import Collection, Iterator

from memdiag_api.evidence import HolderKind, Stack, Trend
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import OwnerKind
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.counted_stacks import is_large_kmalloc
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.growing_objects import of_slab_cache, stack_class
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.stack_owners import BPF_OWNER, is_reclaimed_cache, passes, stack_owner
from memdiag_node.trace.stacks import first_name

_OF_PROCESSES = re.compile(
    r"dup_task_struct|alloc_thread_stack_node|copy_process|_*kvm_mmu_topup_memory_cache|tdp_mmu_alloc_\w+|kvm_mmu_\w+"
)
"""Stacks of new threads, and page tables of virtual machines: they go with their processes."""
_OWNED_BY_PROCESSES = (ClassName.PAGE_TABLES, ClassName.KERNEL_STACK, ClassName.SECONDARY_PAGE_TABLES)
_FILLED_BY_SETUP = (ClassName.VMALLOC, ClassName.PERCPU, ClassName.ZSMALLOC, ClassName.BALLOON)
"""New pods, cgroups, programs and devices take such memory once, for as long as they exist."""
_SET_UP = (OwnerKind.KERNEL, OwnerKind.MODULE)
_BURST_FREED_SHARE = 0.1
_OF_BPF = (HolderKind.BPF_MAP, HolderKind.BPF_PROGRAM)
_SAME_MEMORY_SHARE = 0.5
"""If known maps and programs have so much of what a stack allocated for BPF, they have all of it."""


def growing_allocations(situation: Situation, suspects: Collection[int]) -> Iterator[Draft]:
    """Yield a finding for each stack that grows, or that allocated in bursts what nobody is known to hold.

    A steady growth counts from the floor of the suspect size, if its rate matters (Thresholds.is_relevant_growth). A
    burst counts from the suspect size. `suspects` are the indexes of holders of which a finding says that they leak:
    a stack that fills them is not a second leak. If they have most of it and other holders the rest, it is the same
    flow of data, as a sender's queue is to its receiver's. Memory of slab caches is judged by growing_objects.
    """
    for index in situation.measured.judged_stacks:
        stack = situation.measured.stacks[index]
        if first_name(stack.frames) is None or of_slab_cache(stack):
            continue
        of_suspects_bytes = sum(part.size_bytes for part in stack.held_by if part.holder in suspects)
        own_bytes = stack.outstanding_bytes - min(of_suspects_bytes, stack.outstanding_bytes)
        unheld_bytes = min(own_bytes, stack.outstanding_bytes - stack.explained_bytes)
        is_same_flow = 2 * of_suspects_bytes >= stack.outstanding_bytes
        if is_same_flow and unheld_bytes < situation.thresholds.suspect_floor_bytes:
            continue
        if stack.trend is Trend.GROWING and own_bytes >= situation.thresholds.suspect_floor_bytes:
            yield from _steady(situation, index, own_bytes, unheld_bytes)
        elif unheld_bytes >= situation.suspect_bytes and _is_burst(stack) and not _is_known(situation, stack):
            yield _burst(situation, index, unheld_bytes)


def _is_burst(stack: Stack) -> bool:
    """Return whether hardly anything of it is freed while much is outstanding: not the churn of a working set."""
    return stack.trend is not Trend.CHURN and stack.freed_bytes <= _BURST_FREED_SHARE * max(1, stack.allocated_bytes)


def _is_known(situation: Situation, stack: Stack) -> bool:
    """Return whether it is memory of processes, or of BPF maps and programs, which have findings of their own."""
    if _is_of_processes(stack) or stack_owner(stack).name != BPF_OWNER:
        return _is_of_processes(stack)
    held_bytes = sum(
        one.holder.pinned_bytes
        for one in situation.measured.holdings
        if one.holder.kind in _OF_BPF and one.holder.memory_class == stack.memory_class
    )
    return held_bytes >= _SAME_MEMORY_SHARE * stack.outstanding_bytes


def _steady(situation: Situation, index: int, own_bytes: int, unheld_bytes: int) -> Iterator[Draft]:
    stack = situation.measured.stacks[index]
    trend = situation.trend(
        stack.growth_bytes_per_second, stack.growth_error_bytes_per_second, situation.measured.window_seconds
    )
    left_seconds = trend.exhausts_node_in_seconds
    if not situation.thresholds.is_relevant_growth(trend.bytes_per_second, left_seconds):
        return
    size, rate = format_bytes(own_bytes), format_bytes(stack.growth_bytes_per_second)
    is_reclaimed = is_reclaimed_cache(stack)
    leak, why = _leak(stack)
    owner = stack_owner(stack)
    frame = first_name(stack.frames)
    if is_reclaimed:
        sentence = f"A cache of the kernel fills through {frame} at {rate}/s: it is given back when memory is needed."
    else:
        sentence = f"Allocations through {frame} grow by {rate}/s: {size} were not freed in the window."
    yield Draft(
        kind=FindingKind.GROWING_ALLOCATION,
        memory_class=stack_class(stack),
        size_bytes=own_bytes,
        claims_bytes=_claims(stack, unheld_bytes),
        owner=owner,
        trend=trend,
        leak=leak,
        reclaimable=is_reclaimed,
        confidence=Confidence.MEDIUM if leak is LeakAnswer.UNKNOWN else Confidence.HIGH,
        sentence=sentence,
        reasons=[
            f"{size} are outstanding, allocated throughout the window (threshold: "
            f"{format_bytes(situation.thresholds.suspect_floor_bytes)})",
            f"growth is {rate}/s, with a standard error of {format_bytes(stack.growth_error_bytes_per_second)}/s",
            *([f"the call stack shows that it belongs to {owner.name}"] if owner.kind in _SET_UP else []),
            *([why] if why else []),
            *(
                [f"at this rate, free and reclaimable memory lasts for {format_duration(left_seconds)}"]
                if left_seconds is not None
                else []
            ),
        ],
        advice=""
        if is_reclaimed
        else "Run a longer trace to see whether the growth continues. The call stack shows the kernel code that "
        "allocates, and held-by shows the holder, if known.",
        freed_by=_freed_by(stack),
        holders=[part.holder for part in stack.held_by[:1]],
        stacks=[index],
        is_notable=True,
    )


def _burst(situation: Situation, index: int, unheld_bytes: int) -> Draft:
    stack = situation.measured.stacks[index]
    size = format_bytes(unheld_bytes)
    is_reclaimed = is_reclaimed_cache(stack)
    is_known = _leak(stack)[0] is LeakAnswer.NO
    is_joined = stack.memory_class == ClassName.ALLOC_PAGE  # holders of other classes are not known page by page
    return Draft(
        kind=FindingKind.GROWING_ALLOCATION,
        memory_class=stack_class(stack),
        size_bytes=unheld_bytes,
        claims_bytes=_claims(stack, unheld_bytes),
        owner=stack_owner(stack),
        leak=LeakAnswer.NO if is_known else LeakAnswer.UNKNOWN,
        reclaimable=is_reclaimed,
        confidence=Confidence.MEDIUM,
        sentence=f"{size} were allocated in the window through {first_name(stack.frames)}, "
        + ("not freed, and are in no known holder." if is_joined else "and not freed."),
        reasons=[
            f"the allocations do not grow steadily ({stack.trend.value.lower()}), so one window cannot show whether "
            "they continue",
            f"the threshold is {format_bytes(situation.suspect_bytes)}",
        ],
        advice="" if is_known else "Run it again: if the same call stack allocates more, it is a leak in bursts.",
        stacks=[index],
        is_notable=True,
    )


def _leak(stack: Stack) -> tuple[LeakAnswer, str]:
    """Return whether steady growth through this stack is a leak, and why if it is not."""
    if is_reclaimed_cache(stack):
        return LeakAnswer.NO, "it is a cache that the kernel gives back when memory is needed"
    if stack.memory_class == ClassName.SLAB and not is_large_kmalloc(stack):
        return LeakAnswer.UNKNOWN, "the slab cache that these pages are in is not known"
    if _is_of_processes(stack):
        return LeakAnswer.NO, "it belongs to processes, and is freed when they exit"
    if stack.memory_class in _FILLED_BY_SETUP:
        return LeakAnswer.UNKNOWN, "new pods, programs and devices take such memory once, when they start"
    return LeakAnswer.YES, ""


def _is_of_processes(stack: Stack) -> bool:
    return stack.memory_class in _OWNED_BY_PROCESSES or passes(stack, _OF_PROCESSES)


def _claims(stack: Stack, unheld_bytes: int) -> dict[str, int]:
    """Return what no holder accounts for. Other classes have owners of their own, who account for their memory."""
    return {stack.memory_class: max(0, unheld_bytes)} if stack.memory_class == ClassName.ALLOC_PAGE else {}


def _freed_by(stack: Stack) -> FreedBy | None:
    if is_reclaimed_cache(stack):
        return FreedBy(action="The kernel frees it when memory is needed.", size_bytes=stack.outstanding_bytes)
    return None
