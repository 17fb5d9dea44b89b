"""The only output of the runner: the document in the requested format, and the termination message of the pod."""

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from memdiag_api import limits
from memdiag_api.evidence import Evidence, RunnerError, TerminationMessage
from memdiag_api.framing import frame
from memdiag_node.conclusion.document import encode, publishable
from memdiag_node.render.report import render_report
from memdiag_node.trace.stacks import to_folded

# The kubelet keeps 4096 bytes of a termination message, so it must be shorter.


class Output(StrEnum):
    """Formats of the result."""

    TEXT = "text"
    JSON = "json"
    FOLDED = "folded"
    FRAMED = "framed"


def publish(evidence: Evidence, output: Output, stream: BinaryIO, termination_log: Path | None = None) -> None:
    """Write `evidence` to `stream` and to the termination log of the pod, if any.

    A framed document is kept within its size limit, validated as the operator does, and wrapped by
    memdiag_api.framing. A pod delivers it in this form. Raises DocumentError if it cannot be made valid.
    """
    match output:
        case Output.TEXT:
            stream.write(render_report(evidence).encode())
        case Output.JSON:
            stream.write(encode(evidence) + b"\n")
        case Output.FOLDED:
            stream.write(to_folded(evidence.stacks, evidence.trace.object_classes if evidence.trace else ()).encode())
        case Output.FRAMED:
            document = publishable(evidence)
            _write_termination(termination_log, _delivered(evidence, document))
            stream.write(frame(document, evidence.run_id))
    stream.flush()


def publish_failure(run_id: str, error: RunnerError, message: str, termination_log: Path | None) -> None:
    """Report a run without a document in the termination log. The log of the pod has the details."""
    text = _bounded(message, limits.MAX_SENTENCE)
    _write_termination(termination_log, TerminationMessage(run_id=run_id, error=error, error_message=text))


def _bounded(text: str, limit_bytes: int) -> str:
    """Return `text` on one line of at most `limit_bytes` in UTF-8, without characters with long JSON escapes."""
    printable = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    return printable.encode(errors="replace")[:limit_bytes].decode(errors="ignore")


def _delivered(evidence: Evidence, document: bytes) -> TerminationMessage:
    return TerminationMessage(
        run_id=evidence.run_id,
        length_bytes=len(document),
        sha256=hashlib.sha256(document).hexdigest(),
        verdict=evidence.verdict.kind,
        suspect=_bounded(evidence.verdict.sentence, limits.MAX_SHORT_TEXT),
    )


def _write_termination(path: Path | None, message: TerminationMessage) -> None:
    if path is not None:
        path.write_text(message.model_dump_json(by_alias=True, exclude_none=True))
