"""The frame of an evidence document in a container log: one header line, one line of JSON, one end line.

    memdiag-evidence v1 runID=<id> lengthBytes=<n> sha256=<hex>
    {...}
    memdiag-evidence end

Other lines of the runner may precede and follow. The termination message identifies the right frame: a line that only
looks like a header does not contain its hash. The hash proves that a document is complete, not who wrote it.
"""

import hashlib

from memdiag_api.evidence import TerminationMessage
from memdiag_api.limits import MAX_DOCUMENT_BYTES

HEADER_WORD = b"memdiag-evidence v1 "
END_LINE = b"memdiag-evidence end"

MAX_LOG_BYTES = MAX_DOCUMENT_BYTES + 64 * 1024
"""Size of the log that a reader needs: the document, its frame, and what the runner wrote before it."""


class FramingError(ValueError):
    """A log does not contain the document that the termination message announced; the message says what is wrong."""


def frame(document: bytes, run_id: str) -> bytes:
    """Return `document` in its frame, as written to standard output.

    Raises ValueError unless it is one line of ASCII of at most MAX_DOCUMENT_BYTES and `run_id` is one printable word.
    """
    if not document.isascii() or b"\n" in document or b"\r" in document:
        raise ValueError("a document must be one line of ASCII: write its JSON with ensure_ascii and no indent")
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"the document has {len(document)} bytes, {MAX_DOCUMENT_BYTES} are allowed")
    if not run_id or not run_id.isascii() or not run_id.isprintable() or " " in run_id:
        raise ValueError(f"run ID {run_id!r} is not one printable word")
    header = _header(run_id, len(document), hashlib.sha256(document).hexdigest())
    return b"\n".join((header, document, END_LINE, b""))


def unframe(log: bytes, message: TerminationMessage) -> bytes:
    """Return the document in `log` that `message` announced, complete and unchanged.

    Raises FramingError with what is missing or differs.
    """
    if message.length_bytes == 0:
        raise FramingError("the runner's termination message announces no document")
    lines = log.split(b"\n")
    header = _header(message.run_id, message.length_bytes, message.sha256)
    places = [number for number, line in enumerate(lines) if line == header]
    if not places:
        raise FramingError(_why_missing(lines, message))
    if len(places) > 1:
        raise FramingError("the log contains the announced document more than once")
    document, *rest = lines[places[0] + 1 :] or [b""]
    if rest[:1] != [END_LINE]:
        raise FramingError(f"the log is cut off: it has {len(document)} of the document's {message.length_bytes} bytes")
    if len(document) != message.length_bytes:
        raise FramingError(f"the document has {len(document)} bytes, but {message.length_bytes} were announced")
    if hashlib.sha256(document).hexdigest() != message.sha256:
        raise FramingError("the document's SHA-256 is not the announced one")
    return document


def _header(run_id: str, length_bytes: int, sha256: str) -> bytes:
    return HEADER_WORD + f"runID={run_id} lengthBytes={length_bytes} sha256={sha256}".encode()


def _why_missing(lines: list[bytes], message: TerminationMessage) -> str:
    headers = [line for line in lines if line.startswith(HEADER_WORD)]
    if not headers:
        return "the log contains no document"
    if not any(f"runID={message.run_id} ".encode() in header for header in headers):
        return f"the log contains a document, but not one of run {message.run_id}"
    return "the log contains a document of this run, but not the one that the termination message announced"
