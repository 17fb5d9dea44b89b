"""A finding before it is ranked, and what the rules share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from memdiag_api import limits
from memdiag_api.evidence import SuspectScope
from memdiag_api.findings import (
    Confidence,
    Finding,
    FindingEvidence,
    FindingKind,
    FindingTrend,
    FreedBy,
    LeakAnswer,
)
from memdiag_api.owners import MemoryOwner


class Tier(IntEnum):
    """What a person on call should read first."""

    LEAK = 0
    SUSPICIOUS = 1
    """Large, growing or unexplained, and not known to be harmless."""
    NOTABLE = 2
    """Unusual, with a known cause other than a leak."""
    PLAIN = 3
    """An ordinary use of memory, and who has it."""
    RECLAIMABLE = 4
    """Memory that the kernel gives back when it is needed."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A finding without its rank. Texts may be longer than the document allows; `finding` cuts them."""

    kind: FindingKind
    size_bytes: int
    sentence: str
    leak: LeakAnswer
    memory_class: str = ""
    owner: MemoryOwner | None = None
    trend: FindingTrend | None = None
    reclaimable: bool = False
    freed_by: FreedBy | None = None
    confidence: Confidence = Confidence.HIGH
    reasons: Sequence[str] = ()
    advice: str = ""
    holders: Sequence[int] = ()
    """Indexes of the holders that it is about, the most important first."""
    stacks: Sequence[int] = ()
    """Indexes of the stacks that it is about."""
    sections: Sequence[str] = ()
    """Other parts of the document that it is based on."""
    is_notable: bool = False
    """Whether it is worth reading before ordinary uses of memory, although it is not known to be a leak."""
    unread_bytes: int = 0
    """Of UnreadSocket: unread bytes of all its sockets."""
    scope: SuspectScope | None = None
    """Of UnreadSocket: what its sockets have in common."""
    is_past: bool = False
    """Whether its memory is free again: what is there now comes first in its tier."""
    claims_bytes: Mapping[str, int] | None = None
    """The bytes of each class that it accounts for. None: `size_bytes` of `memory_class`. Empty: none, because it is
    about memory that other findings account for as well."""

    @property
    def tier(self) -> Tier:
        """Its place in the ranking."""
        if self.leak is LeakAnswer.YES:
            return Tier.LEAK
        if self.leak is LeakAnswer.UNKNOWN:
            return Tier.SUSPICIOUS
        if self.is_notable:
            return Tier.NOTABLE
        return Tier.RECLAIMABLE if self.reclaimable else Tier.PLAIN

    @property
    def claimed_bytes(self) -> Mapping[str, int]:
        """The bytes of each class that it accounts for."""
        if self.claims_bytes is not None:
            return self.claims_bytes
        return {self.memory_class: self.size_bytes} if self.memory_class else {}

    @property
    def text(self) -> str:
        """The sentence, with a full stop."""
        return self.sentence if self.sentence.endswith((".", "?", "!")) else f"{self.sentence}."

    def finding(self, counted_bytes: int) -> Finding:
        """Return the finding. `counted_bytes`: the part that no finding of a higher rank accounts for."""
        return Finding(
            kind=self.kind,
            memory_class=self.memory_class,
            size_bytes=self.size_bytes,
            counted_bytes=counted_bytes,
            owner=self.owner,
            trend=self.trend,
            leak=self.leak,
            reclaimable=self.reclaimable,
            freed_by=self.freed_by,
            confidence=self.confidence,
            sentence=self.text[: limits.MAX_SENTENCE],
            reasons=[reason[: limits.MAX_SENTENCE] for reason in self.reasons[: limits.MAX_REASONS]],
            advice=self.advice[: limits.MAX_SENTENCE],
            evidence=FindingEvidence(
                holders=list(self.holders[: limits.MAX_FINDING_REFERENCES]),
                stacks=list(self.stacks[: limits.MAX_FINDING_REFERENCES]),
                sections=list(self.sections[: limits.MAX_FINDING_REFERENCES]),
            ),
        )


def ranked(drafts: Iterable[Draft]) -> list[Draft]:
    """Return the findings in order of importance: by tier, then the largest.

    Findings about memory that is free again come last in their tier, in the order of `drafts`: the latest first.
    """
    return sorted(drafts, key=lambda one: (one.tier, one.is_past, 0 if one.is_past else -one.size_bytes))


def counted(drafts: Sequence[Draft], class_bytes: Mapping[str, int]) -> list[Finding]:
    """Return the findings of the document, in the order of `drafts`.

    Each byte of a class counts for the first finding that claims it: `class_bytes` has the size of every class.
    """
    left_bytes = dict(class_bytes)
    findings = []
    for draft in drafts:
        counted_bytes = 0
        for name, claimed_bytes in draft.claimed_bytes.items():
            taken_bytes = max(0, min(claimed_bytes, left_bytes.get(name, 0)))
            left_bytes[name] = left_bytes.get(name, 0) - taken_bytes
            counted_bytes += taken_bytes
        findings.append(draft.finding(min(counted_bytes, draft.size_bytes)))
    return findings
