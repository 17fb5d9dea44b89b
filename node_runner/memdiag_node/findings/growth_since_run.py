"""Finding: memory that has grown since earlier runs of the same node and boot (docs/history.md)."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from memdiag_api import limits
from memdiag_api.findings import Confidence, FindingKind, FindingTrend, LeakAnswer
from memdiag_api.history import HolderSize, RunSummary
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.growth_fit import Growth, Point, fall_bytes, fit
from memdiag_node.findings.naming import THIS_RUN
from memdiag_node.findings.run_summary import cache_sizes, holder_sizes, summary_of
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.stack_owners import is_reclaimed_cache
from memdiag_node.findings.thresholds import DAY_SECONDS

_MAY_LEAK = (ClassName.SUNRECLAIM, ClassName.VMALLOC, ClassName.PERCPU, ClassName.SECONDARY_PAGE_TABLES)
_ORDINARY = (ClassName.SHMEM, ClassName.PAGE_TABLES, ClassName.KERNEL_STACK)
"""Their size follows what processes do. Whose it is, other findings say."""
_HOUR_SECONDS = 3600.0
_SETTLED_UPTIME_SECONDS = _HOUR_SECONDS
"""Before this time after boot, caches fill and workloads start."""
_LEAK_SECONDS = _HOUR_SECONDS
_SHORT_SECONDS = 6 * _HOUR_SECONDS
"""Within this time, growth can be the start of a workload: only the large size is a leak."""
_LEAK_POINTS = 3
_SURE_POINTS = 4
_STEADY_SHARE = 0.8
_ERRORS = 3
_MAIN_SHARE = 0.5
_SHOWN_RUNS = 6
_PRIVATE_CACHES = re.compile(r"xfs_buf|abd_t|arc_buf_hdr_t_full|bch2_btree\w*|btree_node")
"""Slab caches of which each object describes pages that a shrinker gives back."""


@dataclass(frozen=True, slots=True)
class _Grown:
    """Growth of one class, or of a part of it, since one of the earlier runs."""

    since: RunSummary
    growth: Growth
    sizes: Sequence[tuple[datetime, int]]
    """At the end of each run, oldest first, with this one."""
    is_young: bool
    """Whether the node had just been booted at that run."""

    @property
    def grown_bytes(self) -> int:
        return self.growth.grown_bytes


def growth_since_runs(situation: Situation) -> Iterator[Draft]:
    """Yield a finding for each class that grew, over the longest time that earlier runs show.

    Growth counts if it is at least the floor of the notable size and three times the error of the sizes, if its rate
    matters (Thresholds.is_relevant_growth), and if less than half of it was ever given back. More growth in the last
    run never makes it count less. Only unexplained AllocPage and slab
    that the kernel cannot reclaim are leaks, and only if three runs over an hour rise steadily. The findings claim
    nothing: other findings account for the same memory.
    """
    now = summary_of(situation, "")
    if now is None or not situation.measured.history:
        return
    runs = sorted((*situation.measured.history, now), key=lambda one: one.end_time)
    yield from _alloc_page(situation, runs)
    for name in _MAY_LEAK:
        if grown := _grown(situation, runs, partial(_class_bytes, name=name)):
            yield _class_that_may_leak(situation, name, grown)
    for name in _ORDINARY:
        if grown := _grown(situation, runs, partial(_class_bytes, name=name)):
            yield _ordinary_class(situation, name, grown)


def _grown(
    situation: Situation,
    runs: Sequence[RunSummary],
    size_of: Callable[[RunSummary], int | None],
    error_of: Callable[[RunSummary], int] = lambda _: 0,
) -> _Grown | None:
    """Return the growth since the earliest run from which it is steady, or else from which it counts.

    Growth since a run in the first hour after boot counts only if it is large and there is no other.
    """
    known = [(run, size) for run in runs if (size := size_of(run)) is not None]
    if not known or known[-1][0] is not runs[-1]:
        return None
    points = [Point(run.end_time.timestamp(), size, error_of(run)) for run, size in known]
    found = [
        _Grown(
            since=known[start][0],
            growth=growth,
            sizes=[(run.end_time, size) for run, size in known[start:]],
            is_young=_is_young(known[start][0]),
        )
        for start in range(len(known) - 1)
        if (growth := fit(points[start:])) and _counts(situation, points, start, growth)
    ]
    settled = [one for one in found if not one.is_young]
    large = [one for one in found if one.grown_bytes >= situation.large_bytes]
    return next((one for one in settled if _is_steady(situation, one)), next(iter(settled or large), None))


def _class_bytes(run: RunSummary, name: str) -> int | None:
    """Return the size of a class without what the run itself had of it."""
    size_bytes = run.class_bytes(name)
    if size_bytes is None:
        return None
    own_bytes = sum(one.size_bytes for one in run.holders if one.owner == THIS_RUN and one.memory_class == name)
    return max(0, size_bytes - own_bytes)


def _is_young(run: RunSummary) -> bool:
    return run.uptime_seconds is not None and run.uptime_seconds < _SETTLED_UPTIME_SECONDS


def _counts(situation: Situation, points: Sequence[Point], start: int, growth: Growth) -> bool:
    """Return whether `growth` from the point `start` on is real, matters, and is not the rise of an up and down."""
    thresholds, grown_bytes = situation.thresholds, growth.grown_bytes
    floor_bytes = thresholds.notable_floor_bytes if growth.seconds >= _HOUR_SECONDS else situation.notable_bytes
    if grown_bytes < max(floor_bytes, _ERRORS * growth.read_error_bytes) or growth.bytes_per_second <= 0:
        return False
    earlier_bytes = max((one.size_bytes for one in points[:start]), default=points[start].size_bytes)
    is_back = points[-1].size_bytes - earlier_bytes < _MAIN_SHARE * grown_bytes
    if is_back or fall_bytes(points[start:]) >= _MAIN_SHARE * grown_bytes:
        return False
    left_seconds = _trend(situation, growth).exhausts_node_in_seconds
    return thresholds.is_relevant_growth(growth.bytes_per_second, left_seconds)


def _trend(situation: Situation, growth: Growth) -> FindingTrend:
    return situation.trend(growth.bytes_per_second, growth.error_bytes_per_second, growth.seconds)


def _is_steady(situation: Situation, grown: _Grown) -> bool:
    """Return whether the growth is one of a leak: it goes on, and a line explains it."""
    return _goes_on(situation, grown) and grown.growth.explained_share >= _STEADY_SHARE


def _goes_on(situation: Situation, grown: _Grown) -> bool:
    """Return whether memory grew in every interval, for long enough."""
    growth = grown.growth
    limit_bytes = situation.large_bytes if growth.seconds < _SHORT_SECONDS else situation.thresholds.notable_floor_bytes
    return (
        growth.points >= _LEAK_POINTS
        and growth.seconds >= _LEAK_SECONDS
        and growth.is_rising
        and growth.grown_bytes >= limit_bytes
        and not grown.is_young
    )


def _alloc_page(situation: Situation, runs: Sequence[RunSummary]) -> Iterator[Draft]:
    name = str(ClassName.ALLOC_PAGE)
    whole = _grown(situation, runs, lambda run: run.alloc_page_bytes, lambda run: run.alloc_page_error_bytes)
    unheld = _grown(situation, runs, lambda run: run.unexplained_bytes, lambda run: run.alloc_page_error_bytes)
    if unheld:
        whole = whole if whole and whole.since is unheld.since else None
        why = _why_given_back(situation, unheld.grown_bytes)
        is_leak = not why and _is_steady(situation, unheld)
        part = f"{format_bytes(unheld.grown_bytes)} more are in no known holder"
        yield _draft(
            situation,
            name,
            whole or unheld,
            leak=LeakAnswer.YES if is_leak else LeakAnswer.UNKNOWN,
            judged=unheld,
            sentence=f"{_grew(name, whole)}: {part}." if whole else f"{_grew(f'{name} in no known holder', unheld)}.",
            reasons=[why] if why else [],
            advice="Run a longer trace under the usual workload: its call stacks show what allocates this memory and "
            "does not free it.",
        )
    elif whole:
        yield _held_alloc_page(situation, name, whole)


def _held_alloc_page(situation: Situation, name: str, grown: _Grown) -> Draft:
    """Return the finding about growth that is in known holders, or of which that is not known."""
    before_bytes = grown.since.unexplained_bytes
    now_bytes = situation.class_bytes.get(name, 0) - situation.held_bytes
    is_held = before_bytes is not None and now_bytes - before_bytes < _MAIN_SHARE * grown.grown_bytes
    if not is_held:
        return _draft(
            situation,
            name,
            grown,
            leak=LeakAnswer.UNKNOWN,
            sentence=f"{_grew(name, grown)}. How much of that is in known holders cannot be compared.",
            advice="Run all checks, now and later, to see which holders grow.",
        )
    return _of_holders(situation, name, grown, _growing_holder(situation, name, grown), "known holders have most of it")


def _class_that_may_leak(situation: Situation, name: str, grown: _Grown) -> Draft:
    if name == ClassName.SUNRECLAIM:
        return _slab(situation, name, grown)
    holder = _growing_holder(situation, name, grown)
    if holder and holder.size_bytes >= _MAIN_SHARE * grown.grown_bytes:
        return _of_holders(situation, name, grown, holder, "a known holder has most of it")
    return _draft(
        situation,
        name,
        grown,
        leak=LeakAnswer.UNKNOWN,
        sentence=f"{_grew(name, grown)}.",
        advice="Run it again later to see whether the growth continues, and check the owners of this class.",
    )


def _of_holders(situation: Situation, name: str, grown: _Grown, holder: HolderSize | None, why: str) -> Draft:
    """Return the finding about growth in known holders: no leak, unless it goes on and on."""
    most = f": {holder.kind} of {holder.owner} has {format_bytes(holder.size_bytes)} more" if holder else ""
    return _draft(
        situation,
        name,
        grown,
        leak=LeakAnswer.UNKNOWN if _goes_on(situation, grown) else LeakAnswer.NO,
        sentence=f"{_grew(name, grown)}{most}.",
        reasons=[why],
        advice="Check in the findings about these holders whether they need this memory.",
        owner=MemoryOwner(kind=OwnerKind.KERNEL_OBJECT, name=f"{holder.kind} of {holder.owner}") if holder else None,
        is_notable=True,
    )


def _slab(situation: Situation, name: str, grown: _Grown) -> Draft:
    cache, more_bytes = _growing_cache(situation, grown.since)
    is_main = bool(cache) and more_bytes >= _MAIN_SHARE * grown.grown_bytes
    text = f": the slab cache {cache} has {format_bytes(more_bytes)} more" if is_main else ""
    return _draft(
        situation,
        name,
        grown,
        leak=LeakAnswer.YES if _is_steady(situation, grown) else LeakAnswer.UNKNOWN,
        sentence=f"{_grew(name, grown)}{text}.",
        advice=f"Check what allocates objects of {cache}: a longer trace shows its call stacks."
        if is_main
        else "Run slabtop now and later to see which kernel objects become more.",
        owner=MemoryOwner(kind=OwnerKind.SLAB_CACHE, name=cache) if is_main else None,
    )


def _ordinary_class(situation: Situation, name: str, grown: _Grown) -> Draft:
    return _draft(
        situation,
        name,
        grown,
        leak=LeakAnswer.NO,
        sentence=f"{_grew(name, grown)}.",
        reasons=["its size follows what processes do"],
        advice="Check which processes and containers have it.",
        is_notable=grown.grown_bytes >= situation.large_bytes,
    )


def _draft(
    situation: Situation,
    name: str,
    grown: _Grown,
    *,
    leak: LeakAnswer,
    sentence: str,
    advice: str,
    judged: _Grown | None = None,
    reasons: Sequence[str] = (),
    owner: MemoryOwner | None = None,
    is_notable: bool = False,
) -> Draft:
    """Return a finding. `judged`: the part of the growth that decides about the leak, if it is not all of it."""
    judged = judged or grown
    growth = grown.growth
    return Draft(
        kind=FindingKind.GROWTH_SINCE_RUN,
        memory_class=name,
        size_bytes=min(grown.grown_bytes, situation.class_bytes.get(name, 0)),
        claims_bytes={},
        owner=owner or MemoryOwner(kind=OwnerKind.KERNEL, name=name),
        trend=_trend(situation, growth),
        leak=leak,
        confidence=_confidence(judged, leak),
        sentence=sentence,
        reasons=[*reasons, *_reasons(situation, grown, judged)],
        advice=advice,
        sections=["history", "breakdown"],
        is_notable=is_notable,
    )


def _confidence(grown: _Grown, leak: LeakAnswer) -> Confidence:
    if grown.is_young:
        return Confidence.LOW
    if leak is LeakAnswer.UNKNOWN:
        return Confidence.MEDIUM
    return Confidence.HIGH if leak is LeakAnswer.NO or grown.growth.points >= _SURE_POINTS else Confidence.MEDIUM


def _reasons(situation: Situation, grown: _Grown, judged: _Grown) -> Iterator[str]:
    growth = judged.growth
    error = f" with an error of {format_bytes(growth.read_error_bytes)}" if growth.read_error_bytes else ""
    yield (
        f"the growth is {format_bytes(growth.grown_bytes)} in {format_duration(growth.seconds)}{error} (threshold: "
        f"{format_bytes(situation.thresholds.notable_floor_bytes)} and three times the error)"
    )
    yield "size at the end of each run: " + ", ".join(
        f"{format_bytes(size)} ({_when(time)})" for time, size in grown.sizes[-_SHOWN_RUNS:]
    )
    if growth.points < _LEAK_POINTS:
        yield "two runs cannot show whether it grows steadily: a third one can"
    else:
        rises = "every interval grew" if growth.is_rising else "not every interval grew"
        yield f"{growth.points} runs: {rises}, and a line explains {growth.explained_share:.0%} of it"
    if grown.is_young:
        yield "the node had just been booted at the earlier run: caches fill in the first hour"
    left_seconds = _trend(situation, grown.growth).exhausts_node_in_seconds
    if left_seconds is not None:
        yield f"at this rate, free and reclaimable memory lasts for {format_duration(left_seconds)}"


def _grew(subject: str, grown: _Grown) -> str:
    rate = format_bytes(grown.growth.bytes_per_second * DAY_SECONDS)
    return f"{subject} grew by {format_bytes(grown.grown_bytes)} since {_when(grown.since.end_time)}, {rate} a day"


def _when(time: datetime) -> str:
    return f"{time.day} {time:%b %H:%M}"


def _growing_holder(situation: Situation, name: str, grown: _Grown) -> HolderSize | None:
    """Return the growth of the holders of this class that grew most, by kind and owner. None if none grew.

    Of holders that the earlier run does not list, at least what they have more than the smallest in its list counts.
    """
    earlier = {(one.kind, one.memory_class, one.owner): one.size_bytes for one in grown.since.holders}
    unlisted_bytes = min(earlier.values()) if len(grown.since.holders) >= limits.MAX_SUMMARY_HOLDERS else 0
    more = [
        one.model_copy(
            update={"size_bytes": one.size_bytes - earlier.get((one.kind, one.memory_class, one.owner), unlisted_bytes)}
        )
        for one in holder_sizes(situation)
        if one.memory_class == name and one.owner != THIS_RUN
    ]
    most = max(more, key=lambda one: one.size_bytes, default=None)
    return most if most and most.size_bytes > 0 else None


def _growing_cache(situation: Situation, since: RunSummary) -> tuple[str, int]:
    """Return the slab cache that grew most and by how much, at least. Empty if the earlier run has none."""
    earlier = {one.name: one.size_bytes for one in since.slab_caches}
    if not earlier:
        return "", 0
    unlisted_bytes = min(earlier.values()) if len(since.slab_caches) >= limits.MAX_SUMMARY_CACHES else 0
    more = [(one.size_bytes - earlier.get(one.name, unlisted_bytes), one.name) for one in cache_sizes(situation)]
    size_bytes, name = max(more, default=(0, ""))
    return name, size_bytes


def _why_given_back(situation: Situation, grown_bytes: int) -> str:
    """Return why the growth may be a cache that the kernel gives back when memory is needed. Empty if nothing says so.

    Such caches are in AllocPage without any counter: buffers of XFS and bcachefs, the ARC of ZFS, the pool of TTM.
    """
    census = situation.measured.census
    for cache in census.slab.caches if census and census.slab else []:
        if _PRIVATE_CACHES.fullmatch(cache.name) and cache.objects * situation.page_bytes >= _MAIN_SHARE * grown_bytes:
            return f"{cache.name} has {cache.objects:,} objects: their pages are a cache that the kernel can reclaim"
    if any(
        stack.memory_class == ClassName.ALLOC_PAGE
        and is_reclaimed_cache(stack)
        and stack.outstanding_bytes >= situation.thresholds.suspect_floor_bytes
        for stack in situation.measured.stacks
    ):
        return "a cache that the kernel can reclaim filled in the window"
    return ""
