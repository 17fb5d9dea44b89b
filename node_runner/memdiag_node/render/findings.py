"""The answer and the findings, for the report."""

from collections.abc import Iterator, Sequence

from memdiag_api.evidence import Evidence
from memdiag_api.findings import Finding, FindingTrend, LeakAnswer
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.render.text import cut, wrapped

ANSWER_LINES = 10
"""Length of the answer at most, with the heading of the report."""
_SENTENCE_LINES, _ADVICE_LINES = 3, 2
_LEAK_WORDS = {LeakAnswer.YES: "leak", LeakAnswer.UNKNOWN: "maybe a leak", LeakAnswer.NO: ""}


def answer_lines(evidence: Evidence, *, used_lines: int) -> list[str]:
    """Return the verdict, what to do next, and as many further findings as fit. `used_lines`: of the heading."""
    verdict = evidence.verdict
    leak = f"; leak detected: {evidence.leak_detected.value}" if evidence.leak_detected else ""
    lines = [
        f"{verdict.kind.value} (confidence: {verdict.confidence.value.lower()}{leak})",
        *_at_most(wrapped(verdict.sentence, "  "), _SENTENCE_LINES),
        *_at_most(wrapped(verdict.advice, "  Next: "), _ADVICE_LINES),
    ]
    others = [one for one in evidence.findings if one.sentence != verdict.sentence]
    room = ANSWER_LINES - used_lines - len(lines)
    return lines + [cut(f"  - {one.sentence}") for one in others[: max(0, room)]]


def findings_lines(evidence: Evidence) -> list[str]:
    """Return every finding with its figures; nothing for a document without findings."""
    if not evidence.findings:
        return []
    total, explained = evidence.host.mem_total_bytes, evidence.explained_bytes
    lines = [f"WHAT WAS FOUND   {format_bytes(explained)} of {format_bytes(total)} are explained"]
    for number, finding in enumerate(evidence.findings, start=1):
        lines += _finding(number, finding)
    return lines


def reasons_lines(evidence: Evidence) -> list[str]:
    """Return the reasons of the verdict."""
    if not evidence.verdict.reasons:
        return []
    return [
        "WHY THIS ANSWER",
        *(line for reason in evidence.verdict.reasons for line in wrapped(reason, "  - ")),
    ]


def _finding(number: int, finding: Finding) -> Iterator[str]:
    words = [
        format_bytes(finding.size_bytes),
        finding.memory_class,
        "reclaimable" if finding.reclaimable else "",
        _LEAK_WORDS[finding.leak],
    ]
    yield f"  #{number:<3} {finding.kind.value}: {', '.join(word for word in words if word)}"
    yield from wrapped(finding.sentence, "       ")
    if finding.trend and finding.trend.bytes_per_second > 0:
        yield from wrapped(_trend(finding.trend), "       grows by ")
    if finding.freed_by:
        size = finding.freed_by.size_bytes
        back = f" ({format_bytes(size)} would come back)" if size is not None else ""
        yield from wrapped(f"{finding.freed_by.action.rstrip('.')}{back}.", "       To free it: ")


def _trend(trend: FindingTrend) -> str:
    rate = f"{format_bytes(trend.bytes_per_second)}/s, {format_bytes(trend.bytes_per_second * 86_400)} a day"
    left = trend.exhausts_node_in_seconds
    return rate if left is None else f"{rate}: available memory lasts for {format_duration(left)}"


def _at_most(lines: Sequence[str], limit: int) -> list[str]:
    """Return up to `limit` lines; the last one shows if there are more."""
    if len(lines) <= limit:
        return list(lines)
    return [*lines[: limit - 1], cut(f"{lines[limit - 1]} ...")]
