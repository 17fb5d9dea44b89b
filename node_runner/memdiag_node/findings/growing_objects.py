"""Finding: slab objects that a call stack keeps allocating and does not free (docs/findings.md)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from memdiag_api.evidence import AllocatingProcess, AllocationUnit, Context, Stack, Trend
from memdiag_api.findings import Confidence, FindingKind, FindingTrend, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.object_uses import ObjectUse, object_use
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.stack_owners import is_reclaimed_cache, process_owner, stack_owner
from memdiag_node.trace.stacks import first_name

_OFFSET = re.compile(r"\+0x[0-9a-f]+(/0x[0-9a-f]+)?")
_MAIN_SHARE = 0.5
"""A process that allocated so much of it is its owner, if the objects belong to processes."""
_SAME_FLOW_SHARE = 0.5
"""If known queues have so much of a stack's packets, they have all of them: both sizes are estimates."""
_ERRORS = 2
"""Growth counts from the minimum on even if it is too high by so many standard errors of the sampling."""


def growing_objects(situation: Situation, *, packet_bytes: int) -> Iterator[Draft]:
    """Yield a finding for each stack of which the slab objects grow, or the slab pages if no objects were traced.

    `packet_bytes`: slab memory of packets, which findings about their holders account for.
    """
    left_bytes = packet_bytes
    stacks = situation.measured.stacks
    for index in situation.measured.judged_stacks:
        stack = stacks[index]
        if not of_slab_cache(stack) or first_name(stack.frames) is None:
            continue
        own_bytes, use = stack.outstanding_bytes, object_use(stack)
        if use is ObjectUse.PACKETS:
            known_bytes = min(left_bytes, stack.outstanding_bytes)
            left_bytes -= known_bytes
            own_bytes -= known_bytes
            if known_bytes >= _SAME_FLOW_SHARE * stack.outstanding_bytes:
                continue
        if stack.reclaimable or is_reclaimed_cache(stack):
            use = ObjectUse.GIVEN_BACK
        if stack.trend is Trend.GROWING and own_bytes - _ERRORS * stack.error_bytes >= _least_bytes(situation, use):
            yield from _growing(situation, index, own_bytes, use)


def of_slab_cache(stack: Stack) -> bool:
    """Return whether its memory is in a slab cache. Large kmalloc is not: its pages are judged like others."""
    return stack.memory_class == ClassName.SLAB and bool(stack.slab_cache)


def stack_class(stack: Stack) -> str:
    """Return the class of the breakdown that the memory of a stack is in."""
    if stack.memory_class != ClassName.SLAB:
        return stack.memory_class
    return ClassName.SRECLAIMABLE if stack.reclaimable else ClassName.SUNRECLAIM


def shown_frame(frame: str) -> str:
    """Return `function [module]` of a frame, without the offset."""
    return _OFFSET.sub("", frame)


def _least_bytes(situation: Situation, use: ObjectUse) -> int:
    match use:
        case ObjectUse.GIVEN_BACK:
            return situation.notable_bytes
        case ObjectUse.EXPIRES:
            return situation.suspect_bytes
        case _:
            return situation.thresholds.object_growth_bytes(situation.measured.window_seconds)


@dataclass(frozen=True, slots=True)
class _Answer:
    leak: LeakAnswer
    confidence: Confidence
    why: str


def _growing(situation: Situation, index: int, own_bytes: int, use: ObjectUse) -> Iterator[Draft]:
    stack, thresholds = situation.measured.stacks[index], situation.thresholds
    trend = situation.trend(
        stack.growth_bytes_per_second, stack.growth_error_bytes_per_second, situation.measured.window_seconds
    )
    if not thresholds.is_relevant_growth(trend.bytes_per_second, trend.exhausts_node_in_seconds):
        return
    answer = _answer(stack, own_bytes, use, thresholds.suspect_floor_bytes)
    is_given_back = use is ObjectUse.GIVEN_BACK
    yield Draft(
        kind=FindingKind.GROWING_ALLOCATION,
        memory_class=stack_class(stack),
        size_bytes=own_bytes,
        claims_bytes={},  # the findings about slab caches account for it
        owner=_owner(stack, use),
        trend=trend,
        leak=answer.leak,
        reclaimable=is_given_back,
        freed_by=FreedBy(action="The kernel frees it when memory is needed.", size_bytes=own_bytes)
        if is_given_back
        else None,
        confidence=answer.confidence,
        sentence=f"{_what(stack)} allocated through {shown_frame(first_name(stack.frames) or '')} grow by "
        f"{format_bytes(stack.growth_bytes_per_second)}/s: {format_bytes(own_bytes)} were not freed in the window.",
        reasons=[
            *_reasons(stack, own_bytes, _least_bytes(situation, use), trend),
            *([answer.why] if answer.why else []),
        ],
        advice=""
        if answer.leak is LeakAnswer.NO
        else "Run a longer trace to see whether the growth continues. The call stack shows the kernel code that "
        "allocates these objects.",
        stacks=[index],
        sections=["census.slab"] if _is_listed(situation, stack.slab_cache) else [],
        is_notable=True,
    )


def _answer(stack: Stack, own_bytes: int, use: ObjectUse, suspect_floor_bytes: int) -> _Answer:
    """Return whether steady growth of these objects is a leak, and why if it is not, or not surely.

    A service that starts opens files and makes mappings for a whole window: below the floor, such objects do not show
    a leak, and from it on, they may be one of the process.
    """
    is_large = own_bytes >= suspect_floor_bytes
    unknown = LeakAnswer.UNKNOWN, Confidence.MEDIUM
    if use in (ObjectUse.GIVEN_BACK, ObjectUse.EXPIRES):
        return _Answer(LeakAnswer.NO, Confidence.HIGH, use.value)
    if use is ObjectUse.OF_PROCESSES and not is_large:
        return _Answer(LeakAnswer.NO, Confidence.MEDIUM, use.value)
    if use in (ObjectUse.OF_PROCESSES, ObjectUse.BY_SETUP):
        return _Answer(*unknown, use.value)
    if stack.unit is AllocationUnit.PAGES:
        return _Answer(*unknown, "the stack made the cache grow: other stacks may have allocated its objects")
    if not is_large:
        why = f"below {format_bytes(suspect_floor_bytes)}, one window cannot show whether the growth continues"
        return _Answer(*unknown, why)
    return _Answer(LeakAnswer.YES, Confidence.HIGH, "")


def _what(stack: Stack) -> str:
    return f"{stack.slab_cache} objects" if stack.unit is AllocationUnit.OBJECTS else f"Pages of {stack.slab_cache}"


def _reasons(stack: Stack, own_bytes: int, least_bytes: int, trend: FindingTrend) -> Iterator[str]:
    objects = f"{stack.outstanding_blocks:,} objects" if stack.unit is AllocationUnit.OBJECTS else "pages"
    of_packets_bytes = stack.outstanding_bytes - own_bytes
    yield (
        f"{format_bytes(own_bytes)} are outstanding, in {objects} allocated throughout the window (threshold: "
        f"{format_bytes(least_bytes)})"
        + (
            f", without {format_bytes(of_packets_bytes)} of packets that are in known queues"
            if of_packets_bytes
            else ""
        )
    )
    rate, error = stack.growth_bytes_per_second, stack.growth_error_bytes_per_second
    sampled = f"; {stack.sampled_share:.2%} of the allocations were recorded" if stack.sampled_share < 1 else ""
    yield f"growth is {format_bytes(rate)}/s, with a standard error of {format_bytes(error)}/s{sampled}"
    if stack.context is not Context.PROCESS:
        yield f"the allocations are made in {stack.context.value} context: no process can be named"
    elif main := _main_process(stack):
        yield f"{shown_process(main.comm, main.pid)} allocated {format_bytes(main.outstanding_bytes)} of it"
    left_seconds = trend.exhausts_node_in_seconds
    if left_seconds is not None:
        yield f"at this rate, free and reclaimable memory lasts for {format_duration(left_seconds)}"


def _owner(stack: Stack, use: ObjectUse) -> MemoryOwner:
    main = _main_process(stack)
    if use is not ObjectUse.OF_PROCESSES or main is None:
        return stack_owner(stack)
    return process_owner(main)


def _main_process(stack: Stack) -> AllocatingProcess | None:
    largest = stack.processes[0] if stack.processes else None
    return largest if largest and largest.outstanding_bytes >= _MAIN_SHARE * stack.outstanding_bytes else None


def _is_listed(situation: Situation, cache: str) -> bool:
    census = situation.measured.census
    return bool(census and census.slab and any(one.name == cache for one in census.slab.caches))
