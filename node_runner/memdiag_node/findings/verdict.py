"""The verdict: whether a leak was found, from the findings and from what the run did not see (pure).

The rules are documented for users in docs/verdicts.md.
"""

from collections.abc import Sequence

from memdiag_api import limits
from memdiag_api.evidence import LEAK_CHECKS, HolderKind, LeakDetected, NeedState, Verdict, VerdictKind
from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.units import format_bytes
from memdiag_node.findings.doubts import (
    Doubt,
    census_doubts,
    check_doubts,
    name_doubts,
    scan_doubts,
    trace_doubts,
)
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.situation import Situation

LEAK_DETECTED = {
    VerdictKind.PINNED_BY_UNREAD_SOCKET: LeakDetected.TRUE,
    VerdictKind.GROWING_KERNEL_ALLOCATION: LeakDetected.TRUE,
    VerdictKind.LEAKED_MEMORY: LeakDetected.TRUE,
    VerdictKind.LARGE_BUT_UNEXPLAINED: LeakDetected.UNKNOWN,
    VerdictKind.SUSPICIOUS_MEMORY: LeakDetected.UNKNOWN,
    VerdictKind.INCONCLUSIVE: LeakDetected.UNKNOWN,
    VerdictKind.NO_LEAK: LeakDetected.FALSE,
}
"""The answer of each verdict. False is only said with NoLeak."""
_LEAK_KINDS = {
    FindingKind.UNREAD_SOCKET: VerdictKind.PINNED_BY_UNREAD_SOCKET,
    FindingKind.GROWING_ALLOCATION: VerdictKind.GROWING_KERNEL_ALLOCATION,
}
_LARGE_KINDS = (FindingKind.UNEXPLAINED, FindingKind.LARGE_CLASS)
_MAX_MORE = 3
_OBJECTS: dict[str, str] = {
    ClassName.SLAB: "slab objects",
    ClassName.VMALLOC: "vmalloc areas",
    ClassName.PERCPU: "per-CPU objects",
}
"""What can be traced besides pages (Trace.object_classes)."""


def decide_verdict(situation: Situation, drafts: Sequence[Draft]) -> Verdict:
    """Return the verdict. `drafts` are the findings, most important first.

    A leak is reported, whatever else was missed. Otherwise a suspicious finding or a grave doubt rules out NoLeak.
    """
    found = doubts(situation)
    first = drafts[0] if drafts else None
    if first and first.leak is LeakAnswer.YES:
        return _of_finding(situation, _LEAK_KINDS.get(first.kind, VerdictKind.LEAKED_MEMORY), drafts, ())
    if first and first.leak is LeakAnswer.UNKNOWN:
        kind = VerdictKind.LARGE_BUT_UNEXPLAINED if first.kind in _LARGE_KINDS else VerdictKind.SUSPICIOUS_MEMORY
        return _of_finding(situation, kind, drafts, found)
    return _doubtful(situation, found) or _no_leak(situation, found)


def doubts(situation: Situation) -> list[Doubt]:
    """Return everything that reduces the confidence in NoLeak, with doubts that rule it out first."""
    measured, thresholds, suspect_bytes = situation.measured, situation.thresholds, situation.suspect_bytes
    found = list(
        check_doubts(
            measured.checks,
            window_seconds=measured.window_seconds,
            stuck_seconds=thresholds.stuck_floor_seconds,
        )
    )
    if measured.breakdown is None:
        found.append(Doubt("the sizes of the classes of memory are not known", forbids_no=True))
    if measured.coverage:
        stuck = [
            one
            for one in measured.holders
            if one.kind is HolderKind.SOCKET and (one.stuck_seconds or 0) >= thresholds.stuck_floor_seconds
        ]
        found += scan_doubts(measured.coverage, stuck, suspect_bytes=suspect_bytes)
    if measured.trace:
        found += trace_doubts(measured.trace, measured.breakdown, suspect_bytes=suspect_bytes)
    judged = [measured.stacks[index] for index in measured.judged_stacks]
    found += name_doubts(judged, suspect_bytes=suspect_bytes)
    if measured.census:
        found += census_doubts(measured.census)
    if measured.window.interrupted:
        found.append(Doubt("the window was ended early", forbids_no=False))
    found += measured.doubts
    return sorted(found, key=lambda doubt: not doubt.forbids_no)


def leak_confidence(situation: Situation, confidence: Confidence) -> Confidence:
    """Return the confidence in a leak: not High unless all leak checks ran over the whole window."""
    measured = situation.measured
    is_whole = not measured.window.interrupted and set(measured.checks) >= set(LEAK_CHECKS)
    return confidence if is_whole or confidence is not Confidence.HIGH else Confidence.MEDIUM


def _of_finding(situation: Situation, kind: VerdictKind, drafts: Sequence[Draft], missed: Sequence[Doubt]) -> Verdict:
    first = drafts[0]
    more = [one for one in drafts[1:] if one.leak is not LeakAnswer.NO]
    is_leak = first.leak is LeakAnswer.YES
    return _verdict(
        kind,
        leak_confidence(situation, first.confidence) if is_leak else Confidence.MEDIUM,
        first.text,
        reasons=[
            *first.reasons,
            *(f"also: {one.sentence.rstrip('.')}" for one in more[:_MAX_MORE]),
            *(doubt.sentence for doubt in missed),
        ],
        advice=first.advice,
        draft=first,
    )


def _doubtful(situation: Situation, found: Sequence[Doubt]) -> Verdict | None:
    grave = [doubt.sentence for doubt in found if doubt.forbids_no]
    if not grave:
        return None
    return _verdict(
        VerdictKind.INCONCLUSIVE,
        Confidence.LOW,
        f"No leak was found, but a leak cannot be ruled out: {'; '.join(grave)}.",
        reasons=[doubt.sentence for doubt in found if not doubt.forbids_no],
        advice="Check the missing and degraded needs below, or run again with all checks when the node is less busy."
        if any(need.state is not NeedState.MET for need in situation.measured.needs)
        else "Run again with all checks, and when the node is less busy.",
    )


def _no_leak(situation: Situation, found: Sequence[Doubt]) -> Verdict:
    limit, large = format_bytes(situation.suspect_bytes), format_bytes(situation.large_bytes)
    breakdown = situation.measured.breakdown
    objects = {name: words for name, words in _OBJECTS.items() if name in situation.measured.object_classes}
    traced = ["pages", *objects.values()]
    untraced = [words for name, words in _OBJECTS.items() if name not in objects]
    alloc_page = f"; allocpage has {format_bytes(breakdown.alloc_page_bytes)}" if breakdown else ""
    return _verdict(
        VerdictKind.NO_LEAK,
        Confidence.MEDIUM if found else Confidence.HIGH,
        f"No process, container or pod pins {limit} or more with unread data; no call stack keeps allocating "
        f"{limit} or more of {_listed(traced)} that can leak; no class of memory that can leak has {large} or more "
        f"unexplained{alloc_page}.",
        reasons=[
            *([f"{_listed(untraced)} were not traced: they are judged by their size"] if untraced else []),
            f"the window was {situation.measured.window_seconds:.0f} s: a slower leak needs a longer window",
            *(doubt.sentence for doubt in found),
        ],
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _verdict(
    kind: VerdictKind,
    confidence: Confidence,
    sentence: str,
    *,
    reasons: Sequence[str] = (),
    advice: str = "",
    draft: Draft | None = None,
) -> Verdict:
    """Return a verdict with all texts cut to the limits of the document: names in them can be long."""
    return Verdict(
        kind=kind,
        confidence=confidence,
        sentence=sentence[: limits.MAX_SENTENCE],
        reasons=[reason[: limits.MAX_SENTENCE] for reason in reasons[: limits.MAX_REASONS]],
        advice=advice[: limits.MAX_SENTENCE],
        holder=next(iter(draft.holders), None) if draft else None,
        stack=next(iter(draft.stacks), None) if draft else None,
        suspect_bytes=draft.size_bytes if draft else 0,
        suspect_unread_bytes=draft.unread_bytes if draft else 0,
        scope=draft.scope if draft else None,
    )
