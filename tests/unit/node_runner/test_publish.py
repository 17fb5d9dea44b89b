"""The output of the runner: the frame in the log, and a termination message that the kubelet keeps complete."""

import hashlib
import io
from pathlib import Path

import pytest

from memdiag_api.evidence import Evidence, RunnerError, TerminationMessage
from memdiag_api.framing import unframe
from memdiag_node.publish import Output, publish, publish_failure
from support.evidence import evidence_with

KUBELET_KEEPS_BYTES = 4096


def test_a_framed_document_is_found_by_its_termination_message(tmp_path: Path) -> None:
    evidence, log, message_file = evidence_with(holders=3, stacks=2), io.BytesIO(), tmp_path / "termination-log"
    publish(evidence, Output.FRAMED, log, message_file)
    message = TerminationMessage.model_validate_json(message_file.read_bytes())
    document = unframe(log.getvalue(), message)
    assert message.sha256 == hashlib.sha256(document).hexdigest()
    assert Evidence.model_validate_json(document) == evidence
    assert message.suspect == evidence.verdict.sentence


@pytest.mark.parametrize("text", ["x" * 10_000, "\U0001f4a5" * 10_000, "\x1b\x00\n" * 10_000, "\ud800" * 10_000])
def test_no_failure_makes_the_message_longer_than_the_kubelet_keeps(tmp_path: Path, text: str) -> None:
    message_file = tmp_path / "termination-log"
    publish_failure("r" * 253, RunnerError.INTERNAL, text, message_file)
    written = message_file.read_bytes()
    assert len(written) < KUBELET_KEEPS_BYTES
    assert TerminationMessage.model_validate_json(written).error is RunnerError.INTERNAL


def test_a_failure_says_what_failed_on_one_line(tmp_path: Path) -> None:
    message_file = tmp_path / "termination-log"
    publish_failure(
        "run-1", RunnerError.KERNEL_UNSUPPORTED, "nothing can be measured:\n  BTF: not there.", message_file
    )
    message = TerminationMessage.model_validate_json(message_file.read_bytes())
    assert message.error_message == "nothing can be measured: BTF: not there."


def test_without_a_pod_there_is_no_termination_message() -> None:
    stream = io.BytesIO()
    publish(evidence_with(), Output.JSON, stream)
    assert Evidence.model_validate_json(stream.getvalue()) == evidence_with()


def test_folded_output_has_a_line_for_each_stack() -> None:
    stream = io.BytesIO()
    publish(evidence_with(stacks=2), Output.FOLDED, stream)
    lines = stream.getvalue().decode().splitlines()
    assert [int(line.rpartition(" ")[2]) for line in lines] == [300 << 20, 299 << 20]
    assert lines[0].startswith("AllocPage;function_19_of_the_network_stack+0x13;")
