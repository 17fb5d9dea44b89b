"""A log and termination message of a hostile node, through the whole decision: rejected, or published harmlessly.

`make fuzz` runs 10,000 mutations and prints the counts; MEMDIAG_FUZZ_EXAMPLES sets their number, which is small in the
ordinary run. The mutations are the same in every run. What is accepted is compared with what was sent: nothing may be
coerced, invented or moved, no name may come from the document, and the sizes that are promised must hold.
"""

import gzip
import json
import os
import re
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import NodeResult
from memdiag_api.evidence import Evidence
from memdiag_api.framing import END_LINE, MAX_LOG_BYTES, frame
from memdiag_api.limits import MAX_DOCUMENT_BYTES
from memdiag_api.report import MemoryDiagnosisReport
from memdiag_operator.decide.reconcile import reconcile
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.kube.objects import Pod
from memdiag_operator.results.receive import RunnerOutput
from memdiag_operator.results.sanitize import clean_json
from support.evidence import evidence_with
from support.kubernetes_objects import (
    CONFIG,
    NODE,
    NOW,
    RUN,
    diagnosis,
    node,
    pod,
    running_status,
    terminated,
    termination_message,
)

EXAMPLES = int(os.environ.get("MEMDIAG_FUZZ_EXAMPLES", "300"))
BYTE_SHARE = 4
"""One in this number of mutations is one of bytes, the others are of the document's values."""
FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
CPU_SECONDS = 5.0
MEMORY_BYTES = 64 << 20
MAX_STATUS_BYTES = 64 * 1024
MAX_REPORT_BYTES = 512 * 1024
"""The document and what the API server knows; etcd takes 1.5 MiB."""

DOCUMENT: dict[str, Any] = evidence_with(holders=3, stacks=2, findings=5, run_id=RUN).to_json_object()
STRANGER = "f" * 64
COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print how many documents came to which end, where that was asked for."""
    yield
    if "MEMDIAG_FUZZ_EXAMPLES" in os.environ:
        reported = ", ".join(f"{count} {end}" for end, count in sorted(COUNTS.items()))
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{COUNTS.total()} hostile documents: {reported}")


# --- the way of a result ----------------------------------------------------------------------------------------------


def published(message: str, log: bytes) -> tuple[NodeResult, dict[str, Any] | None]:
    """What this log and this termination message lead to: the node's result in the status, and its report, if any."""
    runner = pod(phase="Succeeded", state=terminated(message))
    neighbour = Pod.model_validate(
        {
            "metadata": {"name": "nginx", "namespace": "web", "uid": "uid-of-nginx"},
            "status": {"containerStatuses": [{"name": "app", "containerID": "containerd://" + "c" * 64}]},
        }
    )
    snapshot = Snapshot(
        diagnosis=diagnosis(status=running_status(result=NodeResult(node_name=NODE, reason="Running"))),
        nodes={NODE: node()},
        pods=(runner,),
        outputs={runner.metadata.name: RunnerOutput(log=log[:MAX_LOG_BYTES], node_pods=(runner, neighbour))},
    )
    plan = reconcile(snapshot, CONFIG, NOW)
    assert plan.status
    status = plan.status.to_json_object()
    safe(status, MAX_STATUS_BYTES)
    (result,) = plan.status.results
    assert result.node_name == NODE
    if not plan.reports:
        assert result.reason in (Reason.RESULT_INVALID, Reason.RUNNER_FAILED, Reason.KERNEL_UNSUPPORTED)
        assert result.verdict is None
        assert not result.top_holders
        return result, None
    (report,) = plan.reports
    safe(report, MAX_REPORT_BYTES)
    MemoryDiagnosisReport.model_validate(
        {key: value for key, value in report.items() if key not in ("apiVersion", "kind", "metadata")}, strict=False
    )
    assert report["nodeName"] == NODE
    assert report["runID"] == report["evidence"]["runID"] == RUN
    assert all(one["pod"] in ("nginx", runner.metadata.name) for one in report.get("containers", []))
    assert {one.pod for one in result.top_holders} | {one.pod for one in result.findings} <= {"", "nginx"}
    return result, report


def safe(document: dict[str, Any], limit_bytes: int) -> None:
    """Nothing that steers a terminal, nothing that helps to break a kernel, and not too much of it."""
    text = json.dumps(document, ensure_ascii=False)
    assert text.isprintable()
    assert not re.search(r"(?<![0-9a-f])ffff[0-9a-f]{12}(?![0-9a-f])", text, re.IGNORECASE)
    assert len(text.encode()) <= limit_bytes


def announced(document: bytes) -> tuple[str, bytes]:
    """A document whose frame and termination message are correct: only its content can be wrong."""
    return termination_message(document, RUN), raw_frame(document)


def raw_frame(document: bytes) -> bytes:
    """As `frame`, of anything."""
    header = frame(b"x" * 1, RUN).split(b"\n")[0]
    stated = json.loads(termination_message(document, RUN))
    header = re.sub(
        rb"lengthBytes=\S+ sha256=\S+", f"lengthBytes={len(document)} sha256={stated['sha256']}".encode(), header
    )
    return b"\n".join((header, document, END_LINE, b""))


def faithful(sent: Any, kept: Any, place: str = "") -> None:
    """`kept` says what `sent` says, and where it says more, `sent` did not say otherwise."""
    match sent:
        case dict():
            assert isinstance(kept, dict), place
            for key, value in sent.items():
                if value is not None and not place.endswith(".window"):  # times may be written in several ways
                    assert key in kept, f"{place}.{key}"
                    faithful(value, kept[key], f"{place}.{key}")
        case list():
            assert isinstance(kept, list), place
            assert len(sent) == len(kept), place
            for at, (one, other) in enumerate(zip(sent, kept, strict=True)):
                faithful(one, other, f"{place}[{at}]")
        case bool() | str():
            assert type(kept) is type(sent), place
            assert kept == sent, place
        case _:
            assert not isinstance(kept, bool | str), place
            assert kept == sent, place


# --- mutations --------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


PLACES = places(DOCUMENT)[1:]
EXTREMES: list[Any] = [
    *(0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**40, 1e308, -0.0, 0.5, 1.0000001),
    *(True, False, None, "", [], {}, "1", "true", "null", RUN, NODE, "node2", "another-run"),
    *("\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe", "a\nb\rc\x00d", "\ud800", "\u2028", "\xa0", "ffff888012345678"),
    *("x" * 257, "x" * 5000, "c" * 64, STRANGER, "uid-of-nginx", "kube-system", "../../etc/passwd", "<script>"),
    *("2026-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "PinnedByUnreadSocket", "NoLeak", "Socket", "PROCESS"),
]
VALUES = st.one_of(
    st.sampled_from(EXTREMES),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.recursive(
        st.sampled_from(EXTREMES),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    ),
)
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "drop", "swap", "repeat", "rename", "add"]),
        st.sampled_from(PLACES),
        st.sampled_from(PLACES),
        VALUES,
    ),
    min_size=1,
    max_size=4,
)
Mutation = tuple[str, tuple[Any, ...], tuple[Any, ...], Any]


def mutate(document: Any, mutation: Mutation) -> None:
    """Change `document` in place, if the place is still there."""
    how, place, other, value = mutation
    try:
        part, key = parent(document, place)
        match how:
            case "set":
                part[key] = value
            case "drop":
                del part[key]
            case "swap":
                elsewhere, its_key = parent(document, other)
                part[key], elsewhere[its_key] = elsewhere[its_key], part[key]
            case "repeat":
                part[key] = part[key] * 300 if isinstance(part[key], list) else [part[key]] * 3
            case "rename":
                part[f"{key}x"] = part.pop(key)
            case "add":
                part[key][str(value)[:40]] = value
    except (KeyError, IndexError, TypeError, AttributeError):
        return


def parent(document: Any, place: tuple[Any, ...]) -> tuple[Any, Any]:
    for key in place[:-1]:
        document = document[key]
    return document, place[-1]


@settings(FUZZ, max_examples=max(1, EXAMPLES - EXAMPLES // BYTE_SHARE))
@given(MUTATIONS)
def test_a_mutated_document_is_refused_or_published_as_it_was_sent(mutations: list[Mutation]) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    repeated = [one for one in mutations if one[0] == "repeat"]
    for mutation in mutations:
        if mutation not in repeated[1:]:  # lists of lists of lists: more than any log can hold
            mutate(document, mutation)
    try:
        text = json.dumps(document).encode()
    except (ValueError, RecursionError):  # a swap may have put a part into itself
        return
    if len(text) > MAX_DOCUMENT_BYTES:
        return
    result, report = published(*announced(text))
    COUNTS["refused" if report is None else "accepted"] += 1
    if report is not None:
        assert result.reason == Reason.COMPLETED
        faithful(clean_json(json.loads(text)), report["evidence"])


GOOD_MESSAGE, GOOD_LOG = announced(json.dumps(DOCUMENT).encode())
EDITS = st.lists(
    st.tuples(st.integers(0, len(GOOD_LOG)), st.integers(0, 200), st.binary(max_size=12), st.booleans()),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[int, int, bytes, bool]], *, of_message: bool) -> bytes:
    for at, cut, new, is_of_message in edits:
        if is_of_message == of_message:
            start = at % (len(data) + 1)
            data = data[:start] + new + data[start + cut :]
    return data


@settings(FUZZ, max_examples=max(1, EXAMPLES // BYTE_SHARE))
@given(EDITS)
def test_bytes_that_were_changed_on_the_way_are_noticed(edits: list[tuple[int, int, bytes, bool]]) -> None:
    message = edited(GOOD_MESSAGE.encode(), edits, of_message=True).decode(errors="replace")
    log = edited(GOOD_LOG, edits, of_message=False)
    _, report = published(message, log)
    COUNTS["refused" if report is None else "accepted"] += 1
    if report is not None:  # what is around the frame may say anything
        assert json.dumps(DOCUMENT).encode() in log
        faithful(DOCUMENT, report["evidence"])


# --- made by hand -----------------------------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], Any], template: dict[str, Any] = DOCUMENT) -> bytes:
    document = json.loads(json.dumps(template))
    change(document)
    return json.dumps(document).encode()


def in_every_text(poison: str) -> bytes:
    """A document in which each readable text is `poison`."""

    def change(document: dict[str, Any]) -> None:
        for holder in document["holders"]:
            holder["description"] = holder["unownedReason"] = poison
            for owner in holder["owners"]:
                owner["comm"], owner["commandLine"] = poison[:16], poison
            for name in ("localAddress", "remoteAddress", "state", "family", "protocol"):
                holder["socket"][name] = poison
        for stack in document["stacks"]:
            stack["frames"] = [poison] * 64
        for finding in document["findings"]:
            finding.update(sentence=poison, advice=poison, reasons=[poison] * 16, memoryClass=poison)
            finding["freedBy"] = {"action": poison}
            finding["owner"] = {"kind": "File", "name": poison, "comm": poison[:16], "containerID": poison}
        document["notes"] = [poison] * 32
        document["verdict"].update(sentence=poison, advice=poison, reasons=[poison] * 16)

    return changed(change)


def of_other_pods(document: dict[str, Any]) -> None:
    for owner in (*(one["owners"][0] for one in document["holders"]), *(one["owner"] for one in owned(document))):
        owner.update(containerID=STRANGER, podUID="uid-of-another-nodes-pod")


def owned(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in document["findings"] if "owner" in one]


def large(size: int) -> dict[str, Any]:
    found = evidence_with(holders=256, stacks=64, run_id=RUN).to_json_object()
    while len(json.dumps(found)) > size:
        found["holders"].pop()
        found["verdict"]["holder"] = 0
        for stack in found["stacks"]:
            stack["heldBy"] = []
    return found


DEEP = 60_000
REFUSED: dict[str, Callable[[], bytes]] = {
    "one space": lambda: b" ",
    "a number": lambda: b"7",
    "deep lists": lambda: b"[" * DEEP + b"]" * DEEP,
    "deep objects": lambda: b'{"a":' * (DEEP // 2) + b"1" + b"}" * (DEEP // 2),
    "depth inside a field": lambda: changed(lambda d: d.update(notes="@")).replace(b'"@"', b"[" * DEEP + b"]" * DEEP),
    "never closed": lambda: b'{"holders":[' + b"[" * DEEP,
    "invalid UTF-8": lambda: json.dumps(DOCUMENT).encode().replace(b"nginx", b"\xff\xfe\xc0\xaf"),
    "overlong UTF-8": lambda: json.dumps(DOCUMENT).encode().replace(b"nginx", b"\xe0\x80\xafx"),
    "UTF-16": lambda: json.dumps(DOCUMENT).encode("utf-16-le").replace(b"\n", b" "),
    "a byte order mark": lambda: b"\xef\xbb\xbf" + json.dumps(DOCUMENT).encode(),
    "lone surrogates": lambda: in_every_text("\ud800"),
    "NaN": lambda: changed(lambda d: d["holders"][0].update(stuckSeconds=float("nan"))),
    "Infinity": lambda: changed(lambda d: d["trace"].update(sliceSeconds=float("inf"))),
    "a number beyond all": lambda: changed(lambda d: d["host"].update(cpus="@")).replace(b'"@"', b"1" + b"0" * 50_000),
    "an exponent beyond all": lambda: changed(lambda d: d["trace"].update(sliceSeconds="@")).replace(b'"@"', b"1e999"),
    "size beyond int64": lambda: changed(lambda d: d["host"].update(memTotalBytes=2**63)),
    "negative size": lambda: changed(lambda d: d["holders"][0].update(pinnedBytes=-1)),
    "numbers as text": lambda: changed(lambda d: d["holders"][0].update(pinnedBytes="12")),
    "a list for a text": lambda: changed(lambda d: d["host"].update(kernelRelease=["6"])),
    "257 holders": lambda: changed(lambda d: d.update(holders=[{"kind": "Pipe", "pinnedBytes": 1}] * 257)),
    "100,000 empty lists": lambda: changed(lambda d: d.update(notes=[[]] * 60_000)),
    "10,000 unknown fields": lambda: changed(lambda d: d.update({f"f{n}": n for n in range(10_000)})),
    "one endless text": lambda: changed(lambda d: d["verdict"].update(sentence="x" * 200_000)),
    "one endless word of a stack": lambda: changed(lambda d: d["stacks"][0].update(frames=["x" * 100_000])),
    "another node's name": lambda: changed(lambda d: d["host"].update(nodeName="node2")),
    "another run": lambda: changed(lambda d: d.update(runID="another-run")),
    "duplicate keys, the last of another run": lambda: json.dumps(DOCUMENT).encode()[:-1] + b',"runID":"another-run"}',
    "gzip": lambda: gzip.compress(json.dumps(DOCUMENT).encode(), mtime=0).replace(b"\n", b" "),
    "a bomb of gzip": lambda: gzip.compress(b"[" * (200 << 20), compresslevel=9, mtime=0).replace(b"\n", b" ")[
        :200_000
    ],
    "a finding on a holder that is not there": lambda: changed(
        lambda d: d["findings"][0]["evidence"].update(holders=[200])
    ),
    "a finding on a stack that is not there": lambda: changed(
        lambda d: d["findings"][0]["evidence"].update(stacks=[200])
    ),
    "65 findings": lambda: changed(lambda d: d.update(findings=d["findings"][1:2] * 65)),
    "an answer that is none": lambda: changed(lambda d: d.update(leakDetected="Maybe")),
    "a verdict on a holder that is not there": lambda: changed(lambda d: d["verdict"].update(holder=200)),
    "a program instead": lambda: b"\x7fELF" + bytes(60_000).replace(b"\n", b" "),
}
PUBLISHED: dict[str, Callable[[], bytes]] = {
    "as it should be": lambda: json.dumps(DOCUMENT).encode(),
    "terminal escapes everywhere": lambda: in_every_text("\x1b[2J\x1b]0;owned\x07\x1b[31m" + "e" * 100),
    "bidirectional overrides everywhere": lambda: in_every_text("\u202e\u2066gnp.exe\u200b" * 6),
    "line breaks everywhere": lambda: in_every_text("a\nb\r\n\u2028\u2029\x85c" * 6),
    "kernel addresses everywhere": lambda: in_every_text("0xffff888012345678 ffffffff81000000"),
    "markup everywhere": lambda: in_every_text("<script>alert(1)</script>{{7*7}}$(id)`id`%s%n"),
    "the widest characters everywhere": lambda: in_every_text("\U0001f600" * 16),
    "the most findings, with the longest texts": lambda: changed(
        lambda d: d.update(
            findings=[{**d["findings"][1], "sentence": "\U0001f600" * 1024, "advice": "\U0001f600" * 1024}] * 10,
            holders=[],
            stacks=[],
            verdict={key: value for key, value in d["verdict"].items() if key not in ("holder", "stack")},
        )
    ),
    "containers of another node's pods": lambda: changed(of_other_pods),
    "duplicate keys, the last as it should be": lambda: b'{"runID":"another-run",' + json.dumps(DOCUMENT).encode()[1:],
    "as large as it may be": lambda: json.dumps(large(MAX_DOCUMENT_BYTES)).encode(),
}


@pytest.mark.fault("forged, malformed or poisoned document", reason="ResultInvalid")
@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_what_no_runner_would_write_is_refused(make: Callable[[], bytes], record_property: Any) -> None:
    document = make()
    result, report = bounded(lambda: published(*announced(document)))
    record_property("seen", result.reason)
    COUNTS["refused"] += 1
    assert report is None
    assert result.reason == Reason.RESULT_INVALID


@pytest.mark.parametrize("make", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_what_only_looks_bad_is_published_harmlessly(make: Callable[[], bytes]) -> None:
    document = make()
    result, report = bounded(lambda: published(*announced(document)))
    COUNTS["accepted"] += 1
    assert result.reason == Reason.COMPLETED, result.message
    assert report is not None
    if b"another-run" not in document:
        faithful(clean_json(json.loads(document)), report["evidence"])


LOGS: dict[str, Callable[[], bytes]] = {
    "nothing but header lines": lambda: (GOOD_LOG.split(b"\n")[0] + b"\n") * 1000,
    "the document twice": lambda: GOOD_LOG * 2,
    "no end": lambda: GOOD_LOG[: -len(END_LINE) - 2],
    "zeros": lambda: bytes(MAX_LOG_BYTES),
    "line breaks": lambda: b"\n" * MAX_LOG_BYTES,
    "carriage returns": lambda: GOOD_LOG.replace(b"\n", b"\r\n"),
    "pushed beyond what is read": lambda: b"x" * MAX_LOG_BYTES + GOOD_LOG,
}


@pytest.mark.parametrize("make", LOGS.values(), ids=LOGS.keys())
def test_a_log_without_the_announced_document_is_refused(make: Callable[[], bytes]) -> None:
    log = make()
    result, report = bounded(lambda: published(GOOD_MESSAGE, log))
    COUNTS["refused"] += 1
    assert report is None
    assert result.reason == Reason.RESULT_INVALID


WORDS: dict[str, str] = {
    "endless": "x" * 4096,
    "deep": "[" * 4096,
    "a length beyond all": GOOD_MESSAGE.replace(f'"lengthBytes":{len(json.dumps(DOCUMENT))}', '"lengthBytes":1e30'),
    "a negative length": GOOD_MESSAGE.replace('"lengthBytes":', '"lengthBytes":-'),
    "no hash": re.sub(r'"sha256":"\w+"', '"sha256":"0"', GOOD_MESSAGE),
    "another schema": GOOD_MESSAGE.replace('"schemaVersion":1', '"schemaVersion":2'),
    "another run": GOOD_MESSAGE.replace(RUN, "another-run"),
    "terminal escapes": "\x1b[2J\x1b]0;owned\x07",
    "an unknown field": GOOD_MESSAGE[:-1] + ',"node":"node2"}',
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_termination_messages_that_no_runner_would_write_are_rejected(words: str) -> None:
    assert words != GOOD_MESSAGE
    result, report = bounded(lambda: published(words, GOOD_LOG))
    COUNTS["refused"] += 1
    assert report is None
    assert result.reason == Reason.RESULT_INVALID


def bounded(act: Callable[[], tuple[NodeResult, dict[str, Any] | None]]) -> tuple[NodeResult, dict[str, Any] | None]:
    """Do it within a bound of CPU time and of memory."""
    tracemalloc.start()
    cpu = time.process_time()
    try:
        answer = act()
        assert time.process_time() - cpu < CPU_SECONDS
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()
    return answer


def test_the_document_that_everything_here_starts_from_is_a_whole_one() -> None:
    assert Evidence.model_validate_json(json.dumps(DOCUMENT), strict=True).to_json_object() == DOCUMENT
