"""Call stacks in readable form: trimmed, classified, folded.

A frame is text: `symbol+0x1f`, `symbol+0x1f [module]`, or `unnamed#1a2b3c4d` if the kernel has no name for its address;
innermost first.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.evidence import AllocatingProcess, Context, Stack
from memdiag_node.counted_stacks import counted_stacks
from memdiag_node.kernel.symbols import UNNAMED_PREFIX, function_name
from memdiag_node.trace.births import growth_of, median_life_seconds
from memdiag_node.trace.contexts import ContextCode, interrupt_context
from memdiag_node.trace.result import TraceResult

_FOLDED_SEPARATOR = re.compile(r"[;\s]")

CONTEXTS = {
    ContextCode.UNKNOWN: Context.MIXED,
    ContextCode.PROCESS: Context.PROCESS,
    ContextCode.SOFTIRQ: Context.SOFTIRQ,
    ContextCode.INTERRUPT: Context.INTERRUPT,
}

NO_STACK: tuple[str, ...] = ("(stack was not recorded)",)

# Innermost frames that are the same for every allocation; docs/trace.md lists them for users. First the tracer's own:
# frames inside of these belong to the tracer too, even if an eBPF program has no name, or the name of another.
_TRACER = re.compile(r"bpf_trace_run\d+|__bpf_trace_\w+|__traceiter_\w+|perf_trace_\w+|bpf_get_stack\w*")
_TRACER_FRAMES = 12
# Then the page allocator's: up to the first frame that does not match.
_ALLOCATOR = re.compile(
    r"__alloc_pages(_nodemask|_slowpath|_internal)?|__alloc_frozen_pages|alloc_frozen_pages"
    r"|alloc_pages(_mpol|_vma|_current|_node|_preferred_many)?|alloc_pages_(bulk|exact)\w*|alloc_page_interleave"
    r"|__folio_alloc|folio_alloc|vma_alloc_folio|__get_free_pages?|get_free_pages|get_zeroed_page"
)


def first_name(frames: Sequence[str]) -> str | None:
    """The innermost frame that has a name; None if the stack has none, or was not recorded."""
    named = (frame for frame in frames if not frame.startswith(UNNAMED_PREFIX) and frame not in NO_STACK)
    return next(named, None)


def lacks_names(stacks: Sequence[Stack], limit_bytes: int) -> bool:
    """Whether `limit_bytes` or more is in stacks without names, or the kernel returned no name at all.

    Then a leak may go unnoticed: without names, the stacks of interrupts differ by what they interrupted.
    """
    unnamed = [stack.outstanding_bytes for stack in stacks if first_name(stack.frames) is None]
    return bool(unnamed) and (len(unnamed) == len(stacks) or sum(unnamed) >= limit_bytes)


def trim(frames: Sequence[str]) -> tuple[str, ...]:
    """Remove the tracer's and page allocator's own frames, and what an interrupt interrupted; never all frames."""
    names = [function_name(frame) for frame in frames]
    entry = next((index for index, name in enumerate(names) if interrupt_context(name)), len(frames))
    frames = frames[: entry + 1]
    tracer = [index for index, name in enumerate(names[:_TRACER_FRAMES]) if _TRACER.fullmatch(name)]
    start = tracer[-1] + 1 if tracer else 0
    for index in range(start, len(frames)):
        if not _ALLOCATOR.fullmatch(names[index]):
            return tuple(frames[index:])
    return tuple(frames[-1:]) or NO_STACK


def fold_stacks(trace: TraceResult, top_n: int) -> list[Stack]:
    """The first `top_n` stacks of a trace, largest outstanding first; their indexes are the trace's stack numbers."""
    return [_stack(trace, index) for index in range(min(top_n, len(trace.stacks)))]


def _stack(trace: TraceResult, index: int) -> Stack:
    groups, cache = trace.groups_of(index), trace.caches[index]
    weight = groups["weight"]
    group_bytes = groups["frames"] * weight * trace.page_bytes
    group_blocks = groups["blocks"] * weight
    outstanding_bytes = float(group_bytes.sum())
    allocated_bytes = float(np.sum(groups["allocated_pages"] * weight)) * trace.page_bytes
    allocated_blocks = float(np.sum(groups["allocated_blocks"] * weight))
    error_bytes = trace.error_bytes(groups)
    births = np.bincount(groups["slice"], group_bytes, minlength=trace.slices).tolist()
    by_order = np.bincount(groups["order"], group_blocks).tolist()
    growth = growth_of(
        births,
        slice_seconds=trace.slice_seconds,
        last_slice_seconds=trace.last_slice_seconds,
        blocks=int(groups["blocks"].sum()),
        error_bytes=error_bytes,
    )
    return Stack(
        frames=[frame[: limits.MAX_SHORT_TEXT] for frame in trace.stacks[index][: limits.MAX_FRAMES]],
        context=CONTEXTS[ContextCode(int(groups["context"][0]))],
        memory_class=trace.memory_classes[index],
        slab_cache=cache.name if cache else "",
        reclaimable=cache.is_reclaimable if cache else False,
        outstanding_bytes=round(outstanding_bytes),
        outstanding_blocks=round(float(group_blocks.sum())),
        outstanding_by_order={str(order): round(blocks) for order, blocks in enumerate(by_order) if round(blocks)},
        births_bytes=[round(born) for born in births],
        allocated_bytes=round(allocated_bytes),
        freed_bytes=max(0, round(allocated_bytes - outstanding_bytes)),
        growth_bytes_per_second=growth.bytes_per_second,
        growth_error_bytes_per_second=growth.error_bytes_per_second,
        median_life_seconds=median_life_seconds(trace.lives[index]),
        trend=growth.trend,
        sampled_share=min(1.0, float(groups["allocated_blocks"].sum()) / allocated_blocks) if allocated_blocks else 1.0,
        error_bytes=round(error_bytes),
        processes=_processes(trace, groups, group_bytes),
    )


def _processes(
    trace: TraceResult, groups: npt.NDArray[np.void], group_bytes: npt.NDArray[np.float64]
) -> list[AllocatingProcess]:
    """The processes that allocated most of the outstanding memory."""
    known = groups["process"] >= 0
    totals = np.bincount(groups["process"][known], group_bytes[known], minlength=len(trace.processes))
    largest = np.argsort(-totals, kind="stable")[: limits.MAX_PROCESSES].tolist()
    return [
        AllocatingProcess(
            pid=trace.processes[number].pid,
            comm=trace.processes[number].comm,
            container_id=trace.processes[number].container_id,
            pod_uid=trace.processes[number].pod_uid,
            outstanding_bytes=round(float(totals[number])),
        )
        for number in largest
        if totals[number] > 0
    ]


def to_folded(stacks: Sequence[Stack], object_classes: Collection[str] = ()) -> str:
    """Folded stacks for flame graph tools: outermost first, `;` between frames, then the outstanding bytes.

    The class of the memory is the root, then the slab cache, if it is known. Each byte is there once: pages of
    `object_classes` (Trace.object_classes) are left out, because the stacks of their objects are there.
    """
    lines = []
    for stack in (stacks[index] for index in counted_stacks(stacks, object_classes)):
        roots = (one for one in (stack.memory_class, stack.slab_cache) if one)
        frames = (_FOLDED_SEPARATOR.sub("_", frame) for frame in (*roots, *reversed(stack.frames)))
        if stack.outstanding_bytes:
            lines.append(f"{';'.join(frames)} {stack.outstanding_bytes}\n")
    return "".join(lines)
