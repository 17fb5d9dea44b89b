"""A result that cannot be published ends the runner with a message that says why."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.document import DocumentError
from memdiag_api.evidence import Evidence, RunnerError, TerminationMessage
from memdiag_node import cli
from support.evidence import evidence_with


@pytest.fixture(autouse=True)
def _signal_handlers_as_before() -> Iterator[None]:
    """The command line sets its own for the whole process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_document_that_the_operator_would_reject_is_reported_as_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    termination_log = tmp_path / "termination-log"
    termination_log.touch()

    def measured(*_: object, **__: object) -> Evidence:
        """A measurement needs root and a kernel; only its result matters here."""
        return evidence_with().model_copy(update={"run_id": "x" * 300})

    oom_score_adj = tmp_path / "oom_score_adj"
    monkeypatch.setattr(cli, "OOM_SCORE_ADJ", oom_score_adj)  # this process must not become the first to be killed
    monkeypatch.setattr(cli, "TERMINATION_LOG", termination_log)
    monkeypatch.setattr(cli, "measure", measured)
    with pytest.raises(DocumentError):
        cli.main(["--output", "framed", "--run-id", "run-1", "--quiet"])
    message = TerminationMessage.model_validate_json(termination_log.read_bytes())
    assert (message.error, message.length_bytes) == (RunnerError.INTERNAL, 0)
    assert "runID: String should have at most 253 characters" in message.error_message
