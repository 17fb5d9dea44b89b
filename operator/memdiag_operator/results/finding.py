"""A finding as shown in the status: the API server's names instead of ids, and in one short line.

A line starts with the API server's name of a pod, or with words that no name of a pod has. Names that a node chooses
are in quotes unless they are plain words (see `wording`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memdiag_api import limits
from memdiag_api.diagnosis import FindingSummary, HolderSummary, StackSummary
from memdiag_api.evidence import Evidence, SuspectScope
from memdiag_api.findings import Finding, FindingKind, LeakAnswer
from memdiag_api.limits import MAX_SENTENCE, MAX_SHORT_TEXT
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.process_name import quoted_unless, shown_process
from memdiag_api.units import format_bytes
from memdiag_operator.results.attribution import Attribution
from memdiag_operator.results.sanitize import clip
from memdiag_operator.results.suspect import summed_up
from memdiag_operator.results.wording import NODE_SAYS, advice, holder_line, suspect_line

_SCOPES = {
    OwnerKind.CONTAINER: SuspectScope.CONTAINER,
    OwnerKind.POD: SuspectScope.POD,
    OwnerKind.NODE: SuspectScope.NODE,
}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:@$<>+-]*")
_PLAIN_CLASS = re.compile(r"[A-Za-z0-9_]+")
_NAME_LIMIT, _CLASS_LIMIT, _ID_SHOWN = 100, 32, 12
_MIN_RATE = 1.0
"""Growth in bytes per second that is worth a word."""

_CLASS_IN_WORDS = {
    ClassName.ANON_PAGES: "anonymous memory",
    ClassName.FILE_CACHE: "file cache",
    ClassName.SHMEM: "shared memory",
    ClassName.HUGETLB: "huge pages",
    ClassName.KERNEL_STACK: "kernel stacks",
    ClassName.PAGE_TABLES: "page tables",
}
_KIND_IN_WORDS = {
    FindingKind.UNREAD_SOCKET: "kept by unread data",
    FindingKind.SLOW_READER: "waiting for a slow reader",
    FindingKind.UNSENT_DATA: "of unsent data",
    FindingKind.PACKETS_OUTSIDE_SOCKETS: "in packets outside sockets",
    FindingKind.LOST_PACKETS: "in lost packets",
    FindingKind.LARGE_HOLDER: "kept",
    FindingKind.ZOMBIE_NAMESPACE: "kept by a network namespace without processes",
    FindingKind.GROWING_ALLOCATION: "not freed",
    FindingKind.REMOVED_CGROUPS: "charged to removed cgroups",
    FindingKind.UNUSED_HUGE_PAGES: "of unused huge pages",
    FindingKind.BALLOON: "taken by the memory balloon",
    FindingKind.RESERVED_MEMORY: "reserved",
    FindingKind.CONTAINER_NEAR_LIMIT: "used, near its limit",
    FindingKind.OOM_KILL: "at an OOM kill",
    FindingKind.HUGE_PAGE_WASTE: "wasted in huge pages",
    FindingKind.FRAGMENTATION: "of fragmented free memory",
    FindingKind.UNEXPLAINED: "unexplained",
    FindingKind.GROWTH_SINCE_RUN: "more than in an earlier run",
}
_OWNER_IN_WORDS = {
    OwnerKind.CGROUP: "cgroup",
    OwnerKind.SOCKET: "socket",
    OwnerKind.FILE: "file",
    OwnerKind.FILE_SYSTEM: "file system",
    OwnerKind.SHARED_MEMORY_SEGMENT: "shared memory segment",
    OwnerKind.NETWORK_NAMESPACE: "network namespace",
    OwnerKind.SLAB_CACHE: "slab cache",
    OwnerKind.CALL_STACK: "call stack",
    OwnerKind.KERNEL_CALLER: "kernel function",
    OwnerKind.KERNEL_OBJECT: "kernel object",
    OwnerKind.MODULE: "module",
    OwnerKind.DEVICE: "device",
}


_HOLDER_OWNERS = frozenset(
    {
        OwnerKind.PROCESS,
        OwnerKind.CONTAINER,
        OwnerKind.POD,
        OwnerKind.NODE,
        OwnerKind.SOCKET,
        OwnerKind.KERNEL_OBJECT,
    }
)
"""Owners that a holder shows better: with its process and its file descriptors."""


@dataclass(frozen=True, slots=True)
class FindingInWords:
    """A finding, or the suspect of a document without findings."""

    line: str
    """In one short line; may be empty."""
    advice: str
    """What to do about it in the operator's own words; empty if only the runner has a word for it."""
    summary: FindingSummary | None = None


def findings_in_words(
    evidence: Evidence, attribution: Attribution, holders: Sequence[HolderSummary], stacks: Sequence[StackSummary]
) -> list[FindingInWords]:
    """The first findings of `evidence`, in its order. `holders` and `stacks` are those of `evidence`."""
    return [
        _in_words(evidence, at, attribution, holders, stacks)
        for at in range(min(len(evidence.findings), limits.MAX_TOP_FINDINGS))
    ]


def _in_words(
    evidence: Evidence,
    at: int,
    attribution: Attribution,
    holders: Sequence[HolderSummary],
    stacks: Sequence[StackSummary],
) -> FindingInWords:
    finding = evidence.findings[at]
    scope = _SCOPES.get(finding.owner.kind) if finding.owner else None
    holder = _holder(evidence, at, holders, scope)
    is_suspect = finding.kind is FindingKind.UNREAD_SOCKET and scope is not SuspectScope.NODE
    said = ""
    if is_suspect and holder and holder.pod and finding.leak is LeakAnswer.YES:
        said = advice(holder, "", scope=scope)
    summary = finding_summary(finding, attribution, own_advice=said)
    if is_suspect and holder:
        line = suspect_line(holder, None, scope=scope)
    elif finding.kind is FindingKind.GROWING_ALLOCATION and finding.evidence.stacks:
        line = suspect_line(None, stacks[finding.evidence.stacks[0]])
    else:
        line = finding_line(finding, summary, holder)
    return FindingInWords(line=line, advice=said, summary=summary)


def _holder(
    evidence: Evidence, at: int, holders: Sequence[HolderSummary], scope: SuspectScope | None
) -> HolderSummary | None:
    """The largest of the holders that a finding is about, with the figures of all of them if they are stuck sockets."""
    finding, verdict = evidence.findings[at], evidence.verdict
    if not finding.evidence.holders or finding.owner is None or finding.owner.kind not in _HOLDER_OWNERS:
        return None
    index = finding.evidence.holders[0]
    if finding.kind is not FindingKind.UNREAD_SOCKET:
        return holders[index]
    is_of_verdict = at == 0 and verdict.holder == index
    return summed_up(
        evidence,
        index,
        holders,
        scope=scope,
        pinned_bytes=finding.size_bytes,
        unread_bytes=verdict.suspect_unread_bytes if is_of_verdict else 0,
    )


def finding_summary(finding: Finding, attribution: Attribution, *, own_advice: str = "") -> FindingSummary:
    """One finding with the names that the API server has; `own_advice` replaces the runner's, if any."""
    owner, trend, freed_by = finding.owner, finding.trend, finding.freed_by
    names = attribution.names(owner.container_id, owner.pod_uid) if owner else None
    runner_advice = f"{NODE_SAYS}{finding.advice}" if finding.advice else ""
    return FindingSummary(
        kind=finding.kind,
        memory_class=clip(finding.memory_class, MAX_SHORT_TEXT),
        size_bytes=finding.size_bytes,
        size=format_bytes(finding.size_bytes),
        leak=finding.leak,
        reclaimable=finding.reclaimable,
        growth_bytes_per_second=trend.bytes_per_second if trend else None,
        confidence=finding.confidence,
        owner_kind=owner.kind if owner else None,
        namespace=names.namespace if names else "",
        pod=names.pod if names else "",
        container=names.container if names else "",
        pid=owner.pid if owner else 0,
        comm=owner.comm if owner else "",
        fds=owner.fds[: limits.MAX_OWNER_FDS] if owner else [],
        name=_owner_name(owner) if owner else "",
        freed_by=freed_by.action if freed_by else "",
        freed_bytes=freed_by.size_bytes if freed_by else None,
        sentence=finding.sentence,
        advice=clip(own_advice or runner_advice, MAX_SENTENCE),
    )


def finding_line(finding: Finding, summary: FindingSummary, holder: HolderSummary | None = None) -> str:
    """A finding in one short line: `demo/web (container app): 8.00 GiB of anonymous memory`.

    `holder`: the largest of the holders that it is about, if any.
    """
    size, growth = summary.size, _growth(summary)
    who = _who(finding.owner, summary, holder)
    if who:
        kind = f" ({holder.kind})" if holder and holder.pid and summary.kind is FindingKind.LARGE_HOLDER else ""
        part = f", {_part(summary)}" if not holder and _part(summary) else ""
        return clip(f"{who}: {size} {_what(summary)}{kind}{part}{growth}", MAX_SHORT_TEXT)
    memory = quoted_unless(_PLAIN_CLASS, summary.memory_class, _CLASS_LIMIT) if summary.memory_class else "Memory"
    detail = ", ".join(words for words in (_part(summary), _KIND_IN_WORDS.get(summary.kind, "")) if words)
    return clip(f"{memory} {size}{': ' if detail else ''}{detail}{growth}", MAX_SHORT_TEXT)


def _part(summary: FindingSummary) -> str:
    """The cache, file, device or other thing that the memory belongs to; empty if that is a process or the class."""
    kind = summary.owner_kind
    if kind is None or not summary.name or summary.name == summary.memory_class:
        return ""
    if kind in _OWNER_IN_WORDS:
        return f"{_OWNER_IN_WORDS[kind]} {summary.name}"
    return summary.name if kind is OwnerKind.KERNEL else ""


def _what(summary: FindingSummary) -> str:
    """What its owner has to do with it."""
    if said := _KIND_IN_WORDS.get(summary.kind):
        return said
    known = {str(name): words for name, words in _CLASS_IN_WORDS.items()}.get(summary.memory_class)
    name = quoted_unless(_PLAIN_CLASS, summary.memory_class, _CLASS_LIMIT) if summary.memory_class else "memory"
    return f"of {known or name}"


def _who(owner: MemoryOwner | None, summary: FindingSummary, holder: HolderSummary | None) -> str:
    """The pod or the process that has it; empty if it is a part of the kernel."""
    if owner is None or (owner.kind is OwnerKind.CALL_STACK and not holder):
        return ""
    if holder:
        line = holder_line(holder, scope=_SCOPES.get(owner.kind))
        return f"several owners, the largest {line}" if owner.kind is OwnerKind.NODE else line
    process = _process(owner)
    if summary.pod:
        container = f"container {summary.container}" if summary.container and owner.kind is not OwnerKind.POD else ""
        inside = ", ".join(part for part in (container, process) if part)
        return f"{summary.namespace}/{summary.pod}" + (f" ({inside})" if inside else "")
    is_of_pod = bool(owner.container_id or owner.pod_uid)
    if process:
        return f"{process} ({'unattributed' if is_of_pod else 'no pod'})"
    if is_of_pod:
        identity = quoted_unless(_PLAIN_NAME, owner.container_id or owner.pod_uid, _ID_SHOWN)
        return f"{'container' if owner.container_id else 'pod'} {identity} (unattributed)"
    return ""


def _process(owner: MemoryOwner) -> str:
    if not owner.pid:
        return ""
    descriptors = ", ".join(str(fd) for fd in owner.fds[:4])
    is_several = owner.kind in (OwnerKind.PROCESS, OwnerKind.CONTAINER, OwnerKind.POD) and owner.processes > 1
    fds = f" fd {descriptors}" if descriptors else ""
    return shown_process(owner.comm, owner.pid) + fds + (" and others" if is_several else "")


def _owner_name(owner: MemoryOwner) -> str:
    if owner.kind is OwnerKind.PROCESS and owner.pid:
        return clip(shown_process(owner.comm, owner.pid), MAX_SHORT_TEXT)
    return quoted_unless(_PLAIN_NAME, owner.name, _NAME_LIMIT)


def _growth(summary: FindingSummary) -> str:
    rate = summary.growth_bytes_per_second
    return f", growing {format_bytes(rate)}/s" if rate is not None and rate >= _MIN_RATE else ""
