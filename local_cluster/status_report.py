"""The results in the status of a MemoryDiagnosis, as readable text."""

import textwrap
from typing import Any

from memdiag_api.units import format_bytes

WIDTH = 100
_FRAMES_SHOWN = 6


def render_status(diagnosis: dict[str, Any]) -> str:
    """The content of `status`, at most 100 columns wide."""
    status = diagnosis.get("status", {})
    lines = _wrapped(status.get("summary", "No summary yet."), "")
    for result in status.get("results", []):
        lines += ["", f"Node {result['nodeName']}: {result.get('reason', '')}", *_result(result)]
    return "\n".join(lines)


def _result(result: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    verdict = result.get("verdict")
    if verdict:
        lines += [f"  Verdict: {verdict['kind']} (confidence: {verdict['confidence'].lower()})"]
        lines += _wrapped(verdict["sentence"], "  ") + _wrapped(verdict.get("advice", ""), "  Next: ")
    if "allocPageBytes" in result:
        total, alloc = format_bytes(result["memTotalBytes"]), format_bytes(result["allocPageBytes"])
        change = format_bytes(result.get("allocPageChangeBytes", 0))
        lines.append(f"  Memory {total}; allocpage {alloc}, changed by {change} in the window")
        groups: dict[str, int] = {}
        for one in result.get("breakdown", []):
            groups[one["group"]] = groups.get(one["group"], 0) + one["sizeBytes"]
        lines.append("  " + ", ".join(f"{name.lower()} {format_bytes(size)}" for name, size in groups.items()))
    outstanding = result.get("outstandingBytes", 0)
    if outstanding:
        explained = result.get("explainedBytes", 0)
        lines.append(
            f"  {format_bytes(outstanding)} were allocated in the window and not freed; {explained / outstanding:.0%} "
            f"of this was found, page by page, in holders"
        )
    by_pod = [
        f"{one['namespace']}/{one['pod']} ({one['container']}) {format_bytes(one['pinnedBytes'])}"
        for one in result.get("pinnedByPod", [])
        if one.get("pod")
    ]
    lines += _findings(result.get("findings", []))
    lines += _wrapped(", ".join(by_pod), "  Pinned by pod: ")
    lines += _holders(result.get("topHolders", []))
    lines += _stacks(result.get("topStacks", []))
    lines += [line for note in result.get("coverage", []) for line in _wrapped(note, "  note: ")]
    return lines


def _findings(findings: list[dict[str, Any]]) -> list[str]:
    lines = ["  Findings, most important first:"] if findings else []
    for number, one in enumerate(findings, start=1):
        leak = {"Yes": " (leak)", "Unknown": " (maybe a leak)"}.get(one["leak"], "")
        pod = f"{one['namespace']}/{one['pod']}: " if one.get("pod") else ""
        lines += _wrapped(f"{pod}{one['sentence']}{leak}", f"    {number:>2}. ")
        if freed_bytes := one.get("freedBytes"):
            lines += _wrapped(f"{one['freedBy'].rstrip('.')} ({format_bytes(freed_bytes)})", "        to free it: ")
    return lines


def _holders(holders: list[dict[str, Any]]) -> list[str]:
    lines = ["  Holders:"] if holders else []
    for one in holders:
        pod = f"{one['namespace']}/{one['pod']} ({one['container']})" if one.get("pod") else ""
        who = f"{one['comm']}[{one['pid']}] fd {','.join(map(str, one.get('fds', [])))}" if one.get("pid") else ""
        words = (pod, who or one.get("unownedReason"), one.get("protocol") or one["kind"], one.get("localAddress"))
        what = " ".join(word for word in words if word)
        stuck = f", stuck for at least {one['stuckSeconds']:.0f} s" if "stuckSeconds" in one else ""
        sizes = f"{format_bytes(one['pinnedBytes']):>9} pinned"
        if heads := one.get("headBytes"):
            sizes += f" and {format_bytes(heads)} of packet heads"
        if unread := one.get("unreadBytes"):
            sizes += f" by {format_bytes(unread)} unread"
        lines += _wrapped(f"{what}{stuck}", f"    {sizes}: ", indent=14)
    return lines


def _stacks(stacks: list[dict[str, Any]]) -> list[str]:
    lines = ["  Call stacks:"] if stacks else []
    for one in stacks:
        by = f" by {one['processes'][0]}" if one.get("processes") else f" in {one['context']} context"
        words = (one.get("memoryClass"), one.get("slabCache"), one["trend"].lower())
        lines.append(f"    {format_bytes(one['outstandingBytes']):>9} {' '.join(filter(None, words))}{by}")
        lines += _wrapped(" < ".join(one["frames"][:_FRAMES_SHOWN]), "              ")
        for held in one.get("heldBy", []):
            lines += _wrapped(held["holder"], f"              {held['share']:.0%} in ")
    return lines


def _wrapped(text: str, prefix: str, *, indent: int | None = None) -> list[str]:
    """`text` after `prefix`, continuation lines indented by `indent`, or aligned with the start of the text."""
    further = " " * (len(prefix) if indent is None else indent)
    return textwrap.wrap(text, WIDTH, initial_indent=prefix, subsequent_indent=further) if text else []
