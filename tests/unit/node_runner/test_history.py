"""Summaries of earlier runs as they reach the runner: from files, from the environment, of any boot and age."""

import json
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from memdiag_api.history import RunSummary, thinned
from memdiag_api.limits import MAX_HISTORY_BYTES, MAX_HISTORY_RUNS
from memdiag_node import cli
from memdiag_node.history import HistoryError, comparable, history_of_variable, parse_history, read_history
from support.evidence import evidence_with
from support.measurements import START


def run(number: int, *, boot_id: str = "b", age: timedelta | None = None) -> RunSummary:
    """A run so many days ago."""
    return RunSummary(
        run_id=f"run-{number}",
        end_time=START - (timedelta(days=number) if age is None else age),
        boot_id=boot_id,
        mem_total_bytes=1 << 39,
        alloc_page_bytes=1 << 30,
    )


def listed(*runs: RunSummary) -> bytes:
    return json.dumps([one.to_json_object() for one in runs]).encode()


def test_a_list_of_summaries_is_read() -> None:
    assert parse_history(listed(run(1), run(2))) == [run(1), run(2)]


def test_a_document_of_an_earlier_run_has_its_own_history() -> None:
    evidence = evidence_with().model_copy(update={"summary": run(1), "history": [run(2), run(3)]})
    assert parse_history(json.dumps(evidence.to_json_object()).encode()) == [run(1), run(2), run(3)]


def test_a_document_of_version_0_1_0_has_none() -> None:
    assert parse_history(json.dumps(evidence_with().to_json_object()).encode()) == []


MALFORMED = {
    "no JSON": b"history",
    "another type": b"7",
    "an empty text": b"",
    "an unknown field": listed(run(1)).replace(b"runID", b"runId"),
    "a negative size": listed(run(1)).replace(b"1073741824", b"-1"),
    "a size in words": listed(run(1)).replace(b"1073741824", b'"1073741824"'),
    "a time without a zone": listed(run(1)).replace(b"Z", b""),
    "another document": b'{"kind": "Pod"}',
    "too many": listed(*[run(1)] * 1001),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_anything_else_is_rejected_with_a_reason(name: str, tmp_path: Path) -> None:
    file = tmp_path / "history.json"
    file.write_bytes(MALFORMED[name])
    with pytest.raises(
        HistoryError, match=r"history\.json: neither a list of run summaries nor a document of a run \("
    ):
        read_history(file)


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(HistoryError, match="has more than 4194304 bytes"):
        read_history(file)


def test_the_variable_is_read_or_a_note_says_why_not() -> None:
    assert history_of_variable("") == ([], "")
    assert history_of_variable(listed(run(1)).decode()) == ([run(1)], "")
    runs, note = history_of_variable("[{}]")
    assert (runs, note.startswith("earlier runs were not compared: MEMDIAG_HISTORY is malformed: ")) == ([], True)
    runs, note = history_of_variable(" " * (MAX_HISTORY_BYTES + 1))
    assert (runs, note) == ([], "earlier runs were not compared: MEMDIAG_HISTORY has more than 24576 bytes")
    runs, note = history_of_variable("\udc80")
    assert (runs, bool(note)) == ([], True)


def test_only_earlier_runs_of_the_same_boot_and_of_this_month_are_compared() -> None:
    runs = [run(3), run(1), run(2, boot_id="other"), run(31), run(4, age=timedelta()), run(5, age=timedelta(days=-1))]
    assert comparable(runs, boot_id="b", now=START) == [run(1), run(3)]


def test_a_run_that_is_given_twice_counts_once_and_runs_by_hand_have_one_name() -> None:
    by_hand = [run(1).model_copy(update={"run_id": "by-hand"}), run(2).model_copy(update={"run_id": "by-hand"})]
    assert comparable([*by_hand, *by_hand], boot_id="b", now=START) == by_hand


def test_of_many_runs_the_first_the_last_and_an_even_choice_are_kept() -> None:
    every_hour = [run(hour, age=timedelta(hours=hour)) for hour in range(1, 200)]
    kept = comparable(every_hour, boot_id="b", now=START)
    assert len(kept) == MAX_HISTORY_RUNS
    assert (kept[0], kept[-1]) == (every_hour[0], every_hour[-1])
    gaps = [(later.end_time - earlier.end_time).total_seconds() for later, earlier in pairwise(kept)]
    assert max(gaps) <= 3 * min(gaps)


def test_frequent_runs_keep_a_long_time_of_history() -> None:
    """A run every five minutes, each with the history of the one before, for three days."""
    kept: list[RunSummary] = []
    for number in range(3 * 288):
        now = START + timedelta(minutes=5 * number)
        kept = comparable(kept, boot_id="b", now=now)
        kept = [run(number).model_copy(update={"end_time": now}), *kept]
    ages = [(kept[0].end_time - one.end_time).total_seconds() / 3600 for one in kept]
    assert ages[-1] == pytest.approx(71.9, abs=0.1)
    assert max(after - before for before, after in pairwise(ages)) < 36


@pytest.mark.parametrize(("limit", "left"), [(0, []), (1, [1]), (2, [1, 4]), (3, [1, 3, 4]), (9, [1, 2, 3, 4])])
def test_thinning_keeps_the_ends(limit: int, left: list[int]) -> None:
    assert [one.run_id for one in thinned([run(number) for number in (1, 2, 3, 4)], limit)] == [
        f"run-{number}" for number in left
    ]


def test_a_file_that_is_not_there_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--history", str(tmp_path / "missing"), "--quiet"])
    assert ended.value.code == 2
    assert "error: --history: " in capsys.readouterr().err
