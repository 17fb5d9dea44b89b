"""The state of a runner pod: what the API server reports about it, in terms of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from memdiag_api.conditions import Reason
from memdiag_operator.config import GraceSettings
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Event, Node, Pod, PodPhase, WaitingState
from memdiag_operator.status.progress import COLLECTING, STARTING, Progress, tracing

_PULL_FAILURES = frozenset({"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"})
_PULL_IMPOSSIBLE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_SEEN_ENDS = frozenset({"Completed", "OOMKilled"})
_START_FAILURES = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
# If a start takes longer, the pod's events are read: the status of a pod does not show the reason.
SLOW_START_SECONDS = 10
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Starting:
    """Not running yet."""

    message: str
    progress: Progress = STARTING


@dataclass(frozen=True, slots=True)
class Working:
    """Measuring."""

    message: str
    progress: Progress = COLLECTING


@dataclass(frozen=True, slots=True)
class Finished:
    """It has ended or was stopped: what it left can be read."""


@dataclass(frozen=True, slots=True)
class Broken:
    """It will never deliver a result."""

    reason: Reason
    message: str


RunnerState = Starting | Working | Finished | Broken


@dataclass(frozen=True, slots=True)
class Window:
    """The time that a runner measures."""

    seconds: int
    """0 if its checks measure once and do not wait."""
    tick_seconds: int = 1
    """Time between two progress reports."""


def runner_state(
    pod: Pod,
    node: Node | None,
    *,
    node_name: str,
    window: Window,
    now: datetime,
    grace: GraceSettings,
    events: Sequence[Event] = (),
) -> RunnerState:
    """The state of `pod`, the runner for `node_name`, at `now`; `node` is None if it no longer exists.

    `events`: those of the pod, if it is slow to start.
    """
    if pod.is_terminal and not (_still_running(pod) and node):
        gone = "" if _has_ended_by_itself(pod) else _gone(pod, node, node_name)
        return Broken(Reason.NODE_LOST, gone) if gone else Finished()
    lost = _lost_node(pod, node, node_name, now, grace)
    if lost:
        return Broken(Reason.NODE_LOST, lost)
    if pod.metadata.deletion_timestamp and not pod.is_terminal:
        return Broken(Reason.RUNNER_EVICTED, _who_deletes(pod))
    if pod.status.phase is PodPhase.PENDING:
        return _pending(pod, node_name, now, grace, events)
    return _running(pod, node_name, window, now)


def _has_ended_by_itself(pod: Pod) -> bool:
    """Whether a kubelet saw the end. After a reboot, it finds a dead container without a termination message."""
    terminated = pod.main_container.state.terminated if pod.main_container else None
    return terminated is not None and (terminated.message != "" or terminated.reason in _SEEN_ENDS)


def _still_running(pod: Pod) -> bool:
    return bool(pod.main_container and pod.main_container.state.running)


def _lost_node(pod: Pod, node: Node | None, node_name: str, now: datetime, grace: GraceSettings) -> str:
    # A reboot does not affect a pod that waits: the kubelet starts it afterwards.
    if gone := _gone(pod, node, node_name, reboot_matters=pod.status.phase is PodPhase.RUNNING):
        return gone
    ready = node.ready if node else None
    if pod.spec.node_name and ready and ready.status != "True" and ready.last_transition_time:
        since = now - ready.last_transition_time
        if since > timedelta(seconds=grace.node_not_ready_seconds):
            return (
                f"node {node_name} has not been Ready for {since.total_seconds():.0f} s "
                f"({ready.reason}: {ready.message}); its runner cannot be reached"
            )
    return ""


def _gone(pod: Pod, node: Node | None, node_name: str, *, reboot_matters: bool = True) -> str:
    """What happened to the node that the pod was created for; empty if `node` is that node, in the same boot."""
    if node is None:
        return f"node {node_name} was removed from the cluster while its runner pod was on it"
    marks, boot_id = pod.metadata.annotations, node.status.node_info.boot_id
    if marks.get(naming.NODE_UID_ANNOTATION, node.metadata.uid) != node.metadata.uid:
        return f"node {node_name} was replaced by another node of the same name while its runner pod was on it"
    if reboot_matters and marks.get(naming.BOOT_ID_ANNOTATION, boot_id) != boot_id:
        return f"node {node_name} was rebooted while its runner pod was on it"
    return ""


def _who_deletes(pod: Pod) -> str:
    disruption = pod.condition("DisruptionTarget")
    if disruption and disruption.status == "True":
        return f"runner pod {pod.metadata.name} is being evicted: {disruption.reason}: {disruption.message}"
    return f"runner pod {pod.metadata.name} is being deleted by someone other than the operator"


def starts_slowly(pod: Pod, now: datetime, grace: GraceSettings) -> bool:
    """Whether it has a node, but the kubelet has not started its container yet."""
    scheduled = pod.condition("PodScheduled")
    if (
        pod.status.phase is not PodPhase.PENDING
        or not pod.spec.node_name
        or (scheduled and scheduled.status == "False")
    ):
        return False
    waiting = pod.main_container.state.waiting if pod.main_container else None
    if waiting and waiting.reason in _PULL_IMPOSSIBLE | _PULL_FAILURES | _START_FAILURES:
        return False
    return _since_scheduled(pod, now) > timedelta(seconds=min(SLOW_START_SECONDS, grace.container_start_seconds))


def _since_scheduled(pod: Pod, now: datetime) -> timedelta:
    scheduled = pod.condition("PodScheduled")
    return now - ((scheduled and scheduled.last_transition_time) or pod.metadata.creation_timestamp or now)


def _pending(pod: Pod, node_name: str, now: datetime, grace: GraceSettings, events: Sequence[Event]) -> RunnerState:
    scheduled = pod.condition("PodScheduled")
    if scheduled and scheduled.status == "False":
        created = pod.metadata.creation_timestamp or now
        message = f"runner pod {pod.metadata.name} cannot be scheduled on node {node_name}: {scheduled.message}"
        if now - created > timedelta(seconds=grace.unschedulable_seconds):
            return Broken(Reason.UNSCHEDULABLE, message)
        return Starting(message)
    since = _since_scheduled(pod, now)
    waiting = pod.main_container.state.waiting if pod.main_container else None
    if waiting and waiting.reason in _PULL_IMPOSSIBLE | _PULL_FAILURES | _START_FAILURES:
        return _container_waiting(waiting, node_name, since, grace)
    said = ": ".join(part for part in (waiting.reason if waiting else "", _latest_event(events)) if part)
    if pod.spec.node_name and since > timedelta(seconds=grace.container_start_seconds):
        text = f"the runner's container was not started within {grace.container_start_seconds} s on node {node_name}"
        return Broken(Reason.RUNNER_FAILED, f"{text}: {said or 'the kubelet reported no reason'}")
    return Starting(f"the runner is starting on node {node_name}" + (f" ({said})" if said else ""))


def _latest_event(events: Sequence[Event]) -> str:
    """The latest warning, otherwise the latest event, which says what is still in progress."""
    warnings = [event for event in events if event.type == "Warning"]
    latest = max(warnings or events, key=lambda event: event.seen_at or _LONG_AGO, default=None)
    return f"{latest.reason}: {latest.message}" if latest else ""


def _container_waiting(waiting: WaitingState, node_name: str, since: timedelta, grace: GraceSettings) -> RunnerState:
    said = f"{waiting.reason}: {waiting.message}" if waiting.message else waiting.reason
    if waiting.reason in _PULL_IMPOSSIBLE | _PULL_FAILURES:
        message = (
            f"node {node_name} cannot pull the runner's image: {said}. Check runner.image and "
            "runner.imagePullSecrets in the operator's configuration, and that the node can reach the registry"
        )
        over = waiting.reason in _PULL_IMPOSSIBLE or since > timedelta(seconds=grace.image_pull_seconds)
        return Broken(Reason.IMAGE_PULL, message) if over else Starting(message)
    message = f"the runner's container cannot be started on node {node_name}: {said}"
    over = since > timedelta(seconds=grace.container_start_seconds)
    return Broken(Reason.RUNNER_FAILED, message) if over else Starting(message)


def _running(pod: Pod, node_name: str, window: Window, now: datetime) -> Working:
    running = pod.main_container.state.running if pod.main_container else None
    if running is None or running.started_at is None or not window.seconds:
        return Working(f"the runner is running on node {node_name}")
    # The start time is from the node's clock: if that is ahead, the elapsed time must not be negative.
    elapsed = max(0, int((now - running.started_at).total_seconds()))
    if elapsed >= window.seconds:
        return Working(f"tracing on {node_name} finished after {window.seconds} s; waiting for the result")
    shown = elapsed // window.tick_seconds * window.tick_seconds
    progress = tracing(shown, window.seconds)
    if window.tick_seconds >= window.seconds:
        return Working(f"tracing on {node_name} for {window.seconds} s", progress)
    return Working(f"tracing on {node_name}: {shown} s of {window.seconds} s", progress)
