"""The evidence document keeps within its bound, and refers to nothing that it left off."""

import json

from memdiag_api.evidence import Evidence
from memdiag_node.analyze.document import encode, fit
from support.evidence import evidence_with


def test_the_document_is_one_line_of_ascii_that_reads_back_as_it_was() -> None:
    evidence = evidence_with(holders=2, comm="bäd\x1b[31m\u2028name")
    document = encode(evidence)
    assert document.isascii()
    assert b"\n" not in document
    assert b"\x1b" not in document
    assert Evidence.model_validate_json(document) == evidence


def test_a_small_document_stays_as_it_is() -> None:
    evidence = evidence_with(holders=3, stacks=3)
    assert fit(evidence) is evidence
    assert not evidence.truncated


def test_a_large_document_loses_its_smallest_findings() -> None:
    evidence = evidence_with(holders=200, stacks=60)
    limit = len(encode(evidence)) // 3
    fitted = fit(evidence, limit_bytes=limit)
    assert len(encode(fitted)) <= limit
    assert fitted.truncated
    assert fitted.holders[0].pinned_bytes == evidence.holders[0].pinned_bytes
    assert [one.pinned_bytes for one in fitted.holders] == [
        one.pinned_bytes for one in evidence.holders[: len(fitted.holders)]
    ]


def test_what_is_left_off_is_not_referred_to() -> None:
    fitted = fit(evidence_with(holders=200, stacks=60), limit_bytes=20_000)
    assert all(part.holder < len(fitted.holders) for stack in fitted.stacks for part in stack.held_by)
    assert all(part.stack < len(fitted.stacks) for holder in fitted.holders for part in holder.filled_by)
    assert json.loads(encode(fitted))["truncated"] is True


def test_the_bound_holds_for_the_fullest_document_that_the_models_allow() -> None:
    fullest = evidence_with(holders=256, stacks=64, comm="\u4e2d" * 256)
    assert len(encode(fit(fullest))) <= 256 * 1024
