"""What a finished runner delivered: its evidence, checked as input from a hostile node, or why there is none.

The termination message is in the pod's status, the document in the container's log. Only what passes every check is
used, and its origin is taken from the API server alone.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from memdiag_api.conditions import Reason
from memdiag_api.document import DocumentError, first_fault, read_document
from memdiag_api.evidence import Evidence, RunnerError, TerminationMessage
from memdiag_api.framing import FramingError, unframe
from memdiag_api.limits import MAX_SENTENCE
from memdiag_api.process_name import MAX_COMM_LENGTH
from memdiag_operator.config import GraceSettings
from memdiag_operator.kube.objects import Pod, TerminatedState
from memdiag_operator.results.sanitize import clean_json, clean_text, clip, clip_fields

LOG_TAIL_LINES = 3
LOG_TAIL_BYTES = 4096

_ERROR_REASONS = {
    RunnerError.KERNEL_UNSUPPORTED: Reason.KERNEL_UNSUPPORTED,
    RunnerError.INTERNAL: Reason.RUNNER_FAILED,
}
# The kubelet rejected the pod after the scheduler had placed it (kubernetes: pkg/kubelet/lifecycle/predicate.go).
_REJECTED_PREFIXES = ("OutOf", "NodeAffinity", "UnexpectedAdmissionError", "InsufficientEphemeralStorage")


# Shorter than in the model, which must read what former versions have stored.
_FIELD_LIMITS = {"comm": MAX_COMM_LENGTH}


class ResultInvalidError(ValueError):
    """A runner's result failed a check; the text says which."""


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    """What a finished runner left, and the pods of its node, to which the ids in it may belong."""

    log: bytes | None
    log_error: str = ""
    node_pods: tuple[Pod, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a runner ended, with its evidence if that passed the checks."""

    reason: Reason
    message: str
    evidence: Evidence | None = None


def receive(
    pod: Pod, output: RunnerOutput, *, run: str, node_name: str, now: datetime, grace: GraceSettings
) -> Delivery | None:
    """What the finished `pod` delivered for `node_name` in `run`; None while its log may still become readable."""
    terminated = pod.main_container.state.terminated if pod.main_container else None
    try:
        message = parse_termination_message(terminated.message if terminated else "", run)
        if message is None or message.error is not None or message.length_bytes == 0:
            return _without_document(pod, output, message, terminated, node_name)
        if output.log is None:
            return _without_log(pod, output, message, node_name=node_name, now=now, grace=grace)
        evidence = check_document(output.log, message, run, node_name)
    except ResultInvalidError as error:
        return Delivery(Reason.RESULT_INVALID, _clean(f"the result of node {node_name} was rejected: {error}"))
    if pod.status.reason == "DeadlineExceeded":
        text = f"the runner on node {node_name} was stopped at its deadline; what it had measured until then is kept"
        return Delivery(Reason.DEADLINE_EXCEEDED, text, evidence)
    return Delivery(Reason.COMPLETED, "", evidence)


def parse_termination_message(text: str, run: str) -> TerminationMessage | None:
    """The termination message `text` of the runner of `run`, made safe to show; None if there is none.

    Raises ResultInvalidError if it is malformed or from another run.
    """
    if not text.strip():
        return None
    try:
        message = TerminationMessage.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ResultInvalidError(f"its termination message is malformed ({first_fault(error)})") from error
    if message.run_id != run:
        raise ResultInvalidError(f"its termination message is from run {message.run_id!r}, not {run!r}")
    return TerminationMessage.model_validate(clean_json(message.to_json_object()))


def check_document(log: bytes, message: TerminationMessage, run: str, node_name: str) -> Evidence:
    """The evidence in `log`, complete, well formed, of this run and node, consistent in itself, and safe to publish.

    Raises ResultInvalidError, which repeats the verdict from the termination message.
    """
    try:
        evidence = read_document(unframe(log, message))
    except (FramingError, DocumentError) as error:
        raise ResultInvalidError(f"{error}. {_essence(message)}") from error
    if evidence.run_id != run:
        raise ResultInvalidError(f"its document is from run {evidence.run_id!r}, not {run!r}")
    if evidence.host.node_name != node_name:
        raise ResultInvalidError(f"its document is about node {evidence.host.node_name!r}")
    return Evidence.model_validate(clip_fields(clean_json(evidence.to_json_object()), _FIELD_LIMITS))


def _without_log(
    pod: Pod,
    output: RunnerOutput,
    message: TerminationMessage,
    *,
    node_name: str,
    now: datetime,
    grace: GraceSettings,
) -> Delivery | None:
    ended_at = _ended_at(pod, now)
    if ended_at and now - ended_at <= timedelta(seconds=grace.log_seconds):
        return None
    text = f"the log of node {node_name}'s runner cannot be read: {output.log_error}. {_essence(message)}"
    return Delivery(Reason.RESULT_INVALID, _clean(text))


def _ended_at(pod: Pod, now: datetime) -> datetime | None:
    """When the runner ended. Its timestamps are from the node's clock, which may be wrong; its duration is right."""
    terminated, created = pod.main_container and pod.main_container.state.terminated, pod.metadata.creation_timestamp
    if not terminated or not terminated.finished_at or not created:
        return None
    took = terminated.finished_at - (terminated.started_at or terminated.finished_at)
    # No runner runs for longer than its pod exists: a node that reports this is not waited for.
    by_duration = created + took if created + took <= now else created
    return terminated.finished_at if by_duration <= terminated.finished_at <= now else by_duration


def _without_document(
    pod: Pod,
    output: RunnerOutput,
    message: TerminationMessage | None,
    terminated: TerminatedState | None,
    node_name: str,
) -> Delivery:
    status = pod.status
    if message and message.error:
        text = f"the runner on node {node_name} reported: {message.error_message}"
        return Delivery(_ERROR_REASONS[message.error], _clean(text))
    if terminated and terminated.reason == "OOMKilled":
        text = (
            f"the runner on node {node_name} was killed at its memory limit: "
            "raise runner.memory in the operator's configuration"
        )
        return Delivery(Reason.RUNNER_OOM_KILLED, text)
    if status.reason == "DeadlineExceeded":
        return Delivery(Reason.DEADLINE_EXCEEDED, f"the runner on node {node_name} was stopped at its deadline")
    if status.reason.startswith(_REJECTED_PREFIXES):
        text = f"node {node_name} rejected the runner: {status.reason}: {status.message}"
        return Delivery(Reason.UNSCHEDULABLE, _clean(text))
    disruption = pod.condition("DisruptionTarget")
    if status.reason in ("Evicted", "Preempting", "Terminated", "NodeShutdown") or disruption:
        why = status.message or (disruption.message if disruption else "")
        return Delivery(Reason.RUNNER_EVICTED, _clean(f"the runner was evicted from node {node_name}: {why}"))
    return Delivery(Reason.RUNNER_FAILED, _clean(_post_mortem(terminated, output, status.message, node_name)))


def _post_mortem(terminated: TerminatedState | None, output: RunnerOutput, said: str, node_name: str) -> str:
    how = f"exit code {terminated.exit_code}" if terminated else "no exit code"
    tail = (output.log or b"")[-LOG_TAIL_BYTES:].decode(errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
    parts = [f"the runner on node {node_name} ended without a result ({how})", said, " | ".join(tail)]
    return ": ".join(part for part in parts if part)


def _essence(message: TerminationMessage) -> str:
    """The verdict in the termination message, which is known even without the document."""
    if message.verdict is None:
        return "Its termination message has no verdict."
    suspect = f", suspect {message.suspect}" if message.suspect else ""
    return f"Its termination message (not verified) says {message.verdict}{suspect}."


def _clean(text: str) -> str:
    return clip(clean_text(" ".join(text.split())), MAX_SENTENCE)
