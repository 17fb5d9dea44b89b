"""Results are taken from a runner that delivers as it should, and from no other."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from memdiag_api.conditions import Reason
from memdiag_api.evidence import Evidence, RunnerError, TerminationMessage, VerdictKind
from memdiag_api.framing import frame
from memdiag_operator.kube.objects import Pod
from memdiag_operator.results.receive import Delivery, ResultInvalidError, RunnerOutput, check_document, receive
from support.evidence import evidence_with
from support.kubernetes_objects import (
    CONFIG,
    NODE,
    NOW,
    RUN,
    ago,
    delivered,
    pod,
    terminated,
    termination_message,
    timestamp,
)

EVIDENCE = evidence_with(run_id=RUN)
DOCUMENT: dict[str, Any] = EVIDENCE.to_json_object()


def finished(message: str = "", *, exit_code: int = 0, reason: str = "", **fields: Any) -> Pod:
    phase = "Succeeded" if exit_code == 0 else "Failed"
    return pod(phase=phase, state=terminated(message, exit_code=exit_code, reason=reason), **fields)


def received(runner: Pod, log: bytes | None = b"", error: str = "") -> Delivery | None:
    output = RunnerOutput(log=log, log_error=error)
    return receive(runner, output, run=RUN, node_name=NODE, now=NOW, grace=CONFIG.grace)


def failure(error: RunnerError, text: str, run: str = RUN) -> str:
    return TerminationMessage(run_id=run, error=error, error_message=text).model_dump_json(
        by_alias=True, exclude_none=True
    )


def test_what_was_delivered_is_received() -> None:
    message, log = delivered(EVIDENCE)
    assert received(finished(message), log) == Delivery(Reason.COMPLETED, "", EVIDENCE)


def test_a_result_that_the_deadline_cut_short_is_kept() -> None:
    message, log = delivered(EVIDENCE)
    runner = pod(phase="Failed", reason="DeadlineExceeded", state=terminated(message))
    delivery = received(runner, log)
    assert delivery
    assert delivery.reason is Reason.DEADLINE_EXCEEDED
    assert delivery.evidence == EVIDENCE


@pytest.mark.parametrize(
    ("runner", "log", "reason", "message"),
    [
        pytest.param(
            finished(failure(RunnerError.KERNEL_UNSUPPORTED, "no BTF: build it in"), exit_code=3),
            b"",
            Reason.KERNEL_UNSUPPORTED,
            "the runner on node node1 reported: no BTF: build it in",
            id="the kernel lacks something",
        ),
        pytest.param(
            finished(failure(RunnerError.INTERNAL, "ValueError: \x1b[31mred at 0xffff888012345678"), exit_code=1),
            b"",
            Reason.RUNNER_FAILED,
            r"reported: ValueError: \[31mred at \[address\]$",
            id="the runner met a fault",
        ),
        pytest.param(
            finished(exit_code=137, reason="OOMKilled"),
            b"",
            Reason.RUNNER_OOM_KILLED,
            "killed at its memory limit: raise runner.memory",
            id="out of memory",
        ),
        pytest.param(
            finished(exit_code=1),
            b"Traceback\n  File x\nImportError: no bcc\n",
            Reason.RUNNER_FAILED,
            r"without a result \(exit code 1\): Traceback \| File x \| ImportError: no bcc",
            id="crash without a word",
        ),
        pytest.param(
            finished(exit_code=0), None, Reason.RUNNER_FAILED, "exit code 0", id="nothing said, log unreadable"
        ),
        pytest.param(
            pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."),
            b"",
            Reason.RUNNER_EVICTED,
            "evicted from node node1: The node was low on resource: memory.",
            id="evicted by the kubelet",
        ),
        pytest.param(
            pod(phase="Failed", reason="OutOfmemory", message="Node didn't have enough resource: memory"),
            b"",
            Reason.UNSCHEDULABLE,
            "node node1 rejected the runner: OutOfmemory: Node didn't have enough",
            id="turned away by the kubelet",
        ),
        pytest.param(
            pod(phase="Failed", reason="DeadlineExceeded", state=terminated(exit_code=137)),
            b"",
            Reason.DEADLINE_EXCEEDED,
            "stopped at its deadline",
            id="deadline",
        ),
        pytest.param(
            finished(failure(RunnerError.INTERNAL, "x", run="other"), exit_code=1),
            b"",
            Reason.RESULT_INVALID,
            "is from run 'other'",
            id="termination message of another run",
        ),
        pytest.param(
            finished('{"runID": "' + RUN),
            b"",
            Reason.RESULT_INVALID,
            "termination message is malformed",
            id="cut words",
        ),
        pytest.param(
            finished("panic: \x1b[2J"),
            b"",
            Reason.RESULT_INVALID,
            "malformed",
            id="another program's termination message",
        ),
        pytest.param(
            finished(delivered(EVIDENCE)[0]), b"", Reason.RESULT_INVALID, "contains no document", id="empty log"
        ),
        pytest.param(
            finished(delivered(EVIDENCE)[0]),
            delivered(EVIDENCE)[1][:2000],
            Reason.RESULT_INVALID,
            r"the log is cut off.*\(not verified\) says PinnedByUnreadSocket",
            id="cut log",
        ),
    ],
)
def test_every_other_end_has_its_reason(runner: Pod, log: bytes | None, reason: Reason, message: str) -> None:
    delivery = received(runner, log)
    assert delivery
    assert delivery.evidence is None
    assert delivery.reason is reason
    assert re.search(message, delivery.message), delivery.message


def test_an_unreadable_log_is_waited_for_and_then_given_up() -> None:
    message, _ = delivered(EVIDENCE)
    just = pod(phase="Succeeded", state=terminated(message, finished=59), age=100)
    long_ago = pod(phase="Succeeded", state=terminated(message, finished=61), age=100)
    assert received(just, None, "connection refused") is None
    given_up = received(long_ago, None, "connection refused")
    assert given_up
    assert given_up.reason is Reason.RESULT_INVALID
    assert "cannot be read: connection refused" in given_up.message
    assert "PinnedByUnreadSocket" in given_up.message


@pytest.mark.fault("node's clock an hour behind or ahead, and its log unreadable", reason="ResultInvalid")
@pytest.mark.parametrize("skew_seconds", [-3600, 0, 3600])
def test_the_wait_for_a_log_goes_by_the_api_servers_clock(skew_seconds: float) -> None:
    """A runner that worked for 60 s, 5 s after its pod was created, as a node with a wrong clock reports it."""

    def after(end_seconds: float) -> Pod:
        started, ended = ago(60 + end_seconds - skew_seconds), ago(end_seconds - skew_seconds)
        state = terminated(delivered(EVIDENCE)[0])
        state["terminated"] |= {"startedAt": timestamp(started), "finishedAt": timestamp(ended)}
        return pod(phase="Succeeded", state=state, age=65 + end_seconds)

    assert received(after(10), None, "connection refused") is None
    given_up = received(after(61), None, "connection refused")
    assert given_up
    assert given_up.reason is Reason.RESULT_INVALID


# --- documents that a hostile node may have written -------------------------------------------------------------------


def check(document: bytes) -> Evidence:
    """Check a document whose frame and termination message are as they should be: only its content can be wrong."""
    message = TerminationMessage.model_validate_json(termination_message(document, RUN))
    return check_document(frame(document, RUN), message, RUN, NODE)


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(json.dumps(DOCUMENT))
    change(document)
    return json.dumps(document).encode()


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another run": lambda d: d.update(runID="other"),
    "another node": lambda d: d["host"].update(nodeName="node2"),
    "unknown field": lambda d: d.update(extra=1),
    "unknown field deep inside": lambda d: d["holders"][0]["owners"][0].update(token="x"),
    "missing field": lambda d: d.pop("verdict"),
    "number as text": lambda d: d["host"].update(cpus="2"),
    "text as number": lambda d: d.update(runID=7),
    "float as count": lambda d: d["host"].update(cpus=2.5),
    "bool as count": lambda d: d["host"].update(cpus=True),
    "negative size": lambda d: d["host"].update(memTotalBytes=-1),
    "size beyond int64": lambda d: d["host"].update(memTotalBytes=2**63),
    "huge integer": lambda d: d["host"].update(memTotalBytes=10**400),
    "share above one": lambda d: d["stacks"][0]["heldBy"][0].update(share=1.01),
    "not a number": lambda d: d["stacks"][0].update(growthBytesPerSecond=float("nan")),
    "infinite": lambda d: d["stacks"][0].update(growthBytesPerSecond=float("inf")),
    "endless list": lambda d: d.update(holders=d["holders"] * 257),
    "endless text": lambda d: d["verdict"].update(sentence="x" * 1025),
    "unknown verdict": lambda d: d["verdict"].update(kind="Perhaps"),
    "verdict on a holder that is not there": lambda d: d["verdict"].update(holder=1),
    "verdict on a stack that is not there": lambda d: d["verdict"].update(stack=99),
    "stack held by a holder that is not there": lambda d: d["stacks"][0]["heldBy"][0].update(holder=5),
    "holder filled by a stack that is not there": lambda d: d["holders"][0]["filledBy"][0].update(stack=5),
    "another schema": lambda d: d.update(schemaVersion=2),
    "a list instead": lambda d: d.update(host=[]),
    "null instead": lambda d: d.update(host=None),
    "date that is none": lambda d: d["window"].update(startTime="yesterday"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_document_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(ResultInvalidError):
        check(changed(change))


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"a":' * 40_000 + b"}" * 40_000, id="deep nesting"),
        pytest.param(b"[" * 200_000, id="open brackets"),
        pytest.param(b'{"runID":"\\ud800"}', id="lone surrogate"),
        pytest.param(b"{" + b'"a":1,' * 30_000 + b'"a":1}', id="many keys"),
    ],
)
def test_text_that_is_not_a_document_is_rejected(document: bytes) -> None:
    with pytest.raises(ResultInvalidError):
        check(document)


def test_a_longer_name_of_a_process_than_the_kernel_has_is_cut() -> None:
    def rename(document: dict[str, Any]) -> None:
        document["holders"][0]["owners"][0]["comm"] = "x" * 200

    (owner,) = check(changed(rename)).holders[0].owners
    assert owner.comm == "x" * 15 + "…"


def test_control_characters_and_kernel_addresses_are_removed() -> None:
    def poison(document: dict[str, Any]) -> None:
        owner = document["holders"][0]["owners"][0]
        owner["comm"] = "\x1b]0;owned\x07sh"
        owner["commandLine"] = "a\u202eb\nc"
        document["stacks"][0]["frames"][0] = "0xffffffff81000000"
        document["notes"] = ["skb at ffff888012345678"]

    evidence = check(changed(poison))
    owner = evidence.holders[0].owners[0]
    assert (owner.comm, owner.command_line) == ("]0;ownedsh", "abc")
    assert evidence.stacks[0].frames[0] == "[address]"
    assert evidence.notes == ["skb at [address]"]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in paths(part, (*path, key)))]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=300)
    | st.sampled_from(["\x1b[31m", "ffff888012345678", "2026-01-01T00:00:00Z", -(2**63) - 1, 2**64, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(("host", "kernelRelease"), "\xa0", False)
@given(st.sampled_from(paths(DOCUMENT)[1:]), JSON_VALUES, st.booleans())
def test_a_mutated_document_is_refused_or_safe(place: tuple[Any, ...], value: Any, drop: bool) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    part = document
    for key in place[:-1]:
        part = part[key]
    if drop:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    try:
        evidence = check(json.dumps(document).encode())
    except ResultInvalidError:
        return
    text = json.dumps(evidence.to_json_object(), ensure_ascii=False)
    assert text.isprintable()
    assert not re.search(r"(?<![0-9a-f])ffff[0-9a-f]{12}(?![0-9a-f])", text, re.IGNORECASE)
    assert evidence.run_id == RUN
    assert evidence.host.node_name == NODE
    assert isinstance(evidence.verdict.kind, VerdictKind)
