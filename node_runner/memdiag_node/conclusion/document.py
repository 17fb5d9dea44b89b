"""Keep the evidence document within its limits: what the verdict refers to is kept first, then the largest items."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memdiag_api import limits
from memdiag_api.document import DocumentError, read_document
from memdiag_api.evidence import Evidence, Holder, Owner, Stack, Verdict
from memdiag_api.findings import Finding, FindingEvidence
from memdiag_api.history import thinned
from memdiag_api.limits import MAX_DOCUMENT_BYTES

_STEP = 0.75
"""Share of a list that is kept at each attempt."""
_SHORT_LIST, _SHORT_TEXT = 4, 256
_FIRST = 10
"""Findings that are kept the longest, and whose holders and stacks are kept first."""
_SUBJECTS = {
    "slab": "slab caches",
    "clues": "clues",
    "files": "files",
    "dentries": "directory entries",
    "namespaces": "network namespaces",
    "packets": "packets",
}
"""The subjects of the census that may be large, by field."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Stacks and holders of a document, and a verdict and findings that refer only to these."""

    stacks: list[Stack]
    holders: list[Holder]
    verdict: Verdict
    findings: list[Finding]


def keep_lists(
    stacks: Sequence[Stack],
    holders: Sequence[Holder],
    verdict: Verdict,
    findings: Sequence[Finding],
    *,
    max_stacks: int,
    max_holders: int,
) -> Kept:
    """Keep up to the given number of both, in their order: what the verdict and the findings refer to, then the first.

    The first holder and stack of every finding come before the others of any. References are adjusted, and those to
    omitted items are removed.
    """
    first_holders = _referred(verdict.holder, [one.evidence.holders for one in findings], len(holders))
    first_stacks = _referred(verdict.stack, [one.evidence.stacks for one in findings], len(stacks))
    held_by = [part.holder for stack in first_stacks[:_FIRST] for part in stacks[stack].held_by[:1]]
    filled_by = [part.stack for holder in first_holders[:_FIRST] for part in holders[holder].filled_by[:1]]
    chosen_holders = _chosen(len(holders), max_holders, [*first_holders[:_FIRST], *held_by, *first_holders])
    chosen_stacks = _chosen(len(stacks), max_stacks, [*first_stacks[:_FIRST], *filled_by, *first_stacks])
    holder_place = {old: new for new, old in enumerate(chosen_holders)}
    stack_place = {old: new for new, old in enumerate(chosen_stacks)}
    return Kept(
        stacks=[_with_places(stacks[index], holder_place) for index in chosen_stacks],
        holders=[_filled_by_places(holders[index], stack_place) for index in chosen_holders],
        verdict=verdict.model_copy(
            update={
                "holder": None if verdict.holder is None else holder_place.get(verdict.holder),
                "stack": None if verdict.stack is None else stack_place.get(verdict.stack),
            }
        ),
        findings=[_evidence_places(one, holder_place, stack_place) for one in findings],
    )


def _referred(first: int | None, references: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return the indexes that are referred to, each once: `first`, the first of each list, then the others."""
    heads = [index for part in references for index in part[:1]]
    others = [index for part in references for index in part[1:]]
    wanted = dict.fromkeys([*([] if first is None else [first]), *heads, *others])
    return [index for index in wanted if index < count]


def _evidence_places(finding: Finding, holder_place: Mapping[int, int], stack_place: Mapping[int, int]) -> Finding:
    references = finding.evidence
    return finding.model_copy(
        update={
            "evidence": references.model_copy(
                update={
                    "holders": [holder_place[index] for index in references.holders if index in holder_place],
                    "stacks": [stack_place[index] for index in references.stacks if index in stack_place],
                }
            )
        }
    )


def keep(evidence: Evidence, *, stacks: int, holders: int) -> Evidence:
    """Return `evidence` with up to the given number of stacks and holders. `truncated` is set if some are omitted."""
    if stacks >= len(evidence.stacks) and holders >= len(evidence.holders):
        return evidence
    kept = keep_lists(
        evidence.stacks,
        evidence.holders,
        evidence.verdict,
        evidence.findings,
        max_stacks=stacks,
        max_holders=holders,
    )
    return evidence.model_copy(
        update={
            "stacks": kept.stacks,
            "holders": kept.holders,
            "verdict": kept.verdict,
            "findings": kept.findings,
            "truncated": True,
        }
    )


def encode(evidence: Evidence) -> bytes:
    """Return the JSON text of the document in ASCII, on one line."""
    return json.dumps(evidence.to_json_object(), ensure_ascii=True, separators=(",", ":")).encode("ascii")


def fit(evidence: Evidence, *, limit_bytes: int = MAX_DOCUMENT_BYTES) -> Evidence:
    """Return `evidence` within `limit_bytes`. `truncated` is set if something was omitted.

    The smallest stacks and holders are omitted first, then the largest subjects of the census, then details and all
    but the first findings, then everything except the breakdown, the verdict and the first findings. The stack and the
    holder of the verdict are kept the longest.
    """
    while len(encode(evidence)) > limit_bytes and (len(evidence.holders) > 1 or len(evidence.stacks) > 1):
        evidence = keep(
            evidence,
            stacks=max(1, int(len(evidence.stacks) * _STEP)),
            holders=max(1, int(len(evidence.holders) * _STEP)),
        )
    while len(encode(evidence)) > limit_bytes and (subject := _largest_subject(evidence)):
        evidence = _without_subject(evidence, subject)
    if len(encode(evidence)) > limit_bytes:
        evidence = _without_details(evidence)
    if len(encode(evidence)) > limit_bytes:
        evidence = bare(evidence, f"the document would be larger than {limit_bytes} bytes")
    return evidence


def publishable(evidence: Evidence) -> bytes:
    """Return the document to publish: within its size limit, and accepted by the checks of the operator.

    If `evidence` does not pass, which would be a bug in the runner, only the breakdown and the verdict are published,
    with a note that says why. Raises DocumentError if these do not pass either.
    """
    try:
        return _checked(fit(evidence))
    except ValueError as error:  # values that cannot be written as JSON raise other errors than DocumentError
        return _checked(bare(evidence, f"the document failed validation: {error}"))


def bare(evidence: Evidence, reason: str) -> Evidence:
    """Return the breakdown and the verdict of `evidence`, with a note that the rest was omitted for `reason`."""
    verdict = evidence.verdict
    return evidence.model_copy(
        update={
            "needs": [],
            "stacks": [],
            "holders": [],
            "ledger": evidence.ledger and evidence.ledger.model_copy(update={"containers": []}),
            "census": None,
            "coverage": evidence.coverage and evidence.coverage.model_copy(update={"not_seen": []}),
            "trace": evidence.trace and evidence.trace.model_copy(update={"charges": []}),
            "verdict": verdict.model_copy(
                update={
                    "sentence": _writable(verdict.sentence),
                    "advice": _writable(verdict.advice),
                    "reasons": [_writable(text)[:_SHORT_TEXT] for text in verdict.reasons[:_SHORT_LIST]],
                    "holder": None,
                    "stack": None,
                }
            ),
            "findings": [_bare_finding(one) for one in evidence.findings[:_FIRST]],
            "owners": [],
            "containers": [],
            "oom_kills": [],
            "removed_cgroups": None,
            "machine": None,
            "summary": evidence.summary and evidence.summary.model_copy(update={"holders": [], "slab_caches": []}),
            "history": [],
            "truncated": True,
            "notes": [_writable(f"stacks, holders and details were omitted: {reason}")[:_SHORT_TEXT]],
        }
    )


def _bare_finding(finding: Finding) -> Finding:
    """Return a finding without details."""
    owner, freed_by = finding.owner, finding.freed_by
    return finding.model_copy(
        update={
            "sentence": _writable(finding.sentence)[:_SHORT_TEXT],
            "advice": _writable(finding.advice)[:_SHORT_TEXT],
            "reasons": [],
            "owner": owner
            and owner.model_copy(update={"name": _writable(owner.name), "comm": _writable(owner.comm), "fds": []}),
            "freed_by": freed_by and freed_by.model_copy(update={"action": _writable(freed_by.action)[:_SHORT_TEXT]}),
            "evidence": FindingEvidence(),
        }
    )


def _checked(evidence: Evidence) -> bytes:
    document = encode(evidence)
    if len(document) > MAX_DOCUMENT_BYTES:
        raise DocumentError(f"the document has {len(document)} bytes, but at most {MAX_DOCUMENT_BYTES} are allowed")
    read_document(document)
    return document


def _largest_subject(evidence: Evidence) -> str:
    """The subject of the census with the longest text, by the name of its field; empty if there is none."""
    found = {name: getattr(evidence.census, name) for name in _SUBJECTS} if evidence.census else {}
    sizes = {name: len(json.dumps(part.to_json_object())) for name, part in found.items() if part is not None}
    return max(sizes, key=lambda name: sizes[name], default="")


def _without_subject(evidence: Evidence, subject: str) -> Evidence:
    """Return `evidence` without a subject of the census, with a note if there is room for one."""
    note = f"{_SUBJECTS[subject]} were omitted from the census: the document would have been too large"
    return evidence.model_copy(
        update={
            "census": evidence.census and evidence.census.model_copy(update={subject: None}),
            "notes": [*evidence.notes, note][: limits.MAX_NOTES],
            "truncated": True,
        }
    )


def _without_details(evidence: Evidence) -> Evidence:
    """Return `evidence` with all lists and texts shortened, except figures and names."""
    coverage, ledger, trace = evidence.coverage, evidence.ledger, evidence.trace
    return evidence.model_copy(
        update={
            "needs": [
                need.model_copy(update={"detail": need.detail[:_SHORT_TEXT], "remedy": need.remedy[:_SHORT_TEXT]})
                for need in evidence.needs[:_SHORT_LIST]
            ],
            "holders": [
                holder.model_copy(
                    update={
                        "description": holder.description[:_SHORT_TEXT],
                        "owners": list(_short_owners(holder.owners)),
                    }
                )
                for holder in evidence.holders
            ],
            "stacks": [
                stack.model_copy(update={"processes": stack.processes[:_SHORT_LIST]}) for stack in evidence.stacks
            ],
            "census": None,
            "findings": evidence.findings[:_FIRST],
            "containers": evidence.containers[:_SHORT_LIST],
            "oom_kills": evidence.oom_kills[:_SHORT_LIST],
            "machine": None,
            "owners": [one.model_copy(update={"owners": one.owners[:_SHORT_LIST]}) for one in evidence.owners],
            "history": thinned(evidence.history, _SHORT_LIST),
            "coverage": coverage and coverage.model_copy(update={"not_seen": coverage.not_seen[:_SHORT_LIST]}),
            "ledger": ledger and ledger.model_copy(update={"containers": ledger.containers[:_SHORT_LIST]}),
            "trace": trace and trace.model_copy(update={"charges": trace.charges[:_SHORT_LIST]}),
            "verdict": evidence.verdict.model_copy(
                update={"reasons": [text[:_SHORT_TEXT] for text in evidence.verdict.reasons]}
            ),
            "notes": [note[:_SHORT_TEXT] for note in evidence.notes[:_SHORT_LIST]],
            "truncated": True,
        }
    )


def _short_owners(owners: Iterable[Owner]) -> Iterable[Owner]:
    for owner in list(owners)[:_SHORT_LIST]:
        yield owner.model_copy(update={"command_line": ""})


def _writable(text: str) -> str:
    """Return `text` without characters that UTF-8 cannot represent."""
    return text.encode(errors="replace").decode()


def _chosen(count: int, limit: int, first: Iterable[int]) -> list[int]:
    """Choose `limit` of `count` indexes: `first`, then the smallest. Returned in ascending order."""
    wanted = [*(index for index in first if index < count), *range(count)]
    return sorted(list(dict.fromkeys(wanted))[:limit])


def _with_places(stack: Stack, place: dict[int, int]) -> Stack:
    parts = [part.model_copy(update={"holder": place[part.holder]}) for part in stack.held_by if part.holder in place]
    return stack.model_copy(update={"held_by": parts[: limits.MAX_JOINED]})


def _filled_by_places(holder: Holder, place: dict[int, int]) -> Holder:
    parts = [part.model_copy(update={"stack": place[part.stack]}) for part in holder.filled_by if part.stack in place]
    return holder.model_copy(update={"filled_by": parts[: limits.MAX_JOINED]})
