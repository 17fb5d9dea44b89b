"""One list of stacks for all memory: pages, and objects in them (pure)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Stack, TraceCounters
from memdiag_node.trace.objects.decode import ObjectResult
from memdiag_node.trace.pages.result import TraceResult
from memdiag_node.trace.pages.stacks import page_stacks


@dataclass(frozen=True, slots=True)
class MergedStacks:
    """The stacks of both traces."""

    stacks: list[Stack]
    """Largest outstanding first. Of page stacks, at most as many as requested."""
    blocks: npt.NDArray[np.void]
    """BLOCK_DTYPE of the page trace. `stack` is an index of `memory_classes`, which begins with those of `stacks`."""
    memory_classes: list[str]
    counters: TraceCounters


def merge(pages: TraceResult, objects: ObjectResult | None, *, top_n: int) -> MergedStacks:
    """Merge the stacks of both traces by size; of page stacks, at most `top_n`."""
    listed = page_stacks(pages, top_n)
    of_objects = objects.stacks if objects else []
    every = [*listed, *of_objects]
    order = sorted(range(len(every)), key=lambda index: -every[index].outstanding_bytes)
    rest = list(range(len(listed), len(pages.stacks)))
    place = np.full(len(pages.stacks) + 1, -1, np.int64)  # the last one is that of -1, no stack
    for new, old in enumerate(order):
        if old < len(listed):
            place[old] = new
    place[rest] = len(every) + np.arange(len(rest))
    blocks = pages.blocks.copy()
    blocks["stack"] = place[blocks["stack"]]
    stacks = [every[old] for old in order]
    return MergedStacks(
        stacks,
        blocks,
        [*(one.memory_class for one in stacks), *(pages.memory_classes[old] for old in rest)],
        _counters(pages, objects),
    )


def _counters(pages: TraceResult, objects: ObjectResult | None) -> TraceCounters:
    counters = pages.counters
    if objects is None:
        return counters
    # Areas of vmalloc have a tracepoint of their own. Their pages pass one or not.
    bulk_bytes = max(0, objects.vmalloc_area_bytes - pages.vmalloc_page_bytes)
    return counters.model_copy(
        update={
            "untraced_bytes": counters.untraced_bytes - min(bulk_bytes, max(0, counters.untraced_bytes)),
            "recorded_objects": objects.recorded_objects,
            "lost_objects": objects.lost_objects,
            "missed_object_runs": objects.missed_runs,
            "unresolved_objects": objects.unresolved_objects,
            "unseen_frees": objects.unseen_frees,
            "object_program_seconds": objects.program_seconds,
            "table_bytes": counters.table_bytes + objects.table_bytes,
        }
    )
