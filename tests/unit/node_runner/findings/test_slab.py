"""Findings about slab memory, by table."""

from dataclasses import replace

import pytest

from memdiag_api.census.clues import Clue, Clues
from memdiag_api.census.slab import ChargedCache, SlabCache, SlabCaches, SlabCharge
from memdiag_api.evidence import Breakdown, Census, MemoryClass
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.slab import slab_findings, slab_rest
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from support.arbitrary_measurements import EMPTY

THRESHOLDS = Thresholds()  # on 16 GiB: notable 64 MiB, large 328 MiB, half of it for one cache


def cache(
    name: str, size_bytes: int, *, reclaimable: bool = False, change_bytes: int = 0, purpose: str = ""
) -> SlabCache:
    return SlabCache(
        name=name,
        size_bytes=size_bytes,
        slabs=1,
        objects=1000,
        places=1000,
        object_bytes=64,
        reclaimable=reclaimable,
        change_bytes=change_bytes,
        purpose=purpose,
    )


def situation(*caches: SlabCache, unreclaimable_bytes: int = 0, clues: Clues | None = None) -> Situation:
    slab = SlabCaches(
        caches=list(caches),
        reclaimable_bytes=0,
        unreclaimable_bytes=0,
        difference_bytes=0,
        charged=[
            SlabCharge(
                container_id="c0ffee" * 8,
                size_bytes=GIB,
                objects=9,
                caches=[ChargedCache(name="kmalloc-64", size_bytes=300 * MIB)],
            )
        ],
    )
    classes = [MemoryClass(name="SUnreclaim", group="Kernel", size_bytes=unreclaimable_bytes)]
    breakdown = Breakdown(mem_total_bytes=16 * GIB, classes=classes, alloc_page_bytes=0, alloc_page_error_bytes=0)
    census = Census(compound=[], slab=slab, clues=clues)
    return Situation(replace(EMPTY, census=census, breakdown=breakdown), THRESHOLDS)


@pytest.mark.parametrize(
    ("found", "kind", "leak", "is_notable"),
    [
        (cache("kmalloc-64", 200 * MIB), FindingKind.LARGE_CLASS, LeakAnswer.UNKNOWN, True),
        (cache("kmalloc-64", 80 * MIB), FindingKind.LARGE_CLASS, LeakAnswer.NO, True),
        (cache("kmalloc-64", 60 * MIB), None, None, None),
        (cache("kmalloc-64", 60 * MIB, change_bytes=20 * MIB), FindingKind.GROWING_CLASS, LeakAnswer.UNKNOWN, True),
        (cache("kmalloc-64", 60 * MIB, change_bytes=15 * MIB), None, None, None),
        (cache("dentry", 9 * GIB, reclaimable=True), FindingKind.RECLAIMABLE_SLAB, LeakAnswer.NO, False),
        (
            cache("dentry", 20 * MIB, reclaimable=True, change_bytes=20 * MIB),
            FindingKind.RECLAIMABLE_SLAB,
            LeakAnswer.NO,
            False,
        ),
    ],
)
def test_a_cache(found: SlabCache, kind: FindingKind | None, leak: LeakAnswer | None, is_notable: bool | None) -> None:
    drafts = list(slab_findings(situation(found), packet_bytes=0))
    assert len(drafts) == (kind is not None)
    for draft in drafts:
        assert (draft.kind, draft.leak, draft.is_notable) == (kind, leak, is_notable)
        assert draft.owner is not None
        assert (draft.owner.kind, draft.owner.name) == (OwnerKind.SLAB_CACHE, found.name)
        assert draft.reclaimable == found.reclaimable


def test_what_sockets_keep_of_packet_heads_is_not_counted_again() -> None:
    of_packets = cache("kmalloc-1k", 300 * MIB)
    assert list(slab_findings(situation(of_packets), packet_bytes=290 * MIB)) == []
    (other,) = slab_findings(situation(cache("task_struct", 300 * MIB)), packet_bytes=290 * MIB)
    assert other.size_bytes == 300 * MIB


def test_growth_by_what_sockets_keep_is_not_growth_of_the_cache() -> None:
    of_packets = cache("kmalloc-1k", 300 * MIB, change_bytes=290 * MIB)
    assert list(slab_findings(situation(of_packets), packet_bytes=290 * MIB)) == []
    (rest,) = slab_findings(situation(of_packets), packet_bytes=270 * MIB)
    assert (rest.size_bytes, rest.kind) == (30 * MIB, FindingKind.GROWING_CLASS)
    assert "30.0 MiB more than at the start" in rest.sentence


def clue_to_module(share: float) -> Clues:
    clue = Clue(
        subject="kmalloc-64",
        objects=1000,
        size_bytes=GIB,
        sampled=100,
        share=share,
        offset_bytes=8,
        points_to="function leak_one [driver]",
        module="driver",
    )
    return Clues(clues=[clue])


@pytest.mark.parametrize(
    ("share", "purpose", "leak"),
    [
        (0.9, "", LeakAnswer.UNKNOWN),
        (0.4, "", LeakAnswer.NO),
        (0.9, "connections: tracked by the firewall", LeakAnswer.NO),
    ],
)
def test_a_module_that_has_most_of_a_cache_for_any_purpose_may_leak(
    share: float, purpose: str, leak: LeakAnswer
) -> None:
    found = cache("kmalloc-64", 70 * MIB, purpose=purpose)
    (draft,) = slab_findings(situation(found, clues=clue_to_module(share)), packet_bytes=0)
    assert draft.leak is leak


def test_the_reasons_say_what_objects_point_to_and_who_is_charged() -> None:
    (draft,) = slab_findings(situation(cache("kmalloc-64", GIB), clues=clue_to_module(0.9)), packet_bytes=0)
    assert "90% of its objects point at +8 to function leak_one [driver]" in draft.reasons
    assert "300 MiB of it are charged to container c0ffeec0ffee" in draft.reasons
    assert "module driver" in draft.advice


def test_a_purpose_says_what_the_objects_are() -> None:
    (draft,) = slab_findings(
        situation(cache("dentry", GIB, reclaimable=True, purpose="1,000 directory entries: cached names of files")),
        packet_bytes=0,
    )
    assert draft.sentence == (
        "The reclaimable slab cache dentry has 1.00 GiB in 1,000 directory entries (cached names of files)."
    )


def test_many_small_caches_are_judged_together() -> None:
    (draft,) = slab_rest(situation(cache("a", 60 * MIB), unreclaimable_bytes=GIB), 0, packet_bytes=0)
    assert (draft.kind, draft.leak, draft.size_bytes) == (FindingKind.LARGE_CLASS, LeakAnswer.UNKNOWN, GIB)
    assert list(slab_rest(situation(unreclaimable_bytes=GIB), 800 * MIB, packet_bytes=0)) == []


def test_without_the_census_a_large_class_is_unexplained() -> None:
    blind = Situation(replace(situation(unreclaimable_bytes=GIB).measured, census=None), THRESHOLDS)
    assert list(slab_findings(blind, packet_bytes=0)) == []
    (draft,) = slab_rest(blind, 0, packet_bytes=0)
    assert draft.kind is FindingKind.UNEXPLAINED
