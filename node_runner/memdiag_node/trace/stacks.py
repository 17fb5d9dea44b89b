"""Call stacks in readable form: trimmed, classified, folded.

A frame is text: `symbol+0x1f`, `symbol+0x1f [module]`, or `unnamed#1a2b3c4d` if the kernel has no name for its address;
innermost first.
"""

import re
from collections.abc import Collection, Sequence

from memdiag_api.evidence import Context, Stack
from memdiag_node.counted_stacks import counted_stacks
from memdiag_node.kernel.symbols import UNNAMED_PREFIX, function_name
from memdiag_node.trace.contexts import ContextCode, interrupt_context

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
