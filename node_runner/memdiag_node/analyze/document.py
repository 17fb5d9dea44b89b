"""The evidence document's last step: kept within its bound, largest findings first."""

import json

from memdiag_api.evidence import MAX_DOCUMENT_BYTES, Evidence

_STEP = 0.75
"""How much of a list is kept at each try."""


def encode(evidence: Evidence) -> bytes:
    """The document's JSON text in ASCII, on one line."""
    return json.dumps(evidence.to_json_object(), ensure_ascii=True, separators=(",", ":")).encode("ascii")


def fit(evidence: Evidence, *, limit_bytes: int = MAX_DOCUMENT_BYTES) -> Evidence:
    """`evidence` with its smallest stacks and holders left off until it fits; `truncated` says so.

    The verdict's own stack and holder are among the largest and stay.
    """
    while len(encode(evidence)) > limit_bytes and (len(evidence.holders) > 1 or len(evidence.stacks) > 1):
        evidence = keep(
            evidence,
            stacks=max(1, int(len(evidence.stacks) * _STEP)),
            holders=max(1, int(len(evidence.holders) * _STEP)),
        )
    return evidence


def keep(evidence: Evidence, *, stacks: int, holders: int) -> Evidence:
    """The first `stacks` and `holders`, and no reference to one that is left off."""
    if stacks >= len(evidence.stacks) and holders >= len(evidence.holders):
        return evidence
    verdict = evidence.verdict
    return evidence.model_copy(
        update={
            "stacks": [
                stack.model_copy(update={"held_by": [part for part in stack.held_by if part.holder < holders]})
                for stack in evidence.stacks[:stacks]
            ],
            "holders": [
                holder.model_copy(update={"filled_by": [part for part in holder.filled_by if part.stack < stacks]})
                for holder in evidence.holders[:holders]
            ],
            "verdict": verdict.model_copy(
                update={
                    "stack": verdict.stack if (verdict.stack or 0) < stacks else None,
                    "holder": verdict.holder if (verdict.holder or 0) < holders else None,
                }
            ),
            "truncated": True,
        }
    )
