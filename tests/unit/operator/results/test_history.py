"""The history of a node between two of its runners: bounded, and only of the same node."""

import json
from datetime import timedelta

import pytest
from pydantic import ValidationError

from memdiag_api.history import HolderSize, RunSummary, SizeByName
from memdiag_api.limits import MAX_CLASSES, MAX_HISTORY_BYTES, MAX_SUMMARY_CACHES, MAX_SUMMARY_HOLDERS, MAX_SUMMARY_TEXT
from memdiag_node.history import history_of_variable
from memdiag_operator.results.history import history_of_report, history_text
from support.kubernetes_objects import NOW

LARGEST = 2**63 - 1


def summary(number: int, *, character: str = "x") -> RunSummary:
    """A summary as large as it can be."""
    text = character * MAX_SUMMARY_TEXT
    return RunSummary(
        run_id=f"run-{number}",
        end_time=NOW - timedelta(days=number),
        boot_id=text,
        node_name="n" * 253,
        mem_total_bytes=LARGEST,
        classes=[SizeByName(name=text, size_bytes=LARGEST)] * MAX_CLASSES,
        alloc_page_bytes=LARGEST,
        holders=[HolderSize(kind=text, memory_class=text, owner=text, size_bytes=LARGEST)] * MAX_SUMMARY_HOLDERS,
        slab_caches=[SizeByName(name=text, size_bytes=LARGEST)] * MAX_SUMMARY_CACHES,
    )


def small(number: int) -> RunSummary:
    return summary(number).model_copy(update={"classes": [], "holders": [], "slab_caches": []})


def report(*runs: RunSummary, node_name: str = "node1") -> bytes:
    summaries = [run.to_json_object() for run in runs]
    evidence = {"summary": summaries[0] if summaries else None, "history": summaries[1:]}
    return json.dumps({"nodeName": node_name, "evidence": evidence}).encode()


@pytest.mark.parametrize("character", ["x", "$", "\U0001f600", '"', "\n"])
def test_the_variable_is_bounded_whatever_the_node_wrote(character: str) -> None:
    runs = [summary(number, character=character) for number in range(10)]
    text = history_text(runs)
    assert len(text.encode()) <= MAX_HISTORY_BYTES
    assert "$" not in text
    found, note = history_of_variable(text)
    assert not note
    assert [one for one in runs if one in found] == found


def test_small_summaries_are_all_kept_in_order() -> None:
    runs = [small(number) for number in range(10)]
    assert history_of_variable(history_text(runs)) == (runs, "")


def test_no_runs_are_no_variable() -> None:
    assert history_text([]) == ""


def test_a_report_has_its_own_run_and_those_before_it() -> None:
    runs = [small(number) for number in range(4)]
    assert list(history_of_report(report(*runs), "node1")) == runs


def test_a_report_of_another_node_is_not_used() -> None:
    assert history_of_report(report(small(1), node_name="node2"), "node1") == ()


def test_a_report_of_an_earlier_version_has_none() -> None:
    assert history_of_report(b'{"nodeName": "node1", "evidence": {"runID": "1"}}', "node1") == ()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"nodeName": "node1", "evidence": {"history": "x"}}',
        b'{"nodeName": "node1", "evidence": {"history": [{}]}}',
        report(*[small(number) for number in range(12)]),
    ],
)
def test_malformed_reports_are_rejected(text: bytes) -> None:
    with pytest.raises(ValidationError):
        history_of_report(text, "node1")
