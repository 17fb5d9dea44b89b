"""Judge one diagnosis: does its first finding say what was planted? Pure functions over the document and the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planted.cases.case import Answer, PlantedTruth

Document = Mapping[str, Any]
"""A document of `memdiag-node --output json`, parsed."""

_GROWING_KINDS = ("GrowingAllocation", "GrowingClass")
_SLAB_CLASSES = ("Slab", "SUnreclaim", "SReclaimable")
_WRONG_ANSWERS = {Answer.LEAK: "False", Answer.HARMLESS: "True", Answer.OPEN: None}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is right and what is wrong about one diagnosis."""

    leak_detected: str
    """True, False or Unknown; empty if the document does not say it."""
    first_finding: str
    """Its kind, size, class and owner, for the table. Empty if there is none."""
    faults: tuple[str, ...]
    """Everything that is wrong. Empty: the diagnosis is right."""
    off_share: float | None
    """Difference of the finding's size, or of its rate for growing memory, and the truth, as a share of the truth.
    None if there is nothing to compare."""
    freed_off_share: float | None
    """The same for what the finding says that its advice brings back. None if it says no size."""
    denies_leak: bool
    """LeakDetected is False although memory is lost."""
    invents_leak: bool
    """LeakDetected is True although the load is healthy."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def judge(document: Document, truth: PlantedTruth) -> Judgement:
    """Compare the first finding and LeakDetected with the truth.

    Later findings do not count, except those that say that slab grows, if the truth excludes them.
    """
    findings: Sequence[Document] = document.get("findings") or ()
    first = findings[0] if findings else None
    leak_detected = document.get("leakDetected") or ""
    faults = []
    if not leak_detected:
        faults.append("LeakDetected is not said")
    elif leak_detected == _WRONG_ANSWERS[truth.answer]:
        faults.append(f"LeakDetected is {leak_detected}")
    if not truth.is_healthy:
        faults += _faults_of_finding(first, truth) if first else ["there is no finding"]
    if truth.is_free_of_slab:
        faults += [f"slab grows: {_in_words(one)}" for one in slab_growth(document)]
    is_comparable = first is not None and not truth.is_healthy
    return Judgement(
        leak_detected=leak_detected,
        first_finding=_in_words(first) if first else "",
        faults=tuple(faults),
        off_share=_off_share(document, first, truth) if is_comparable and first else None,
        freed_off_share=_freed_off_share(first, truth) if is_comparable and first else None,
        denies_leak=truth.answer is Answer.LEAK and leak_detected == "False",
        invents_leak=truth.is_healthy and leak_detected == "True",
    )


def slab_growth(document: Document) -> list[Document]:
    """All findings that say that slab memory grows."""
    findings: Sequence[Document] = document.get("findings") or ()
    return [one for one in findings if one["kind"] in _GROWING_KINDS and one.get("memoryClass") in _SLAB_CLASSES]


def _faults_of_finding(finding: Document, truth: PlantedTruth) -> list[str]:
    faults = []
    if finding["kind"] not in truth.kinds:
        faults.append(f"kind is {finding['kind']}, not {' or '.join(truth.kinds)}")
    if finding.get("memoryClass", "") not in truth.memory_classes:
        faults.append(f"class is {finding.get('memoryClass') or 'empty'}, not {' or '.join(truth.memory_classes)}")
    if not _names_owner(finding, truth):
        faults.append("owner is another, or none")
    return faults


def _names_owner(finding: Document, truth: PlantedTruth) -> bool:
    if finding["kind"] in truth.owning_kinds:
        return True
    owner = finding.get("owner")
    if not owner:
        return False
    fds = set(owner.get("fds") or ())
    if owner.get("pid") in truth.pids and (not fds or not truth.fds or fds & set(truth.fds)):
        return True
    if truth.container_id and owner.get("containerID", owner.get("containerId")) == truth.container_id:
        return True
    if truth.processes and (owner.get("processes") or 0) >= truth.processes:
        return True
    return any(name in (owner.get("name") or "") for name in truth.names)


def _off_share(document: Document, finding: Document, truth: PlantedTruth) -> float | None:
    if truth.bytes_per_second:
        trend = finding.get("trend")
        seconds = (document.get("window") or {}).get("tracedSeconds") or 0
        rate = trend["bytesPerSecond"] if trend else finding["sizeBytes"] / seconds if seconds else None
        return None if rate is None else abs(rate - truth.bytes_per_second) / truth.bytes_per_second
    return abs(int(finding["sizeBytes"]) - truth.size_bytes) / truth.size_bytes if truth.size_bytes else None


def _freed_off_share(finding: Document, truth: PlantedTruth) -> float | None:
    freed_bytes = (finding.get("freedBy") or {}).get("sizeBytes")
    expected_bytes = truth.freed_bytes or truth.size_bytes
    if freed_bytes is None or not expected_bytes:
        return None
    return abs(int(freed_bytes) - expected_bytes) / expected_bytes


def _in_words(finding: Document) -> str:
    owner = finding.get("owner") or {}
    kind = owner.get("kind") or "no owner"
    name = owner.get("name") or owner.get("comm") or owner.get("containerID") or ""
    pid = f"[{owner['pid']}]" if owner.get("pid") and str(owner["pid"]) not in name else ""
    size_mib = int(finding["sizeBytes"]) / (1 << 20)
    return f"{finding['kind']}, {size_mib:,.0f} MiB {finding.get('memoryClass', '')}: {kind} {name}{pid}".rstrip()


@dataclass(frozen=True, slots=True)
class Outcome:
    """All cases together."""

    judged: int
    right: int
    denied_leaks: int
    invented_leaks: int

    @property
    def right_share(self) -> float:
        """The share of the judged cases that is right; 0 if none was judged."""
        return self.right / self.judged if self.judged else 0.0

    def is_good(self, goal_share: float) -> bool:
        """Whether at least that share is right, no leak was denied, and none was found in a healthy load."""
        return self.right_share >= goal_share and not self.denied_leaks and not self.invented_leaks


def outcome(judgements: Sequence[Judgement]) -> Outcome:
    """Count."""
    return Outcome(
        judged=len(judgements),
        right=sum(one.is_right for one in judgements),
        denied_leaks=sum(one.denies_leak for one in judgements),
        invented_leaks=sum(one.invents_leak for one in judgements),
    )
