"""Stacks that allocated pages, with what is outstanding of them (pure)."""

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.evidence import AllocatingProcess, Stack
from memdiag_node.trace.births import growth_of, median_life_seconds
from memdiag_node.trace.contexts import ContextCode
from memdiag_node.trace.pages.result import TraceResult
from memdiag_node.trace.stacks import CONTEXTS


def page_stacks(trace: TraceResult, top_n: int) -> list[Stack]:
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
