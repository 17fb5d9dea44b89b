"""Findings about slab memory: a large or growing cache of kernel objects, and reclaimable ones (docs/findings.md)."""

import re
from collections.abc import Iterable, Iterator, Sequence

from memdiag_api import limits
from memdiag_api.census.clues import Clue
from memdiag_api.census.slab import SlabCache, SlabCaches
from memdiag_api.evidence import Check, Trend
from memdiag_api.findings import Confidence, FindingKind, FindingTrend, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.allocation_sites import sites_for
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.growing_objects import of_slab_cache, shown_frame
from memdiag_node.findings.object_uses import ObjectUse, objects_expire
from memdiag_node.findings.situation import Situation
from memdiag_node.trace.stacks import first_name

_PACKET_CACHES = re.compile(r"skbuff_\w+|kmalloc-.*")
"""Caches in which packets and their heads are."""
_SHOWN_CLUES = 3
_CLUE_SHARE = 0.25
_SHOWN_STACKS = 3
_STACK_SHARE = 0.01
_EXPLAINED_SHARE = 0.5
_MODULE_SHARE = 0.5
"""If so many objects of a cache for any purpose point to a module, it allocated them, and may lose them."""


def slab_findings(situation: Situation, *, packet_bytes: int, growing: Sequence[Draft] = ()) -> Iterator[Draft]:
    """Yield a finding for each cache with the notable size, or that grew by the suspect size in the window.

    `packet_bytes`: slab memory of packets, which findings about their holders account for. `growing`: the findings
    about stacks whose slab objects grow. If they have most of the growth of a cache, it is not a second finding.
    """
    census = situation.measured.census
    if census is None or census.slab is None:
        return
    left_bytes = packet_bytes
    for cache in census.slab.caches:
        known_bytes = min(left_bytes, cache.size_bytes) if _PACKET_CACHES.fullmatch(cache.name) else 0
        left_bytes -= known_bytes
        own_bytes = cache.size_bytes - known_bytes
        grew_bytes = _growth_bytes(cache, own_bytes)
        is_growing = grew_bytes >= situation.suspect_bytes and not _is_explained(situation, cache, grew_bytes, growing)
        if own_bytes >= situation.notable_bytes or is_growing:
            yield (
                _reclaimable(situation, cache)
                if cache.reclaimable
                else _unreclaimable(situation, cache, own_bytes, is_growing=is_growing)
            )


def without_repeated(situation: Situation, growing: Iterable[Draft], slab: Iterable[Draft]) -> list[Draft]:
    """Return the findings about growing stacks except those of no leak whose cache is in a finding.

    The finding about the cache names the stacks in its reasons.
    """
    listed = {one.owner.name for one in slab if one.owner}
    return [
        one for one in growing if one.leak is not LeakAnswer.NO or not _caches_of(situation, one).intersection(listed)
    ]


def _caches_of(situation: Situation, draft: Draft) -> set[str]:
    return {situation.measured.stacks[index].slab_cache for index in draft.stacks}


def _is_explained(situation: Situation, cache: SlabCache, grew_bytes: int, growing: Iterable[Draft]) -> bool:
    explained_bytes = sum(
        one.size_bytes for one in growing if one.leak is not LeakAnswer.NO and cache.name in _caches_of(situation, one)
    )
    return explained_bytes >= _EXPLAINED_SHARE * grew_bytes


def _reclaimable(situation: Situation, cache: SlabCache) -> Draft:
    size = format_bytes(cache.size_bytes)
    stacks = _stacks_of(situation, cache)
    return Draft(
        kind=FindingKind.RECLAIMABLE_SLAB,
        memory_class=ClassName.SRECLAIMABLE,
        size_bytes=cache.size_bytes,
        owner=_owner(cache),
        leak=LeakAnswer.NO,
        reclaimable=True,
        freed_by=FreedBy(
            action="The kernel frees it when memory is needed. To free it now, write 2 to /proc/sys/vm/drop_caches.",
            size_bytes=None,
        ),
        sentence=f"The reclaimable slab cache {cache.name} has {size} in {_objects(cache)}.",
        reasons=["the kernel gives such objects back when memory is needed", *_through(situation, stacks)],
        stacks=stacks,
        sections=["census.slab"],
    )


def _unreclaimable(situation: Situation, cache: SlabCache, own_bytes: int, *, is_growing: bool) -> Draft:
    """`is_growing`: whether it grew by the suspect size, and no finding about a stack has most of that growth."""
    grew_bytes = _growth_bytes(cache, own_bytes)
    stacks = _stacks_of(situation, cache)
    clues = _clues(situation, cache)
    is_of_module = any(one.module and one.share >= _MODULE_SHARE for one in clues) and not cache.purpose
    expires = objects_expire(cache.name)
    is_suspicious = own_bytes >= situation.slab_cache_bytes or (is_growing and not expires) or is_of_module
    has_grown = grew_bytes >= situation.suspect_bytes
    growth = f", {format_bytes(grew_bytes)} more than at the start of the window" if has_grown else ""
    return Draft(
        kind=FindingKind.GROWING_CLASS if is_growing else FindingKind.LARGE_CLASS,
        memory_class=ClassName.SUNRECLAIM,
        size_bytes=own_bytes,
        owner=_owner(cache),
        trend=_trend(situation, cache, grew_bytes),
        leak=LeakAnswer.UNKNOWN if is_suspicious else LeakAnswer.NO,
        confidence=Confidence.MEDIUM if is_suspicious else Confidence.HIGH,
        sentence=f"The slab cache {cache.name} has {format_bytes(own_bytes)} that the kernel cannot reclaim, in "
        f"{_objects(cache)}{growth}.",
        reasons=[
            f"the threshold for a slab cache is {format_bytes(situation.slab_cache_bytes)}, for its growth in the "
            f"window {format_bytes(situation.suspect_bytes)}",
            *([ObjectUse.EXPIRES.value] if expires else []),
            *_through(situation, stacks),
            *(_clue_text(clue) for clue in clues),
            *_charged(situation.measured.census.slab if situation.measured.census else None, cache),
            *sites_for(situation.measured.machine, ClassName.SUNRECLAIM, growing=is_growing),
        ],
        advice=f"Most objects point to module {clues[0].module}: check its version and known leaks."
        if clues and clues[0].module
        else f"Run it again later to see whether {cache.name} grows. The call stack shows what allocates its objects."
        if stacks
        else f"Run it again later to see whether {cache.name} grows, and what allocates its objects.",
        stacks=stacks,
        sections=["census.slab", *(["census.clues"] if clues else [])],
        is_notable=True,
    )


def slab_rest(situation: Situation, listed_bytes: int, *, packet_bytes: int) -> Iterator[Draft]:
    """Yield a finding about SUnreclaim as a whole if what no other finding is about has the large size.

    `listed_bytes`: what findings about its caches have.
    """
    size_bytes = situation.class_bytes.get(ClassName.SUNRECLAIM, 0) - listed_bytes - packet_bytes
    if size_bytes < situation.large_bytes:
        return
    census = situation.measured.census
    slab = census.slab if census else None
    largest = [one for one in slab.caches if not one.reclaimable][:4] if slab else []
    names = ", ".join(f"{one.name} {format_bytes(one.size_bytes)}" for one in largest)
    seen = Check.KERNEL_OBJECTS in situation.measured.checks and slab is not None
    yield Draft(
        kind=FindingKind.LARGE_CLASS if seen else FindingKind.UNEXPLAINED,
        memory_class=ClassName.SUNRECLAIM,
        size_bytes=size_bytes,
        owner=MemoryOwner(kind=OwnerKind.KERNEL, name="slab caches"),
        leak=LeakAnswer.UNKNOWN,
        confidence=Confidence.MEDIUM,
        sentence=f"{ClassName.SUNRECLAIM} has {format_bytes(size_bytes)} in many caches, none of which is large."
        if seen
        else f"{ClassName.SUNRECLAIM} has {format_bytes(size_bytes)} that no check explains.",
        reasons=[
            f"the threshold for unexplained memory of a class is {format_bytes(situation.large_bytes)}",
            *([f"the largest caches: {names}"] if names else []),
        ],
        advice="Run slabtop to see which kernel objects are most numerous, and whether their number grows.",
        sections=["breakdown", *(["census.slab"] if slab else [])],
    )


def _owner(cache: SlabCache) -> MemoryOwner:
    return MemoryOwner(kind=OwnerKind.SLAB_CACHE, name=cache.name[: limits.MAX_SHORT_TEXT])


def _growth_bytes(cache: SlabCache, own_bytes: int) -> int:
    """Return the growth that is not known to be packets: not more than what is left of the cache without them."""
    return min(cache.change_bytes or 0, own_bytes)


def _trend(situation: Situation, cache: SlabCache, grew_bytes: int) -> FindingTrend | None:
    seconds = situation.measured.window_seconds
    if cache.change_bytes is None or not seconds:
        return None
    return situation.trend(grew_bytes / seconds, cache.error_bytes / seconds, seconds)


def _stacks_of(situation: Situation, cache: SlabCache) -> list[int]:
    """Return the stacks that allocated objects of the cache, those that grow fastest first, without small ones."""
    stacks = situation.measured.stacks
    found = [
        index
        for index in situation.measured.judged_stacks
        if of_slab_cache(stacks[index])
        and stacks[index].slab_cache == cache.name
        and first_name(stacks[index].frames) is not None
        and (
            stacks[index].trend is Trend.GROWING
            or stacks[index].outstanding_bytes >= _STACK_SHARE * max(1, cache.size_bytes)
        )
    ]

    def order(index: int) -> tuple[bool, float, int]:
        one = stacks[index]
        is_growing = one.trend is Trend.GROWING
        return not is_growing, -one.growth_bytes_per_second if is_growing else 0, -one.outstanding_bytes

    return sorted(found, key=order)[:_SHOWN_STACKS]


def _through(situation: Situation, stacks: Iterable[int]) -> Iterator[str]:
    """Yield through which functions it grows, or was allocated in the window."""
    for stack in (situation.measured.stacks[index] for index in stacks):
        frame = shown_frame(first_name(stack.frames) or "")
        if stack.trend is Trend.GROWING:
            yield f"it grows through {frame}: {format_bytes(stack.growth_bytes_per_second)}/s"
        else:
            size = format_bytes(stack.outstanding_bytes)
            yield f"{size} of it were allocated in the window through {frame}, and not freed"


def _objects(cache: SlabCache) -> str:
    """Return how many objects it has, and what they are: `684,710 directory entries (cached names of files)`."""
    if not cache.purpose:
        return f"{cache.objects:,} objects"
    objects, _, meaning = cache.purpose.partition(": ")
    return f"{objects} ({meaning})" if meaning else objects


def _clues(situation: Situation, cache: SlabCache) -> list[Clue]:
    census = situation.measured.census
    found = census.clues.clues if census and census.clues else []
    return [one for one in found if one.subject == cache.name and one.share >= _CLUE_SHARE][:_SHOWN_CLUES]


def _clue_text(clue: Clue) -> str:
    return f"{clue.share:.0%} of its objects point at +{clue.offset_bytes} to {clue.points_to}"


def _charged(slab: SlabCaches | None, cache: SlabCache) -> Iterator[str]:
    """Yield which container most of it is charged to, if any."""
    parts = [
        (part.size_bytes, share.container_id)
        for share in (slab.charged if slab else None) or ()
        for part in share.caches
        if part.name == cache.name and share.container_id
    ]
    for size_bytes, container_id in sorted(parts, reverse=True)[:1]:
        yield f"{format_bytes(size_bytes)} of it are charged to container {container_id[:12]}"
