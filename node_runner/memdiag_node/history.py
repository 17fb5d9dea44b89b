"""Summaries of earlier runs: read from a file or from the environment, and which of them can be compared with."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from memdiag_api import limits
from memdiag_api.document import first_fault
from memdiag_api.evidence import Evidence
from memdiag_api.history import HISTORY_VARIABLE, RunSummary, latest_first, thinned

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_FILE_RUNS = 1000
MAX_AGE = timedelta(days=30)
"""Older runs say nothing about what grows today."""

_RUNS = TypeAdapter(Annotated[list[RunSummary], Field(max_length=MAX_FILE_RUNS)])


class HistoryError(ValueError):
    """A text cannot be read as a history. The message says why."""


def read_history(path: Path) -> list[RunSummary]:
    """Read a file: a JSON list of summaries, or the whole document of an earlier run, which has its own history.

    Raises HistoryError if it is too large or malformed, OSError if it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES + 1)
    if len(text) > MAX_FILE_BYTES:
        raise HistoryError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    try:
        return parse_history(text)
    except HistoryError as error:
        raise HistoryError(f"{path}: {error}") from error


def parse_history(text: bytes) -> list[RunSummary]:
    """Parse a JSON list of summaries, or a document. Raises HistoryError if it is neither."""
    try:
        if text.lstrip().startswith(b"{"):
            document = Evidence.model_validate_json(text, strict=True)
            return [*([document.summary] if document.summary else []), *document.history]
        return _RUNS.validate_json(text, strict=True)
    except ValidationError as error:
        raise HistoryError(f"neither a list of run summaries nor a document of a run ({first_fault(error)})") from error


def history_of_variable(value: str) -> tuple[list[RunSummary], str]:
    """Parse the value of MEMDIAG_HISTORY. Return the summaries and a note: empty, or why they are not used."""
    text = value.encode(errors="replace")
    if not text:
        return [], ""
    if len(text) > limits.MAX_HISTORY_BYTES:
        return [], f"earlier runs were not compared: {HISTORY_VARIABLE} has more than {limits.MAX_HISTORY_BYTES} bytes"
    try:
        return parse_history(text), ""
    except HistoryError as error:
        return [], f"earlier runs were not compared: {HISTORY_VARIABLE} is malformed: {error}"


def comparable(runs: Iterable[RunSummary], *, boot_id: str, now: datetime) -> list[RunSummary]:
    """Return the runs of this boot that ended before `now`, latest first, at most MAX_HISTORY_RUNS of them.

    The earliest of the last 30 days and the latest are kept, and an even choice in between.
    """
    boot_id = boot_id[: limits.MAX_SUMMARY_TEXT]
    same = [one for one in runs if one.boot_id == boot_id and now - MAX_AGE <= one.end_time < now]
    return thinned(latest_first(same), limits.MAX_HISTORY_RUNS)
