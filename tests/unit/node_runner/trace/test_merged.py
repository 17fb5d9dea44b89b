"""One list of the stacks of pages and of objects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from memdiag_api.evidence import AllocationUnit, Context, Stack, TraceCounters, Trend
from memdiag_node.trace.merged import merge
from memdiag_node.trace.objects.decode import ObjectResult
from memdiag_node.trace.pages.result import BLOCK_DTYPE, GROUP_DTYPE, TraceResult

PAGE_BYTES = 4096


def pages_of(sizes_pages: Sequence[int]) -> TraceResult:
    """Each stack has one block of so many pages; one more block has no stack. The class says which stack it is."""
    groups = np.zeros(len(sizes_pages), GROUP_DTYPE)
    groups["stack"], groups["process"], groups["weight"] = np.arange(len(sizes_pages)), -1, 1
    groups["frames"], groups["blocks"] = sizes_pages, 1
    blocks = np.zeros(len(sizes_pages) + 1, BLOCK_DTYPE)
    blocks["stack"] = [*range(len(sizes_pages)), -1]
    return TraceResult(
        blocks=blocks,
        groups=groups,
        stacks=[(f"page{number}+0x1",) for number in range(len(sizes_pages))],
        memory_classes=[f"Class{number}" for number in range(len(sizes_pages))],
        caches=[None for _ in sizes_pages],
        lives=[{} for _ in sizes_pages],
        processes=[],
        charges=[],
        counters=TraceCounters(events_seen=9, table_bytes=100),
        slices=2,
        slice_seconds=1.0,
        traced_seconds=2.0,
        page_bytes=PAGE_BYTES,
        struct_page_bytes=64,
        first_page=0,
        outstanding_bytes=0,
        outstanding_blocks=0,
    )


def objects_of(sizes_bytes: Sequence[int]) -> ObjectResult:
    stacks = [
        Stack(
            frames=[f"object{size}+0x1"],
            context=Context.PROCESS,
            unit=AllocationUnit.OBJECTS,
            memory_class="Slab",
            outstanding_bytes=size,
            outstanding_blocks=1,
            births_bytes=[],
            allocated_bytes=size,
            freed_bytes=0,
            growth_bytes_per_second=0.0,
            trend=Trend.UNCLEAR,
        )
        for size in sizes_bytes
    ]
    return ObjectResult(
        stacks=stacks,
        classes=["Slab"],
        recorded_objects=11,
        lost_objects=12,
        missed_runs=15,
        unresolved_objects=13,
        unseen_frees=14,
        program_seconds=1.5,
        table_bytes=50,
    )


@pytest.mark.parametrize("top_n", [0, 1, 2, 4, 10])
@pytest.mark.parametrize("sizes_bytes", [[], [100], [7 * PAGE_BYTES, 2 * PAGE_BYTES, 5]])
def test_blocks_point_to_their_stack_and_class_in_the_merged_list(top_n: int, sizes_bytes: list[int]) -> None:
    pages = pages_of([8, 4, 3, 1])
    merged = merge(pages, objects_of(sizes_bytes), top_n=top_n)
    sizes = [stack.outstanding_bytes for stack in merged.stacks]
    listed = min(top_n, 4)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == listed + len(sizes_bytes)
    assert len(merged.memory_classes) == 4 + len(sizes_bytes)
    for old, new in zip(pages.blocks["stack"].tolist(), merged.blocks["stack"].tolist(), strict=True):
        if old < 0:
            assert new == -1
            continue
        assert merged.memory_classes[new] == f"Class{old}"
        assert (new < len(merged.stacks)) is (old < listed)
        if old < listed:
            assert merged.stacks[new].frames == [f"page{old}+0x1"]
    assert [one.memory_class for one in merged.stacks] == merged.memory_classes[: len(sizes)]
    assert pages.blocks["stack"].tolist() == [0, 1, 2, 3, -1]


def test_without_objects_the_stacks_are_those_of_pages() -> None:
    pages = pages_of([8, 4])
    merged = merge(pages, None, top_n=10)
    assert [stack.frames for stack in merged.stacks] == [["page0+0x1"], ["page1+0x1"]]
    assert merged.blocks["stack"].tolist() == pages.blocks["stack"].tolist()
    assert merged.counters == pages.counters


def test_counters_are_those_of_both_traces() -> None:
    counters = merge(pages_of([8]), objects_of([5]), top_n=1).counters
    assert (counters.events_seen, counters.table_bytes, counters.object_program_seconds) == (9, 150, 1.5)
    found = (counters.recorded_objects, counters.lost_objects, counters.unresolved_objects, counters.unseen_frees)
    assert found == (11, 12, 13, 14)
    assert counters.missed_object_runs == 15


@pytest.mark.parametrize(
    ("untraced_bytes", "areas_bytes", "traced_bytes", "left_bytes"),
    [
        pytest.param(1000, 700, 0, 300, id="the pages of areas passed no tracepoint"),
        pytest.param(1000, 700, 600, 900, id="most of them did"),
        pytest.param(1000, 700, 800, 1000, id="all of them did"),
        pytest.param(1000, 1200, 0, 0, id="areas explain all of it"),
        pytest.param(-50, 700, 0, -50, id="the trace saw more than the allocator counted"),
    ],
)
def test_areas_of_vmalloc_explain_pages_that_passed_no_tracepoint(
    untraced_bytes: int, areas_bytes: int, traced_bytes: int, left_bytes: int
) -> None:
    pages = replace(
        pages_of([8]), counters=TraceCounters(untraced_bytes=untraced_bytes), vmalloc_page_bytes=traced_bytes
    )
    objects = replace(objects_of([]), vmalloc_area_bytes=areas_bytes)
    assert merge(pages, objects, top_n=1).counters.untraced_bytes == left_bytes


def test_objects_alone_are_listed() -> None:
    merged = merge(pages_of([]), objects_of([5, 9]), top_n=3)
    assert [stack.outstanding_bytes for stack in merged.stacks] == [9, 5]
    assert merged.blocks["stack"].tolist() == [-1]
