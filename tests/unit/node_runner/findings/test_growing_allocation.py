"""Findings about call stacks that keep allocating, by table."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memdiag_api.evidence import (
    AllocatingProcess,
    Breakdown,
    Context,
    HeldBy,
    Holder,
    HolderKind,
    MemoryClass,
    Stack,
    Trend,
)
from memdiag_api.findings import LeakAnswer
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.growing_allocation import growing_allocations
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import DAY_SECONDS, GIB, MIB, Thresholds
from memdiag_node.holding import PINNED_DTYPE, Holding
from support.arbitrary_measurements import EMPTY
from support.measurements import host_of

GROWING = Stack(
    frames=["driver_alloc+0x10 [driver]", "driver_poll+0x20 [driver]"],
    context=Context.SOFTIRQ,
    outstanding_bytes=60 * MIB,
    outstanding_blocks=1,
    allocated_bytes=60 * MIB,
    growth_bytes_per_second=MIB,
    trend=Trend.GROWING,
)
JAVA = AllocatingProcess(pid=7, comm="java", outstanding_bytes=60 * MIB)


def found(
    *,
    total_bytes: int = 16 * GIB,
    free_bytes: int = 8 * GIB,
    suspects: tuple[int, ...] = (),
    holders: Sequence[Holder] = (),
    **changes: Any,
) -> list[Draft]:
    breakdown = Breakdown(
        mem_total_bytes=total_bytes,
        classes=[MemoryClass(name="MemFree", group="Free", size_bytes=free_bytes)],
        alloc_page_bytes=GIB,
        alloc_page_error_bytes=0,
    )
    stacks = [GROWING.model_copy(update=changes)]
    holdings = [Holding(one, np.empty(0, PINNED_DTYPE)) for one in holders]
    measured = replace(EMPTY, host=host_of(total_bytes), breakdown=breakdown, stacks=stacks, holdings=holdings)
    return list(growing_allocations(Situation(measured, Thresholds()), suspects))


@pytest.mark.parametrize(
    ("changes", "leak"),
    [
        pytest.param({}, LeakAnswer.YES, id="steady"),
        pytest.param({"outstanding_bytes": 15 * MIB}, None, id="below the floor"),
        pytest.param(
            {"total_bytes": 512 * GIB, "free_bytes": 500 * GIB},
            LeakAnswer.YES,
            id="the floor does not grow with memory",
        ),
        pytest.param(
            {"growth_bytes_per_second": 100 * MIB / DAY_SECONDS}, None, id="slow, and free memory lasts for 80 days"
        ),
        pytest.param(
            {"growth_bytes_per_second": 100 * MIB / DAY_SECONDS, "free_bytes": GIB},
            LeakAnswer.YES,
            id="slow, but free memory lasts for 10 days",
        ),
        pytest.param({"trend": Trend.PINNED}, LeakAnswer.UNKNOWN, id="a burst"),
        pytest.param({"trend": Trend.UNCLEAR}, LeakAnswer.UNKNOWN, id="faster and faster"),
        pytest.param({"trend": Trend.PINNED, "outstanding_bytes": 15 * MIB}, None, id="a small burst"),
        pytest.param({"trend": Trend.PINNED, "explained_bytes": 50 * MIB}, None, id="a burst that holders have"),
        pytest.param({"trend": Trend.CHURN}, None, id="churn"),
        pytest.param({"trend": Trend.PINNED, "freed_bytes": 30 * MIB}, None, id="a burst of which much is freed"),
        pytest.param({"frames": ["xfs_buf_alloc_backing_mem+0x8 [xfs]"]}, LeakAnswer.NO, id="buffers of XFS"),
        pytest.param({"frames": ["abd_alloc_chunks+0x8 [zfs]"], "trend": Trend.PINNED}, LeakAnswer.NO, id="ARC of ZFS"),
        pytest.param({"frames": ["unnamed#0a1b2c3d"]}, None, id="without names"),
        pytest.param(
            {"frames": ["__vmalloc_area_node+0x8", "dup_task_struct+0x8"], "memory_class": "Vmalloc"},
            LeakAnswer.NO,
            id="stacks of new threads",
        ),
        pytest.param(
            {"frames": ["__kvm_mmu_topup_memory_cache+0x8 [kvm]"]}, LeakAnswer.NO, id="page tables of a virtual machine"
        ),
        pytest.param({"memory_class": "PageTables"}, LeakAnswer.NO, id="page tables"),
        pytest.param({"memory_class": "Percpu"}, LeakAnswer.UNKNOWN, id="new cgroups"),
        pytest.param({"memory_class": "Vmalloc"}, LeakAnswer.UNKNOWN, id="new maps"),
        pytest.param({"memory_class": "PageTables", "trend": Trend.PINNED}, None, id="a burst of page tables"),
        pytest.param({"memory_class": "KernelStack"}, LeakAnswer.NO, id="a class of the stacks of threads"),
        pytest.param({"memory_class": "Slab"}, LeakAnswer.YES, id="large kmalloc"),
        pytest.param(
            {"memory_class": "Slab", "outstanding_by_order": {"1": 9, "3": 9}},
            LeakAnswer.UNKNOWN,
            id="slabs of no known cache",
        ),
        pytest.param(
            {"memory_class": "Slab", "slab_cache": "kmalloc-64"}, None, id="slab caches have a rule of their own"
        ),
    ],
)
def test_whether_it_is_a_leak(changes: dict[str, Any], leak: LeakAnswer | None) -> None:
    drafts = found(**changes)
    assert [one.leak for one in drafts] == ([] if leak is None else [leak])
    of_cache = any("xfs_" in frame or "abd_" in frame for frame in changes.get("frames", ()))
    assert all(one.reclaimable == of_cache for one in drafts)


@pytest.mark.parametrize(
    ("trend", "memory_class", "held_bytes", "is_found"),
    [
        (Trend.PINNED, "Vmalloc", 59 * MIB, False),
        (Trend.PINNED, "Vmalloc", 20 * MIB, True),
        (Trend.PINNED, "Percpu", 59 * MIB, True),
        (Trend.GROWING, "Vmalloc", 59 * MIB, True),
    ],
)
def test_a_burst_of_bpf_maps_that_are_known_is_no_finding_of_its_own(
    trend: Trend, memory_class: str, held_bytes: int, is_found: bool
) -> None:
    """One that goes on is: the finding about the maps does not show that they grow."""
    maps = Holder(kind=HolderKind.BPF_MAP, memory_class="Vmalloc", pinned_bytes=held_bytes)
    frames = ["bpf_map_area_alloc+0x10", "array_map_alloc+0x20"]
    drafts = found(holders=[maps], frames=frames, memory_class=memory_class, trend=trend)
    assert bool(drafts) is is_found


def test_what_a_leaking_holder_has_is_not_a_second_leak() -> None:
    held: dict[str, Any] = {"held_by": [HeldBy(holder=3, size_bytes=50 * MIB, share=0.8)], "explained_bytes": 50 * MIB}
    assert found(suspects=(3,), **held) == []
    (draft,) = found(**held)
    assert (draft.leak, draft.size_bytes) == (LeakAnswer.YES, 60 * MIB)
    assert draft.claimed_bytes == {"AllocPage": 10 * MIB}


@pytest.mark.parametrize(
    ("of_suspect_bytes", "explained_bytes", "findings"),
    [
        pytest.param(40 * MIB, 60 * MIB, 0, id="the rest is in other holders, as in a sender's queue"),
        pytest.param(40 * MIB, 40 * MIB, 1, id="nobody has the rest"),
        pytest.param(20 * MIB, 60 * MIB, 1, id="other holders have most of it"),
    ],
)
def test_a_stack_that_mostly_fills_a_leaking_holder(of_suspect_bytes: int, explained_bytes: int, findings: int) -> None:
    held: dict[str, Any] = {
        "held_by": [HeldBy(holder=3, size_bytes=of_suspect_bytes, share=0.5)],
        "explained_bytes": explained_bytes,
    }
    assert len(found(suspects=(3,), **held)) == findings


@pytest.mark.parametrize(
    ("changes", "kind", "name"),
    [
        ({}, OwnerKind.CALL_STACK, "driver_alloc+0x10 [driver]"),
        ({"memory_class": "Vmalloc"}, OwnerKind.MODULE, "driver_alloc [driver]"),
        ({"memory_class": "Percpu", "frames": ["a+0x1", "b+0x2 [x]", "c+0x3 [y]"]}, OwnerKind.MODULE, "b [x]"),
        ({"memory_class": "Vmalloc", "frames": ["array_map_alloc+0x1", "map_create+0x2"]}, OwnerKind.KERNEL, "BPF"),
        (
            {"memory_class": "Percpu", "frames": ["mem_cgroup_css_alloc+0x1", "cgroup_mkdir+0x2"]},
            OwnerKind.KERNEL,
            "memory cgroups",
        ),
        ({"memory_class": "Vmalloc", "frames": ["some_alloc+0x1"]}, OwnerKind.CALL_STACK, "some_alloc+0x1"),
        ({"memory_class": "KernelStack", "processes": [JAVA]}, OwnerKind.PROCESS, "java[7]"),
        ({"memory_class": "PageTables", "processes": [JAVA]}, OwnerKind.PROCESS, "java[7]"),
        ({"memory_class": "PageTables"}, OwnerKind.CALL_STACK, "driver_alloc+0x10 [driver]"),
        ({"processes": [JAVA]}, OwnerKind.CALL_STACK, "driver_alloc+0x10 [driver]"),
    ],
)
def test_the_owner_is_who_the_stack_and_the_class_show(changes: dict[str, Any], kind: OwnerKind, name: str) -> None:
    (draft,) = found(**changes)
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.name) == (kind, name)
    is_said = f"the call stack shows that it belongs to {name}" in draft.reasons
    assert is_said == (kind in (OwnerKind.KERNEL, OwnerKind.MODULE))


@pytest.mark.parametrize("memory_class", ["Slab", "Vmalloc", "Percpu", "PageTables", "KernelStack", "Zsmalloc"])
def test_only_stacks_of_allocpage_account_for_memory(memory_class: str) -> None:
    (draft,) = found(memory_class=memory_class)
    assert draft.claimed_bytes == {}


def test_the_trend_says_how_long_memory_lasts() -> None:
    (draft,) = found()
    assert draft.trend is not None
    assert draft.trend.exhausts_node_in_seconds == 8 * 1024
    assert "at this rate, free and reclaimable memory lasts for 2 h" in draft.reasons
