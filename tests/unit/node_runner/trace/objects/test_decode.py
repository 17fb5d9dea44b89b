"""The stacks of outstanding objects, from tables made by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.evidence import AllocationUnit, Context, Trend
from memdiag_api.memory_classes import ClassName
from memdiag_node.slab.lookup import LocatedObjects
from memdiag_node.trace.contexts import ContextCode
from memdiag_node.trace.objects import tables
from memdiag_node.trace.objects.decode import MAX_OBJECT_STACKS, ObjectResult, RawObjects, decode_objects
from memdiag_node.trace.objects.eviction import Evictions
from memdiag_node.trace.objects.tables import Kind
from support.raw_objects import (
    LINEAR_MAP,
    PAGE_BYTES,
    STARTED_NS,
    located,
    object_entries,
    raw_objects,
    slab_cache,
    stack_entries,
)

SPARSE = LINEAR_MAP + 64  # one in 16 of such addresses is recorded
STACK, OTHER_STACK = 0x11, 0x22
SMALL, LARGE = slab_cache(), slab_cache("dentry", 192, is_reclaimable=True)
SECOND_NS = 10**9


def page(number: int) -> int:
    return LINEAR_MAP + PAGE_BYTES * number


def decode(raw: RawObjects, slabs: LocatedObjects | None = None, *, possible_cpus: int = 4) -> ObjectResult:
    return decode_objects(raw, slabs or located(raw, [SMALL]), possible_cpus=possible_cpus)


@pytest.mark.parametrize(
    ("address", "weight"),
    [(SPARSE, 16), (LINEAR_MAP + 256, 16), (LINEAR_MAP + 512, 8), (LINEAR_MAP + 3 * 1024, 4), (LINEAR_MAP + 4096, 1)],
)
@pytest.mark.parametrize("level", [0, 3])
def test_a_slab_object_represents_as_many_as_its_alignment_and_level_say(address: int, weight: int, level: int) -> None:
    (stack,) = decode(raw_objects(object_entries([(address, STACK)], level=level))).stacks
    represented = weight << level
    assert (stack.outstanding_blocks, stack.outstanding_bytes) == (represented, 64 * represented)
    assert stack.error_bytes == round(64 * math.sqrt(represented * (represented - 1)))
    assert (stack.unit, stack.memory_class, stack.slab_cache) == (AllocationUnit.OBJECTS, "Slab", "kmalloc-64")
    assert stack.outstanding_by_order == {}


def test_errors_of_a_stack_add_up_as_squares() -> None:
    raw = raw_objects(object_entries([(page(1), STACK), (SPARSE, STACK), (LINEAR_MAP + 512, STACK)]))
    (stack,) = decode(raw).stacks
    assert stack.error_bytes == round(64 * math.sqrt(16 * 15 + 8 * 7))


def test_per_cpu_memory_is_as_large_as_on_all_possible_cpus() -> None:
    raw = raw_objects(object_entries([(0x2A5F4 | Kind.PERCPU, STACK)], size_bytes=24, level=1))
    (stack,) = decode(raw, possible_cpus=6).stacks
    assert (stack.outstanding_bytes, stack.outstanding_blocks) == (2 * 6 * 24, 2)
    assert (stack.memory_class, stack.slab_cache) == (ClassName.PERCPU, "")
    assert stack.error_bytes == round(6 * 24 * math.sqrt(2))


AREA = 0xFFFFC90000000000 | Kind.VMALLOC
VMALLOC_STACK = ("alloc_vmap_area+0x1", "__get_vm_area_node+0x1", "__vmalloc_node_range_noprof+0x1", "load+0x9")


def named(*stacks: tuple[int, tuple[str, ...]]) -> dict[str, Any]:
    """Tables with the names of the frames of each stack."""
    symbols = {stack * 100 + n: frame for stack, frames in stacks for n, frame in enumerate(frames)}
    entries = stack_entries({stack: [stack * 100 + n for n in range(len(frames))] for stack, frames in stacks})
    return {"symbols": symbols, "stacks": entries, "contexts": np.full(len(entries), ContextCode.PROCESS, np.uint8)}


def test_areas_of_vmalloc_are_listed_and_other_areas_are_not() -> None:
    """vmap and ioremap map memory that was allocated otherwise, or belongs to a device."""
    others = ("alloc_vmap_area+0x1", "__get_vm_area_node+0x1", "get_vm_area_caller+0x1", "ioremap_prot+0x9")
    raw = raw_objects(
        object_entries([(AREA, STACK), (AREA + PAGE_BYTES, OTHER_STACK)], size_bytes=3 * PAGE_BYTES),
        **named((STACK, VMALLOC_STACK), (OTHER_STACK, others)),
    )
    (stack,) = decode(raw).stacks
    assert (stack.memory_class, stack.outstanding_bytes, stack.frames) == ("Vmalloc", 3 * PAGE_BYTES, ["load+0x9"])


def test_what_vmalloc_allocated_is_summed_up_freed_or_not() -> None:
    others = ("alloc_vmap_area+0x1", "__get_vm_area_node+0x1", "ioremap_prot+0x2")
    raw = raw_objects(
        object_entries(),
        **named((STACK, VMALLOC_STACK), (OTHER_STACK, others)),
        totals=np.array([(STACK, (3, 6, 600)), (OTHER_STACK, (2, 4, 50))], tables.TOTALS_ENTRY_DTYPE),
    )
    result = decode(raw)
    assert (result.stacks, result.vmalloc_area_bytes) == ([], 600)


def test_an_area_whose_stack_was_lost_is_listed() -> None:
    raw = raw_objects(object_entries([(AREA, 0)], size_bytes=PAGE_BYTES), stacks=stack_entries({}))
    (stack,) = decode(raw).stacks
    assert (stack.memory_class, stack.context) == ("Vmalloc", Context.MIXED)


def test_stacks_that_differ_in_frames_of_the_allocator_only_are_one() -> None:
    raw = raw_objects(
        object_entries([(page(1), STACK), (page(2), OTHER_STACK)]),
        **named(
            (STACK, ("kmem_cache_alloc_noprof+0x8", "alloc_empty_file+0x1")),
            (OTHER_STACK, ("kmem_cache_alloc_noprof+0x99", "alloc_empty_file+0x1")),
        ),
        totals=np.array([(STACK, (3, 3, 0)), (OTHER_STACK, (2, 4, 0))], tables.TOTALS_ENTRY_DTYPE),
        lives=np.array([((STACK, 80), 1), ((OTHER_STACK, 40), 5)], tables.MAPS["lives"]),
    )
    (stack,) = decode(raw).stacks
    assert (stack.outstanding_blocks, stack.frames) == (2, ["alloc_empty_file+0x1"])
    assert (stack.allocated_bytes, stack.freed_bytes, stack.sampled_share) == (7 * 64, 5 * 64, 5 / 7)
    assert stack.median_life_seconds == pytest.approx(1152e-6)


def test_objects_of_a_stack_are_apart_by_cache() -> None:
    raw = raw_objects(object_entries([(page(1), STACK), (page(2), STACK), (page(3), STACK)]))
    first, second = decode(raw, located(raw, [SMALL, LARGE], [0, 1, 1])).stacks
    assert (first.slab_cache, first.outstanding_bytes, first.reclaimable) == ("dentry", 2 * 192, True)
    assert (second.slab_cache, second.outstanding_bytes, second.reclaimable) == ("kmalloc-64", 64, False)


def test_objects_that_are_in_no_slab_or_free_are_counted_and_not_listed() -> None:
    """A large kmalloc is in no slab: its pages are those of the page trace. So it is neither unknown nor freed."""
    rows = [(page(1), STACK), (SPARSE, STACK), (page(3), STACK), (page(4), STACK), (SPARSE + 0x100, STACK)]
    raw = raw_objects(object_entries(rows))
    slabs = LocatedObjects(
        [SMALL],
        np.array([0, -1, -1, 0, -1], np.int32),
        is_allocated=np.array([True, False, False, False, False]),
        is_gone=np.array([False, False, True, False, True]),
    )
    result = decode(raw, slabs)
    (stack,) = result.stacks
    assert stack.outstanding_bytes == 64
    assert (result.unresolved_objects, result.unseen_frees) == (1, 2)


def test_an_object_that_was_picked_for_the_size_of_another_cache_is_gone() -> None:
    """It was freed in a way that showed no cache, and its place is in a slab of small objects now."""
    rows = [(SPARSE, STACK), (SPARSE + 0x140, STACK), (SPARSE + 0x240, STACK)]
    raw = raw_objects(object_entries(rows, one_in=4))
    result = decode(raw, located(raw, [SMALL, slab_cache("TCP", 1088)], [0, 1, 1]))
    (stack,) = result.stacks
    assert (stack.slab_cache, stack.outstanding_blocks) == ("TCP", 8)
    assert result.unseen_frees == 1


def test_what_a_stack_allocated_is_divided_among_its_caches() -> None:
    """The totals are of the stack; no cache has more than its share of them."""
    raw = raw_objects(
        object_entries([(page(number), STACK) for number in range(1, 5)]),
        totals=np.array([(STACK, (40, 40, 0))], tables.TOTALS_ENTRY_DTYPE),
    )
    stacks = decode(raw, located(raw, [SMALL, LARGE], [0, 1, 0, 0])).stacks
    assert {stack.slab_cache: stack.allocated_bytes for stack in stacks} == {"kmalloc-64": 30 * 64, "dentry": 10 * 192}


def test_slab_objects_keep_their_slabs_among_other_kinds() -> None:
    rows = [(0x100 | Kind.PERCPU, OTHER_STACK), (page(1), STACK), (0x200 | Kind.PERCPU, OTHER_STACK), (page(2), STACK)]
    raw = raw_objects(object_entries(rows, size_bytes=8))
    slabs = LocatedObjects([SMALL, LARGE], np.array([0, 1], np.int32), np.array([False, True]), np.zeros(2, np.bool_))
    found = {stack.memory_class: stack.outstanding_bytes for stack in decode(raw, slabs).stacks}
    assert found == {ClassName.SLAB: 192, ClassName.PERCPU: 2 * 4 * 8}


def test_without_slabs_their_objects_are_left_out_and_so_is_the_class() -> None:
    raw = raw_objects(object_entries([(page(1), STACK), (0x100 | Kind.PERCPU, STACK)], size_bytes=8))
    result = decode_objects(raw, None, possible_cpus=1)
    assert [stack.memory_class for stack in result.stacks] == ["Percpu"]
    assert result.classes == ["Percpu", "Vmalloc"]
    assert (result.unresolved_objects, result.unseen_frees) == (0, 0)
    assert decode(raw).classes == ["Slab", "Percpu", "Vmalloc"]


def test_only_traced_kinds_are_named() -> None:
    assert decode(raw_objects(object_entries(), kinds=(Kind.SLAB, Kind.PERCPU))).classes == ["Slab", "Percpu"]


def test_objects_from_before_the_start_do_not_count() -> None:
    entries = object_entries([(page(1), STACK), (page(2), STACK)])
    entries["value"]["born_ns"][0] -= 1
    (stack,) = decode(raw_objects(entries)).stacks
    assert stack.outstanding_blocks == 1


def test_births_are_those_of_their_slice_and_the_rest_is_in_the_last_one() -> None:
    entries = object_entries([(page(number), STACK) for number in range(4)])
    entries["value"]["born_ns"] = STARTED_NS + np.array([0, 1.5, 1.9, 12]) * SECOND_NS
    (stack,) = decode(raw_objects(entries, traced_seconds=12.5)).stacks
    assert stack.births_bytes == [64, 2 * 64, 0, 0, 0, 0, 0, 0, 0, 64]


def test_objects_that_accumulate_all_the_time_grow() -> None:
    entries = object_entries([(page(number), STACK) for number in range(200)])
    entries["value"]["born_ns"] = STARTED_NS + np.arange(200) * SECOND_NS // 20
    (stack,) = decode(raw_objects(entries)).stacks
    assert stack.trend is Trend.GROWING
    assert stack.growth_bytes_per_second == pytest.approx(20 * 64)


def with_processes(context: ContextCode) -> RawObjects:
    processes = np.zeros(2, tables.PROCESS_ENTRY_DTYPE)
    processes["key"], processes["value"]["comm"], processes["value"]["cgroup"] = [7, 8], [b"leaker", b"idle"], [55, 56]
    cgroups = np.zeros(1, tables.MAPS["cgroups"])
    cgroups["key"][0] = 55
    container = "ab" * 32
    cgroups["value"][0, :2] = [f"cri-containerd-{container}.scope".encode(), b"kubepods.slice"]
    entries = object_entries([(page(number), STACK) for number in range(6)])
    entries["value"]["tgid"] = [7, 7, 7, 8, 0, 9]
    contexts = np.array([context], np.uint8)
    return raw_objects(entries, processes=processes, cgroups=cgroups, contexts=contexts)


def test_processes_are_those_of_process_context_with_their_container() -> None:
    (stack,) = decode(with_processes(ContextCode.PROCESS)).stacks
    assert [(one.pid, one.comm, one.outstanding_bytes) for one in stack.processes] == [
        (7, "leaker", 3 * 64),
        (8, "idle", 64),
        (9, "", 64),
    ]
    assert [one.container_id for one in stack.processes] == ["ab" * 32, "", ""]


@pytest.mark.parametrize("context", [ContextCode.SOFTIRQ, ContextCode.INTERRUPT, ContextCode.UNKNOWN])
def test_what_an_interrupt_allocates_belongs_to_no_process(context: ContextCode) -> None:
    (stack,) = decode(with_processes(context)).stacks
    assert stack.processes == []


def test_objects_that_an_eviction_kept_represent_those_that_it_dropped() -> None:
    evictions = Evictions(64)
    entries = object_entries([(page(number), STACK) for number in range(64)])
    dropped = evictions.choose(entries, now_ns=STARTED_NS + 1)
    left = entries[~np.isin(entries["key"], dropped)]
    came_back = entries[np.isin(entries["key"], dropped)][:1]  # it was allocated while it was dropped
    later = object_entries([(page(100), OTHER_STACK)])
    raw = raw_objects(
        np.concatenate((left, came_back, later)),
        evictions=evictions,
        **named((STACK, ("storm+0x1",)), (OTHER_STACK, ("other+0x1",))),
    )
    first, second = decode(raw).stacks
    (weight,) = set(np.exp2(evictions.levels(left)).tolist())
    assert weight > 1
    assert (first.outstanding_blocks, second.outstanding_blocks) == (len(left) * weight, 1)


def test_the_largest_stacks_are_listed_first_and_not_more_than_fit() -> None:
    rows = [(page(1000 * stack + n), stack) for stack in range(1, MAX_OBJECT_STACKS + 4) for n in range(1 + stack % 3)]
    raw = raw_objects(
        object_entries(rows), **named(*((stack, (f"caller{stack}+0x1",)) for stack in {row[1] for row in rows}))
    )
    stacks = decode(raw).stacks
    sizes = [stack.outstanding_bytes for stack in stacks]
    assert len(stacks) == MAX_OBJECT_STACKS
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (3 * 64, 64)


def test_counters_are_those_of_all_cpus() -> None:
    cpus = np.zeros(2, tables.CPU_DTYPE)
    cpus["recorded"], cpus["lost_objects"] = [30, 70], [1, 2]
    cpus["timed"], cpus["recording_ns"] = [4, 1], [4000, 1000]
    result = decode(raw_objects(object_entries(), cpus=cpus, table_bytes=5))
    assert (result.recorded_objects, result.lost_objects, result.table_bytes) == (100, 3, 5)
    assert result.program_seconds == pytest.approx(100 * 1e-6)
    assert result.stacks == []


@given(
    st.lists(st.tuples(st.binary(min_size=40, max_size=40), st.integers(-1, 1), st.booleans()), max_size=30),
    st.binary(min_size=32, max_size=32),
)
def test_any_table_is_decoded(rows: list[tuple[bytes, int, bool]], totals: bytes) -> None:
    """Values in a map are not trusted."""
    entries = np.frombuffer(b"".join(row for row, _, _ in rows), tables.OBJECT_ENTRY_DTYPE)
    is_slab = (entries["key"] & np.uint64(tables.KIND_MASK)) == Kind.SLAB
    caches = np.array([cache for _, cache, _ in rows], np.int32)[is_slab]
    allocated = np.array([out for _, _, out in rows], np.bool_)[is_slab] & (caches >= 0)
    raw = raw_objects(entries, totals=np.frombuffer(totals, tables.TOTALS_ENTRY_DTYPE), stacks=stack_entries({}))
    for stack in decode(raw, LocatedObjects([SMALL, LARGE], caches, allocated, caches < 0)).stacks:
        assert stack.outstanding_bytes == pytest.approx(sum(stack.births_bytes), abs=10)
        assert stack.allocated_bytes >= stack.outstanding_bytes
