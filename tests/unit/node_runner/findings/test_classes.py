"""Findings about what is left of each class of the breakdown, by table."""

from dataclasses import replace

import numpy as np
import pytest

from memdiag_api.evidence import Breakdown, Holder, HolderKind, MemoryClass, Owner
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.owners import ClassOwners
from memdiag_node.findings.classes import growing_classes, known_bytes, plain_classes, unexplained_classes
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from memdiag_node.holding import PINNED_DTYPE, Holding
from support.arbitrary_measurements import EMPTY
from support.measurements import host_of


def situation(
    *, total_bytes: int = 16 * GIB, held_bytes: int = 0, explained: dict[str, int] | None = None, **classes: int
) -> Situation:
    """A node with these sizes of classes."""
    breakdown = Breakdown(
        mem_total_bytes=total_bytes,
        classes=[MemoryClass(name=name, group="Kernel", size_bytes=size) for name, size in classes.items()],
        alloc_page_bytes=classes.get("AllocPage", 0),
        alloc_page_error_bytes=0,
    )
    owners = [
        ClassOwners(memory_class=name, size_bytes=classes[name], explained_bytes=size)
        for name, size in (explained or {}).items()
    ]
    measured = replace(EMPTY, host=host_of(total_bytes), breakdown=breakdown, owners=owners)
    return Situation(measured, Thresholds(), held_bytes)


@pytest.mark.parametrize(
    ("node", "claimed", "size_bytes"),
    [
        pytest.param(situation(AllocPage=GIB), {}, GIB, id="in no holder"),
        pytest.param(situation(AllocPage=GIB, held_bytes=900 * MIB), {}, None, id="held"),
        pytest.param(situation(Vmalloc=GIB), {}, GIB, id="vmalloc"),
        pytest.param(situation(Vmalloc=GIB), {"Vmalloc": GIB}, None, id="another finding is about it"),
        pytest.param(situation(Shmem=GIB, explained={"Shmem": 900 * MIB}), {}, None, id="owners are known"),
        pytest.param(situation(Percpu=GIB), {}, GIB, id="per-CPU"),
        pytest.param(situation(AnonPages=9 * GIB), {}, None, id="memory of processes"),
        pytest.param(situation(SUnreclaim=9 * GIB), {}, None, id="slab is judged by cache"),
        pytest.param(situation(AllocPage=300 * MIB), {}, None, id="less than 2 % of memory"),
        pytest.param(situation(total_bytes=512 * GIB, AllocPage=5 * GIB), {}, 5 * GIB, id="the ceiling of large nodes"),
        pytest.param(situation(total_bytes=512 * GIB, AllocPage=3 * GIB), {}, None, id="below the ceiling"),
    ],
)
def test_what_nobody_has_is_unexplained(node: Situation, claimed: dict[str, int], size_bytes: int | None) -> None:
    drafts = list(unexplained_classes(node, claimed, traced_bytes=0))
    assert [one.size_bytes for one in drafts] == ([] if size_bytes is None else [size_bytes])
    assert all((one.kind, one.leak) == (FindingKind.UNEXPLAINED, LeakAnswer.UNKNOWN) for one in drafts)


def test_what_call_stacks_account_for_is_not_unexplained() -> None:
    node = situation(AllocPage=GIB, held_bytes=100 * MIB)
    assert [one.size_bytes for one in unexplained_classes(node, {}, traced_bytes=0)] == [924 * MIB]
    assert list(unexplained_classes(node, {"AllocPage": 800 * MIB}, traced_bytes=800 * MIB)) == []


@pytest.mark.parametrize(
    ("name", "change_bytes", "judged_bytes", "is_finding"),
    [
        ("SUnreclaim", 20 * MIB, 0, True),
        ("SUnreclaim", 20 * MIB, 10 * MIB, False),
        ("Vmalloc", 20 * MIB, 0, True),
        ("SecPageTables", 20 * MIB, 0, True),
        ("SUnreclaim", 15 * MIB, 0, False),
        ("SUnreclaim", -20 * MIB, 0, False),
        ("AnonPages", GIB, 0, False),
        ("SReclaimable", GIB, 0, False),
    ],
)
def test_growth_of_a_kernel_class_in_the_window(
    name: str, change_bytes: int, judged_bytes: int, is_finding: bool
) -> None:
    node = situation()
    assert node.measured.breakdown is not None
    grown = MemoryClass(name=name, group="Kernel", size_bytes=9 * GIB, change_bytes=change_bytes)
    breakdown = node.measured.breakdown.model_copy(update={"classes": [grown]})
    drafts = list(
        growing_classes(Situation(replace(node.measured, breakdown=breakdown), Thresholds()), {name: judged_bytes})
    )
    assert len(drafts) == is_finding
    for draft in drafts:
        assert (draft.kind, draft.leak, draft.claimed_bytes) == (FindingKind.GROWING_CLASS, LeakAnswer.UNKNOWN, {})
        assert draft.trend is not None
        assert draft.trend.bytes_per_second == pytest.approx(change_bytes / 60)


def test_who_has_much_of_a_class_that_grew_is_named() -> None:
    maps = [
        Holder(
            kind=HolderKind.BPF_MAP,
            memory_class="Vmalloc",
            owners=[Owner(pid=pid, comm="agent", fds=[4])],
            owners_total=1,
            pinned_bytes=size,
        )
        for pid, size in ((7, 60 * MIB), (8, 10 * MIB))
    ]
    node = situation()
    assert node.measured.breakdown is not None
    grown = MemoryClass(name="Vmalloc", group="Kernel", size_bytes=GIB, change_bytes=100 * MIB)
    measured = replace(
        node.measured,
        breakdown=node.measured.breakdown.model_copy(update={"classes": [grown]}),
        holdings=[Holding(one, np.empty(0, PINNED_DTYPE)) for one in maps],
    )
    (draft,) = growing_classes(Situation(measured, Thresholds()), {})
    assert draft.owner is not None
    assert (draft.owner.pid, draft.leak, draft.holders) == (7, LeakAnswer.UNKNOWN, [0])
    assert "agent[7] has 60.0 MiB of it now, in a BPF map" in draft.reasons


def test_bpf_maps_of_this_run_explain_their_class_and_do_not_count_as_growth() -> None:
    own = Holding(
        Holder(kind=HolderKind.BPF_MAP, memory_class="Vmalloc", pinned_bytes=500 * MIB),
        np.empty(0, PINNED_DTYPE),
        is_own=True,
    )
    node = situation(Vmalloc=GIB)
    assert node.measured.breakdown is not None
    grown = MemoryClass(name="Vmalloc", group="Kernel", size_bytes=GIB, change_bytes=501 * MIB)
    breakdown = node.measured.breakdown.model_copy(update={"classes": [grown]})
    with_own = Situation(replace(node.measured, breakdown=breakdown, own_holdings=[own]), Thresholds())
    assert list(growing_classes(with_own, {})) == []
    assert len(list(growing_classes(Situation(replace(with_own.measured, own_holdings=()), Thresholds()), {}))) == 1
    assert known_bytes(with_own, "Vmalloc", {}, traced_bytes=0) == 500 * MIB


def test_the_rest_of_each_class_is_said_once() -> None:
    node = situation(AnonPages=GIB, FileCache=2 * GIB, MemFree=9 * GIB, Vmalloc=10 * MIB)
    drafts = list(plain_classes(node, {"AnonPages": 500 * MIB}))
    assert [(one.kind, one.memory_class, one.size_bytes, one.reclaimable) for one in drafts] == [
        (FindingKind.PROCESS_MEMORY, "AnonPages", 524 * MIB, False),
        (FindingKind.FILE_CACHE, "FileCache", 2 * GIB, True),
    ]
