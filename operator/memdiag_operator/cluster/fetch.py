"""What a decision needs to know: everything about one diagnosis, or the whole fleet's work list.

It comes from what the watches have delivered. The API server is asked for the rest: nodes, what a finished runner left,
and pods that the cache lacks although the status says that they run.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from memdiag_api.conditions import Reason
from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.errors import ClusterError, NotFoundError, OversizedError
from memdiag_operator.cluster.store import Cache
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.fleet import Fleet
from memdiag_operator.decide.reconcile import nodes_to_read, runners_to_read, slow_starters, starts_anew
from memdiag_operator.decide.snapshot import RunnerOutput, Snapshot
from memdiag_operator.decide.stored_reports import stored_bytes, unfinished_runs
from memdiag_operator.decide.target import run_states, spec_fault
from memdiag_operator.kube import naming
from memdiag_operator.kube.labels import equality_selector
from memdiag_operator.kube.objects import Diagnosis, Event, InvalidSpec, Node, Pod

logger = logging.getLogger(__name__)

# A parsed document may take 10 MiB; storing some results leads to the next look, which finds the others.
RESULTS_AT_ONCE = 4
# After this long no further log is begun: what is there is decided on first.
LOGS_SECONDS = 20.0
ANY_AGE_SECONDS = float("inf")


def refill(kubernetes: KubernetesClient, cache: Cache, config: OperatorConfig) -> None:
    """Fill `cache` by whole lists. Pods come last: none that a diagnosis tells of may be missing."""
    cache.diagnoses.replace(kubernetes.list_diagnoses())
    refill_pods(kubernetes, cache, config)


def refill_pods(kubernetes: KubernetesClient, cache: Cache, config: OperatorConfig) -> None:
    """Fill the runner pods of `cache` by a whole list."""
    cache.pods.replace(kubernetes.list_pods(config.runner.namespace, naming.RUNNER_SELECTOR))


def refill_reports(kubernetes: KubernetesClient, cache: Cache) -> None:
    """Fill the list of reports of `cache`, without what they say."""
    cache.reports.replace(kubernetes.list_reports())


def reread(kubernetes: KubernetesClient, cache: Cache, name: str) -> None:
    """Read the diagnosis `name` anew, because a write has shown that the cached one is not the latest."""
    known = cache.diagnoses.get(name)
    try:
        cache.diagnoses.put(kubernetes.read_diagnosis(name))
    except NotFoundError:
        if known:
            cache.diagnoses.drop(name, known.metadata.uid)


def gather(
    kubernetes: KubernetesClient,
    cache: Cache,
    config: OperatorConfig,
    name: str,
    now: datetime,
    *,
    limit_reached: str = "",
) -> Snapshot | None:
    """The diagnosis `name` and what bears on it, without the fleet; None when it does not exist (any more).

    `limit_reached`: why it may not begin a run, which then needs no nodes.
    """
    stored = cache.diagnoses.get(name)
    if stored is None:
        return None
    if limit_reached and starts_anew(stored):
        pods = _pods(kubernetes, cache, config, stored)
        return Snapshot(diagnosis=stored, pods=pods, limit_reached=limit_reached)
    draft = cache.diagnoses.draft(stored)
    if draft is None:
        return gather_about(kubernetes, cache, config, stored, now)
    diagnosis = stored.model_copy(update={"status": draft})
    return replace(gather_about(kubernetes, cache, config, diagnosis, now), stored=stored.status)


def gather_about(
    kubernetes: KubernetesClient, cache: Cache, config: OperatorConfig, diagnosis: Diagnosis, now: datetime
) -> Snapshot:
    """`diagnosis` and what bears on it, without the fleet."""
    pods = _pods(kubernetes, cache, config, diagnosis)
    if starts_anew(diagnosis):
        return _with_candidates(kubernetes, cache, Snapshot(diagnosis=diagnosis, pods=pods))
    nodes = _nodes(kubernetes, cache, config, diagnosis, pods)
    snapshot = Snapshot(diagnosis=diagnosis, nodes=nodes, pods=pods)
    slow = slow_starters(snapshot, config, now)
    snapshot = replace(snapshot, events={pod.metadata.name: _events(kubernetes, pod) for pod in slow})
    ended = runners_to_read(snapshot, config, now)
    if not ended:
        return snapshot
    outputs = _runner_outputs(kubernetes, cache, ended)
    return replace(snapshot, outputs=outputs, report_room_bytes=_report_room_bytes(cache, config))


def _report_room_bytes(cache: Cache, config: OperatorConfig) -> int:
    """What the budget leaves for reports of unfinished runs: those of others give way to them."""
    used = stored_bytes(cache.reports.all(), unfinished_runs(cache.diagnoses.claims()))
    return max(0, config.limits.stored_reports_bytes - used)


def _with_candidates(kubernetes: KubernetesClient, cache: Cache, snapshot: Snapshot) -> Snapshot:
    """`snapshot` with what the nodes of a run that begins are chosen from."""
    spec = snapshot.diagnosis.spec
    if isinstance(spec, InvalidSpec) or spec_fault(spec):
        return snapshot
    selector, pod = spec.target.node_selector, spec.target.pod_ref
    if selector:
        selected = kubernetes.list_nodes(equality_selector(selector.match_labels))
        for node in selected[: spec.target.max_nodes]:  # mostly those that are then chosen: they come by name
            cache.nodes.put(node)
        return replace(snapshot, selected=selected)
    return replace(snapshot, target_pod=kubernetes.find_pod(pod.namespace, pod.name)) if pod else snapshot


def with_fresh_nodes(
    kubernetes: KubernetesClient, cache: Cache, snapshot: Snapshot, names: Sequence[str], max_age_seconds: float
) -> Snapshot:
    """`snapshot` with the nodes `names` as they are now: the pod is marked with their UID and boot ID."""
    fresh = {name: _node(kubernetes, cache, name, max_age_seconds) for name in names}
    known = {name: node for name, node in snapshot.nodes.items() if name not in fresh}
    return replace(snapshot, nodes=known | fresh)


def gather_fleet(cache: Cache) -> Fleet:
    """Everyone who holds or wants a slot."""
    return Fleet(pods=cache.pods.all(), claims=cache.diagnoses.claims())


def unsettled_names(fleet: Fleet) -> Sequence[str]:
    """The diagnoses that something is still to be done for: an unfinished run, a time to live, a pod to remove."""
    owners = fleet.owners
    return [claim.name for claim in fleet.claims if not claim.is_settled or claim.uid in owners]


def _pods(kubernetes: KubernetesClient, cache: Cache, config: OperatorConfig, diagnosis: Diagnosis) -> tuple[Pod, ...]:
    """The runner pods of `diagnosis`.

    A label is anyone's word: an owner reference takes the right to delete the owner, or a controller's.
    """
    meta, status = diagnosis.metadata, diagnosis.status
    running = [name for name, state in run_states(diagnosis).items() if state.reason == Reason.RUNNING]
    for name in (naming.child_name(meta.name, meta.uid, status.run_id or "", node_name) for node_name in running):
        if cache.pods.get(name) is None:
            # A run ends when its pod has vanished: the API server must say so, not a watch that is behind.
            _reread_pod(kubernetes, cache, config.runner.namespace, name)
    return tuple(pod for pod in cache.pods.all() if pod.metadata.is_owned_by(meta.uid))


def _reread_pod(kubernetes: KubernetesClient, cache: Cache, namespace: str, name: str) -> None:
    try:
        cache.pods.put(kubernetes.read_pod(namespace, name))
    except NotFoundError:
        return


def _nodes(
    kubernetes: KubernetesClient,
    cache: Cache,
    config: OperatorConfig,
    diagnosis: Diagnosis,
    pods: tuple[Pod, ...],
) -> dict[str, Node | None]:
    """The nodes that matter now: of recent readings where a runner is, of any where one is waited for."""
    max_ages_seconds = {
        pod.metadata.annotations.get(naming.NODE_ANNOTATION): _max_node_age_seconds(pod, config) for pod in pods
    }
    return {
        name: _node(kubernetes, cache, name, max_ages_seconds.get(name, ANY_AGE_SECONDS))
        for name in nodes_to_read(diagnosis, pods, config)
    }


def _max_node_age_seconds(pod: Pod, config: OperatorConfig) -> float:
    """How old a reading of the runner's node may be.

    When a runner ended without a message, its node is read again: a reboot, if that was it, is as new. When it left
    one, nothing depends on how its node is now, and it may be in line with a hundred others to be read.
    """
    if not pod.is_terminal:
        return config.sweep.idle_seconds
    terminated = pod.main_container and pod.main_container.state.terminated
    return ANY_AGE_SECONDS if terminated and terminated.message else 0


def _node(kubernetes: KubernetesClient, cache: Cache, name: str, max_age_seconds: float) -> Node | None:
    if known := cache.nodes.get(name, max_age_seconds):
        return known
    try:
        node = kubernetes.read_node(name)
    except NotFoundError:
        cache.nodes.drop(name)
        return None
    cache.nodes.put(node)
    return node


def _events(kubernetes: KubernetesClient, pod: Pod) -> tuple[Event, ...]:
    try:
        return kubernetes.list_pod_events(pod.metadata)
    except ClusterError as error:
        # They only explain: a run ends with its reason all the same.
        logger.info("events of pod %s cannot be read: %s", pod.metadata.name, error)
        return ()


def _runner_outputs(kubernetes: KubernetesClient, cache: Cache, ended: Sequence[Pod]) -> dict[str, RunnerOutput]:
    """What some of the `ended` runners left. Those whose log could not be read before come last: others must not wait
    for them."""
    outputs: dict[str, RunnerOutput] = {}
    end_at = time.monotonic() + LOGS_SECONDS
    for pod in sorted(ended, key=lambda pod: cache.has_failed_log(pod.metadata.name)):
        output = outputs[pod.metadata.name] = _runner_output(kubernetes, pod)
        cache.note_log(pod.metadata.name, failed=output.log is None)
        if time.monotonic() > end_at or sum(one.log is not None for one in outputs.values()) >= RESULTS_AT_ONCE:
            break
    return outputs


def _runner_output(kubernetes: KubernetesClient, pod: Pod) -> RunnerOutput:
    # The node that the API server has bound the pod to, whatever anyone's document says.
    node_name = pod.spec.node_name
    try:
        log = kubernetes.read_log(pod.metadata.namespace, pod.metadata.name)
    except ClusterError as error:
        return RunnerOutput(log=None, log_error=str(error))
    try:
        node_pods = kubernetes.list_pods_on_node(node_name) if node_name else ()
    except OversizedError as error:
        # A node writes the status of its pods. Any other failure is the API server's, and is waited for.
        return RunnerOutput(log=None, log_error=str(error))
    return RunnerOutput(log=log, node_pods=node_pods)
