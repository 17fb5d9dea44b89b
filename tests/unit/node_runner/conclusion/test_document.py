"""The evidence document keeps within its size limit, and refers to nothing that it omits."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from memdiag_api.census.clues import Clue, Clues
from memdiag_api.census.dentries import DentryCensus
from memdiag_api.document import DocumentError, read_document
from memdiag_api.evidence import Census, Evidence, Need, NeedState
from memdiag_api.history import HolderSize, RunSummary, SizeByName
from memdiag_api.limits import MAX_DOCUMENT_BYTES
from memdiag_node.conclusion.document import bare, encode, fit, keep, publishable
from support.evidence import evidence_with


def test_the_document_is_one_line_of_ascii_and_reads_back_unchanged() -> None:
    evidence = evidence_with(holders=2, comm="bäd\x1b[31m\u2028name")
    document = encode(evidence)
    assert document.isascii()
    assert b"\n" not in document
    assert b"\x1b" not in document
    assert Evidence.model_validate_json(document) == evidence


def test_a_small_document_is_not_changed() -> None:
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


def test_omitted_items_are_not_referred_to() -> None:
    fitted = fit(evidence_with(holders=200, stacks=60), limit_bytes=20_000)
    assert all(part.holder < len(fitted.holders) for stack in fitted.stacks for part in stack.held_by)
    assert all(part.stack < len(fitted.stacks) for holder in fitted.holders for part in holder.filled_by)
    assert json.loads(encode(fitted))["truncated"] is True


def test_the_size_limit_holds_for_the_largest_document_that_the_models_allow() -> None:
    fullest = evidence_with(holders=256, stacks=64, comm="\u4e2d" * 256)
    assert len(encode(fit(fullest))) <= 256 * 1024


def test_the_largest_subject_of_the_census_is_omitted_and_named_before_the_others() -> None:
    clue = Clue(subject="kmalloc-64", objects=1, size_bytes=64, sampled=1, share=1, offset_bytes=8, points_to="f" * 500)
    entries = DentryCensus(entries=1, size_bytes=192, negative=1, negative_bytes=192, unused=1, long_names_bytes=0)
    census = Census(compound=[], clues=Clues(clues=[clue] * 16), dentries=entries)
    evidence = evidence_with().model_copy(update={"census": census})
    fitted = fit(evidence, limit_bytes=len(encode(evidence)) - 1)
    assert fitted.census == census.model_copy(update={"clues": None})
    assert [note.partition(":")[0] for note in fitted.notes] == ["clues were omitted from the census"]
    assert fitted.truncated


def judged(evidence: Evidence, *, holder: int, stack: int) -> Evidence:
    verdict = evidence.verdict.model_copy(update={"holder": holder, "stack": stack})
    return evidence.model_copy(update={"verdict": verdict})


@pytest.mark.parametrize("limit", [200_000, 60_000, 20_000])
def test_what_the_verdict_refers_to_is_kept_even_if_it_is_small(limit: int) -> None:
    evidence = judged(evidence_with(holders=256, stacks=64), holder=255, stack=63)
    fitted = fit(evidence, limit_bytes=limit)
    assert len(encode(fitted)) <= limit
    assert fitted.verdict.holder is not None
    assert fitted.verdict.stack is not None
    assert fitted.holders[fitted.verdict.holder].owners == evidence.holders[255].owners
    assert fitted.stacks[fitted.verdict.stack].outstanding_bytes == evidence.stacks[63].outstanding_bytes


def test_references_are_adjusted() -> None:
    """Stack 3 is held by holder 9, the verdict's: both still refer to each other at their new places."""
    template = evidence_with(holders=10, stacks=4)
    part = template.stacks[0].held_by[0].model_copy(update={"holder": 9})
    stacks = [*template.stacks[:3], template.stacks[3].model_copy(update={"held_by": [part]})]
    shorter = keep(judged(template.model_copy(update={"stacks": stacks}), holder=9, stack=3), stacks=2, holders=3)
    assert [one.pinned_bytes for one in shorter.holders] == [template.holders[at].pinned_bytes for at in (0, 1, 9)]
    assert (shorter.verdict.holder, shorter.verdict.stack) == (2, 1)
    assert [held.holder for held in shorter.stacks[1].held_by] == [2]
    assert [filled.stack for filled in shorter.holders[2].filled_by] == [0, 1]


def test_details_are_omitted_before_the_suspect() -> None:
    needs = [Need(name=f"need {n}", state=NeedState.MET, checks=[], detail="\u4e2d" * 1024) for n in range(64)]
    evidence = evidence_with(holders=1, stacks=1).model_copy(update={"needs": needs, "notes": ["\u4e2d" * 1024] * 32})
    assert len(encode(evidence)) > MAX_DOCUMENT_BYTES
    published = read_document(publishable(evidence))
    assert published.holders[0].owners[0].pid == evidence.holders[0].owners[0].pid
    assert (published.verdict.holder, published.verdict.stack, published.truncated) == (0, 0, True)


def test_a_document_that_fails_validation_is_published_without_the_invalid_part() -> None:
    """A bug in the runner does not lose the whole result of the node."""
    whole = evidence_with(holders=3, stacks=2)
    for broken in (
        judged(whole, holder=7, stack=0),
        whole.model_copy(update={"holders": [whole.holders[0].model_copy(update={"stuck_seconds": float("nan")})]}),
        whole.model_copy(update={"run_id": whole.run_id, "notes": ["\ud800"]}),
    ):
        published = read_document(publishable(broken))
        assert published.breakdown == whole.breakdown
        assert (published.verdict.kind, published.verdict.sentence) == (whole.verdict.kind, whole.verdict.sentence)
        assert published.verdict.holder is None
        assert "stacks, holders and details were omitted: the document failed validation: " in published.notes[0]


def test_a_document_that_cannot_be_published_has_an_error_that_says_why() -> None:
    broken = evidence_with().model_copy(update={"run_id": "x" * 300})
    with pytest.raises(DocumentError, match="runID: String should have at most 253 characters"):
        publishable(broken)


def with_history() -> Evidence:
    """A document with ten earlier runs."""
    end = datetime(2026, 1, 2, tzinfo=UTC)
    runs = [
        RunSummary(
            run_id=str(number),
            end_time=end - timedelta(days=number),
            boot_id="b",
            mem_total_bytes=1,
            classes=[SizeByName(name="AllocPage", size_bytes=7)],
            alloc_page_bytes=7,
            holders=[HolderSize(kind="Pipe", owner="x" * 64, size_bytes=7)],
        )
        for number in range(11)
    ]
    return evidence_with(holders=2, stacks=2).model_copy(update={"summary": runs[0], "history": runs[1:]})


def test_of_the_history_the_earliest_and_the_latest_run_are_kept_longer() -> None:
    evidence = with_history()
    fitted = fit(evidence, limit_bytes=len(encode(keep(evidence, stacks=1, holders=1))) - 1)
    assert fitted.summary == evidence.summary
    assert len(fitted.history) == 4
    assert (fitted.history[0].run_id, fitted.history[-1].run_id) == ("1", "10")


def test_the_barest_document_has_the_summary_without_the_history() -> None:
    fitted = bare(with_history(), "it is a test")
    assert fitted.history == []
    assert fitted.summary
    assert (fitted.summary.alloc_page_bytes, len(fitted.summary.classes), fitted.summary.holders) == (7, 1, [])
