"""Findings about slab objects that a call stack keeps allocating, by table."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from memdiag_api.census.slab import SlabCache, SlabCaches
from memdiag_api.evidence import (
    AllocatingProcess,
    AllocationUnit,
    Breakdown,
    Census,
    Context,
    Holder,
    HolderKind,
    MemoryClass,
    Stack,
    Trace,
    TraceCounters,
    Trend,
)
from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.draft import Draft, ranked
from memdiag_node.findings.growing_objects import growing_objects
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.rules import find
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import DAY_SECONDS, GIB, KIB, MIB, Thresholds
from memdiag_node.findings.verdict import decide_verdict
from memdiag_node.holding import PINNED_DTYPE, Holding
from support.arbitrary_measurements import EMPTY, blocks
from support.measurements import window_of

LEAK = Stack(
    frames=["leak_fn+0x10/0x40 [driver]", "process_one_work+0x20"],
    context=Context.PROCESS,
    memory_class="Slab",
    unit=AllocationUnit.OBJECTS,
    slab_cache="kmalloc-64",
    outstanding_bytes=12 * MIB,
    outstanding_blocks=192_000,
    growth_bytes_per_second=200 * KIB,
    trend=Trend.GROWING,
    sampled_share=1 / 16,
)
NGINX = AllocatingProcess(pid=4711, comm="nginx", container_id="c0ffee" * 8, outstanding_bytes=11 * MIB)
LARGE = {"outstanding_bytes": 20 * MIB}
SMALL = {"outstanding_bytes": MIB, "growth_bytes_per_second": MIB / 60}


def measured(*stacks: Stack, caches: tuple[SlabCache, ...] = (), grown: Mapping[str, int] = {}) -> Measurements:
    breakdown = Breakdown(
        mem_total_bytes=16 * GIB,
        classes=[
            MemoryClass(name="MemFree", group="Free", size_bytes=8 * GIB),
            *(
                MemoryClass(name=name, group="Kernel", size_bytes=100 * MIB, change_bytes=grew)
                for name, grew in grown.items()
            ),
        ],
        alloc_page_bytes=0,
        alloc_page_error_bytes=0,
    )
    slab = SlabCaches(caches=list(caches), reclaimable_bytes=0, unreclaimable_bytes=0, difference_bytes=0)
    trace = Trace(
        outstanding_bytes=0,
        outstanding_blocks=0,
        slice_seconds=3,
        object_classes=["Slab", "Vmalloc", "Percpu"],
        counters=TraceCounters(),
    )
    return replace(EMPTY, breakdown=breakdown, stacks=stacks, trace=trace, census=Census(compound=[], slab=slab))


def found(*, packet_bytes: int = 0, window_seconds: float = 60, **changes: Any) -> list[Draft]:
    run = replace(measured(LEAK.model_copy(update=changes)), window=window_of(window_seconds))
    return list(growing_objects(Situation(run, Thresholds()), packet_bytes=packet_bytes))


def test_the_sentence_names_the_cache_and_the_function() -> None:
    (draft,) = found()
    assert draft.sentence == (
        "kmalloc-64 objects allocated through leak_fn [driver] grow by 200 KiB/s: 12.0 MiB were not freed in the "
        "window."
    )
    assert (draft.kind, draft.memory_class) == (FindingKind.GROWING_ALLOCATION, "SUnreclaim")
    assert (draft.claimed_bytes, draft.stacks) == ({}, [0])
    assert "192,000 objects" in draft.reasons[0]
    assert "6.25% of the allocations were recorded" in draft.reasons[1]


@pytest.mark.parametrize(
    ("changes", "leak"),
    [
        pytest.param({}, LeakAnswer.UNKNOWN, id="below the floor of the suspect size"),
        pytest.param(LARGE, LeakAnswer.YES, id="from it on"),
        pytest.param(SMALL, LeakAnswer.UNKNOWN, id="1 MiB per minute"),
        pytest.param({**SMALL, "outstanding_bytes": 500 * KIB}, None, id="less than 512 KiB per minute"),
        pytest.param({**SMALL, "window_seconds": 10}, LeakAnswer.UNKNOWN, id="in a short window"),
        pytest.param(
            {"outstanding_bytes": 255 * KIB, "window_seconds": 10}, None, id="less than 256 KiB in any window"
        ),
        pytest.param({**SMALL, "window_seconds": 1800}, None, id="in a long window"),
        pytest.param({**SMALL, "error_bytes": 300 * KIB}, None, id="less than twice the error above the minimum"),
        pytest.param({"growth_bytes_per_second": 100 * MIB / DAY_SECONDS}, None, id="slow, and memory lasts"),
        *(pytest.param({**LARGE, "trend": one}, None, id=one.value) for one in Trend if one is not Trend.GROWING),
        pytest.param({**LARGE, "frames": ["unnamed#0a1b2c3d"]}, None, id="without names"),
        pytest.param({**LARGE, "slab_cache": ""}, None, id="large kmalloc is judged like pages"),
        pytest.param({**LARGE, "memory_class": "Vmalloc"}, None, id="another class"),
        pytest.param({**LARGE, "slab_cache": "dentry", "reclaimable": True}, None, id="reclaimable"),
        pytest.param(
            {"outstanding_bytes": 70 * MIB, "slab_cache": "dentry", "reclaimable": True},
            LeakAnswer.NO,
            id="reclaimable, of the notable size",
        ),
        pytest.param({**LARGE, "frames": ["xfs_buf_alloc_kmem+0x1"]}, None, id="a cache that a shrinker gives back"),
        pytest.param({"slab_cache": "nf_conntrack"}, None, id="expires, below the suspect size"),
        pytest.param({**LARGE, "slab_cache": "nf_conntrack"}, LeakAnswer.NO, id="expires"),
        pytest.param({**LARGE, "slab_cache": "tw_sock_TCP"}, LeakAnswer.NO, id="closed connections"),
        pytest.param({**SMALL, "slab_cache": "filp"}, LeakAnswer.NO, id="a service that starts"),
        pytest.param({**LARGE, "slab_cache": "filp"}, LeakAnswer.UNKNOWN, id="many open files"),
        pytest.param({**LARGE, "frames": ["kernfs_new_node+0x1"]}, LeakAnswer.UNKNOWN, id="new cgroups"),
    ],
)
def test_whether_it_is_a_leak(changes: dict[str, Any], leak: LeakAnswer | None) -> None:
    drafts = found(**changes)
    assert [one.leak for one in drafts] == ([] if leak is None else [leak])
    for draft in drafts:
        assert draft.memory_class == ("SReclaimable" if changes.get("reclaimable") else "SUnreclaim")
        assert draft.reclaimable == bool(changes.get("reclaimable"))
        if leak is LeakAnswer.UNKNOWN:
            assert draft.confidence is Confidence.MEDIUM


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({**LARGE, "slab_cache": "nf_conntrack"}, "they expire by timers, or their number is limited by configuration"),
        (
            {**LARGE, "slab_cache": "filp"},
            "these objects belong to the process: they are freed when it exits or closes them",
        ),
        ({}, "below 16.0 MiB, one window cannot show whether the growth continues"),
        ({"context": Context.SOFTIRQ}, "the allocations are made in SoftIRQ context: no process can be named"),
        ({"processes": [NGINX]}, "nginx[4711] allocated 11.0 MiB of it"),
    ],
)
def test_the_reasons(changes: dict[str, Any], reason: str) -> None:
    (draft,) = found(**changes)
    assert reason in draft.reasons


@pytest.mark.parametrize(
    ("cache", "processes", "kind", "pid"),
    [
        ("kmalloc-64", [NGINX], OwnerKind.CALL_STACK, 4711),
        ("kmalloc-64", [], OwnerKind.CALL_STACK, 0),
        ("filp", [NGINX], OwnerKind.PROCESS, 4711),
        ("filp", [NGINX.model_copy(update={"outstanding_bytes": MIB})], OwnerKind.CALL_STACK, 4711),
    ],
)
def test_objects_of_a_process_are_its_own(
    cache: str, processes: list[AllocatingProcess], kind: OwnerKind, pid: int
) -> None:
    (draft,) = found(slab_cache=cache, processes=processes)
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.pid) == (kind, pid)
    assert draft.owner.container_id == ("c0ffee" * 8 if pid else "")


@pytest.mark.parametrize(
    ("packet_bytes", "size_bytes"), [(20 * MIB, None), (11 * MIB, None), (5 * MIB, 15 * MIB), (0, 20 * MIB)]
)
def test_packets_in_known_queues_are_not_a_second_finding(packet_bytes: int, size_bytes: int | None) -> None:
    drafts = found(**LARGE, slab_cache="skbuff_head_cache", packet_bytes=packet_bytes)
    assert [one.size_bytes for one in drafts] == ([] if size_bytes is None else [size_bytes])
    assert [one.size_bytes for one in found(**LARGE, packet_bytes=packet_bytes)] == [20 * MIB]


def test_pages_of_slabs_are_judged_if_no_objects_were_traced() -> None:
    pages = LEAK.model_copy(update={"unit": AllocationUnit.PAGES, **LARGE})
    run = measured(pages)
    assert find(Situation(run, Thresholds())) == []
    assert run.trace is not None
    blind = replace(run, trace=run.trace.model_copy(update={"object_classes": []}))
    (draft,) = growing_objects(Situation(blind, Thresholds()), packet_bytes=0)
    assert draft.leak is LeakAnswer.UNKNOWN
    assert draft.sentence.startswith("Pages of kmalloc-64 allocated through leak_fn [driver] grow by")


def cache(
    name: str = "kmalloc-64", *, size_bytes: int = 30 * MIB, grew_bytes: int = 24 * MIB, **changes: Any
) -> SlabCache:
    values = {"reclaimable": False, "slabs": 1, "objects": 1000, "places": 1000, "object_bytes": 64, **changes}
    return SlabCache(name=name, size_bytes=size_bytes, change_bytes=grew_bytes, **values)


def concluded(run: Measurements) -> list[Draft]:
    return ranked(find(Situation(run, Thresholds())))


@pytest.mark.parametrize(
    ("stack", "of_cache", "kinds"),
    [
        pytest.param({}, cache(), ["GrowingAllocation"], id="half of the growth"),
        pytest.param(
            {"outstanding_bytes": 11 * MIB}, cache(), ["GrowingClass", "GrowingAllocation"], id="less than half of it"
        ),
        pytest.param(
            {}, cache(size_bytes=80 * MIB), ["GrowingAllocation", "LargeClass"], id="and the cache has the notable size"
        ),
        pytest.param({"trend": Trend.PINNED}, cache(), ["GrowingClass"], id="a burst"),
        pytest.param(
            {**LARGE, "slab_cache": "nf_conntrack"}, cache("nf_conntrack"), ["GrowingClass"], id="objects that expire"
        ),
        pytest.param(
            {**LARGE, "slab_cache": "dentry", "outstanding_bytes": 70 * MIB, "reclaimable": True},
            cache("dentry", size_bytes=90 * MIB, reclaimable=True),
            ["ReclaimableSlab"],
            id="a reclaimable cache",
        ),
    ],
)
def test_one_growth_is_one_finding_and_its_stack_is_in_the_first(
    stack: dict[str, Any], of_cache: SlabCache, kinds: list[str]
) -> None:
    drafts = concluded(measured(LEAK.model_copy(update=stack), caches=(of_cache,)))
    assert [one.kind for one in drafts if one.memory_class != "AllocPage"] == kinds
    assert drafts[0].stacks == [0]
    of_caches = [one for one in drafts if one.owner and one.owner.kind is OwnerKind.SLAB_CACHE]
    for draft in of_caches:
        assert draft.stacks == [0]
        assert any("through leak_fn [driver]" in reason for reason in draft.reasons)


def test_a_large_cache_names_what_makes_it_grow() -> None:
    run = measured(LEAK, caches=(cache(size_bytes=400 * MIB),))
    first = concluded(run)[0]
    assert (first.kind, first.leak) == (FindingKind.LARGE_CLASS, LeakAnswer.UNKNOWN)
    assert "it grows through leak_fn [driver]: 200 KiB/s" in first.reasons
    assert "The call stack shows what allocates its objects" in first.advice


def test_a_cache_of_objects_that_expire_may_grow_but_not_without_limit() -> None:
    leaks = [
        concluded(measured(caches=(cache("nf_conntrack", size_bytes=size_bytes),)))[0].leak
        for size_bytes in (30 * MIB, 200 * MIB)
    ]
    assert leaks == [LeakAnswer.NO, LeakAnswer.UNKNOWN]
    assert concluded(measured(caches=(cache("ip_dst_cache"),)))[0].leak is LeakAnswer.UNKNOWN


def of_class(memory_class: str) -> Stack:
    update = {"memory_class": memory_class, "slab_cache": "", "outstanding_bytes": 30 * MIB}
    return LEAK.model_copy(update=update)


@pytest.mark.parametrize("name", ["SUnreclaim", "Vmalloc", "Percpu"])
def test_growth_that_a_stack_explains_is_not_that_of_its_class_again(name: str) -> None:
    stack = LEAK.model_copy(update={"outstanding_bytes": 30 * MIB}) if name == "SUnreclaim" else of_class(name)
    quiet = [one for one in concluded(measured(stack, grown={name: 35 * MIB})) if one.memory_class == name]
    assert FindingKind.GROWING_CLASS not in [one.kind for one in quiet]
    assert quiet[0].kind is FindingKind.GROWING_ALLOCATION
    loud = [one.kind for one in concluded(measured(stack, grown={name: 60 * MIB}))]
    assert FindingKind.GROWING_CLASS in loud


def test_packets_of_a_suspect_are_not_a_leak_of_slab() -> None:
    """Small datagrams that nobody reads: their heads and structs are the slab that grows."""
    holder = Holder(
        kind=HolderKind.SOCKET, unread_bytes=9 * MIB, head_bytes=100 * MIB, pinned_bytes=0, stuck_seconds=60.0
    )
    stack = LEAK.model_copy(update={**LARGE, "slab_cache": "kmalloc-1k", "frames": ["__alloc_skb+0x10"]})
    run = replace(measured(stack), holdings=[Holding(holder, blocks(0, 0).astype(PINNED_DTYPE))])
    assert [one.kind for one in concluded(run)] == [FindingKind.UNREAD_SOCKET]


def test_a_growing_cache_decides_the_verdict() -> None:
    run = measured(LEAK.model_copy(update=LARGE))
    situation = Situation(run, Thresholds())
    verdict = decide_verdict(situation, ranked(find(situation)))
    assert verdict.kind == "GrowingKernelAllocation"
    assert verdict.stack == 0
