"""A document is read from a log unchanged, or not at all."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.evidence import TerminationMessage
from memdiag_api.framing import FramingError, frame, unframe
from memdiag_api.limits import MAX_DOCUMENT_BYTES

DOCUMENT = b'{"runID":"r1","figures":[1,2,3]}'


def announced(document: bytes = DOCUMENT, run_id: str = "r1") -> TerminationMessage:
    return TerminationMessage(run_id=run_id, length_bytes=len(document), sha256=hashlib.sha256(document).hexdigest())


def test_a_frame_is_three_lines() -> None:
    digest = hashlib.sha256(DOCUMENT).hexdigest()
    header = f"memdiag-evidence v1 runID=r1 lengthBytes={len(DOCUMENT)} sha256={digest}\n".encode()
    assert frame(DOCUMENT, "r1") == header + DOCUMENT + b"\nmemdiag-evidence end\n"


def test_lines_around_the_frame_do_not_matter() -> None:
    log = b"loading\nattached\n" + frame(DOCUMENT, "r1") + b"bye\n"
    assert unframe(log, announced()) == DOCUMENT


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_document_is_read_unchanged_with_any_text_around_it(before: bytes, after: bytes) -> None:
    assert unframe(before + b"\n" + frame(DOCUMENT, "r1") + after, announced()) == DOCUMENT


@given(st.integers(min_value=0, max_value=len(frame(DOCUMENT, "r1")) - 2))
def test_a_log_cut_off_anywhere_has_no_document(length: int) -> None:
    with pytest.raises(FramingError):
        unframe(frame(DOCUMENT, "r1")[:length], announced())


@given(st.integers(min_value=0, max_value=len(frame(DOCUMENT, "r1")) - 2), st.integers(min_value=1, max_value=255))
def test_a_log_with_a_changed_byte_has_no_document(place: int, change: int) -> None:
    log = bytearray(frame(DOCUMENT, "r1"))
    log[place] ^= change
    with pytest.raises(FramingError):
        unframe(bytes(log), announced())


@pytest.mark.parametrize(
    ("log", "message", "reason"),
    [
        pytest.param(b"", announced(), "the log contains no document", id="empty log"),
        pytest.param(b"killed\n", announced(), "the log contains no document", id="no frame"),
        pytest.param(frame(DOCUMENT, "r0"), announced(), "not one of run r1", id="another run"),
        pytest.param(
            frame(b"{}", "r1"), announced(), "not the one that the termination message", id="another document"
        ),
        pytest.param(frame(DOCUMENT, "r1") * 2, announced(), "more than once", id="two frames"),
        pytest.param(frame(DOCUMENT, "r1")[:120], announced(), "the log is cut off: it has 4 of", id="cut"),
        pytest.param(
            frame(DOCUMENT, "r1"), TerminationMessage(run_id="r1"), "announces no document", id="nothing announced"
        ),
    ],
)
def test_the_error_says_what_is_wrong(log: bytes, message: TerminationMessage, reason: str) -> None:
    with pytest.raises(FramingError, match=reason):
        unframe(log, message)


def test_a_forged_header_before_the_true_frame_is_ignored() -> None:
    forged = frame(b'{"forged":true}', "r1")
    assert unframe(forged + frame(DOCUMENT, "r1"), announced()) == DOCUMENT


@pytest.mark.parametrize(
    ("document", "run_id", "reason"),
    [
        (b'{\n"a":1}', "r1", "one line of ASCII"),
        (b'{\r"a":1}', "r1", "one line of ASCII"),
        ("{'ä':1}".encode(), "r1", "one line of ASCII"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "r1", "are allowed"),
        (b"{}", "", "run ID"),
        (b"{}", "r 1", "run ID"),
        (b"{}", "r1\n", "run ID"),
    ],
)
def test_what_could_not_be_read_back_is_not_framed(document: bytes, run_id: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        frame(document, run_id)
