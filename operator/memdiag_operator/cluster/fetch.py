"""Reads what a decision needs to know: a snapshot of one diagnosis, and then everything that the decision requests.

Most comes from what the watches have delivered. The API server is asked only for nodes, for what a finished runner
left, and for pods that the cache lacks although the status says that they run.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from memdiag_api.diagnosis import Target
from memdiag_api.history import RunSummary
from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import ClusterError, NotFoundError, OversizedError
from memdiag_operator.decide.snapshot import Candidates, Needs, Snapshot
from memdiag_operator.decide.stored_reports import StoredReport, newest_of_node, stored_bytes, unfinished_runs
from memdiag_operator.kube.labels import equality_selector
from memdiag_operator.kube.objects import Diagnosis, Event, Node, Pod
from memdiag_operator.results.receive import RunnerOutput

logger = logging.getLogger(__name__)

# A parsed document may take 10 MiB; storing some results leads to the next reconcile, which finds the others.
RESULTS_AT_ONCE = 4
HISTORIES_SECONDS = 3.0
"""After this long no further report of a former run is read."""
# After this long no further log is read: what has been read is decided on first.
LOGS_SECONDS = 20.0


def read_snapshot(cluster: Cluster, name: str) -> Snapshot | None:
    """The diagnosis `name` and its runner pods from the cache; None if there is no such diagnosis."""
    stored = cluster.cache.diagnoses.get(name)
    if stored is None:
        return None
    pods = _pods_of(cluster, stored)
    draft = cluster.cache.diagnoses.draft(stored)
    if draft is None:
        return Snapshot(diagnosis=stored, pods=pods)
    return Snapshot(diagnosis=stored.model_copy(update={"status": draft}), pods=pods, stored=stored.status)


def reread(cluster: Cluster, name: str) -> None:
    """Read the diagnosis `name` again, because a write has shown that the cached one is outdated."""
    diagnoses = cluster.cache.diagnoses
    known = diagnoses.get(name)
    try:
        diagnoses.put(cluster.kubernetes.read_diagnosis(name))
    except NotFoundError:
        if known:
            diagnoses.drop(name, known.metadata.uid)


def fetch(cluster: Cluster, needs: Needs, snapshot_age_seconds: float) -> Snapshot:
    """The snapshot of `needs` with what it lacks, except permission and allotment, which are not read from the cluster.

    `snapshot_age_seconds`: time since the snapshot was read; a node is fresh if it was read after that.
    Raises ClusterError if the API server does not respond.
    """
    snapshot = needs.snapshot
    if needs.candidates:
        snapshot = replace(snapshot, candidates=_candidates(cluster, needs.candidates))
    if needs.pods:
        for name in needs.pods:
            _read_pod(cluster, name)
        pods = _pods_of(cluster, snapshot.diagnosis)
        absent = frozenset(needs.pods).difference(pod.metadata.name for pod in pods)
        snapshot = replace(snapshot, pods=pods, absent_pods=snapshot.absent_pods | absent)
    if needs.nodes or needs.fresh_nodes:
        known = {name: _node(cluster, name, max_age) for name, max_age in needs.nodes.items()}
        fresh = {name: _node(cluster, name, snapshot_age_seconds) for name in needs.fresh_nodes}
        snapshot = replace(
            snapshot, nodes={**snapshot.nodes, **known, **fresh}, fresh_nodes=snapshot.fresh_nodes.union(fresh)
        )
    if needs.histories:
        snapshot = replace(snapshot, histories={**snapshot.histories, **_histories(cluster, needs.histories)})
    if needs.events or needs.outputs:
        snapshot = replace(
            snapshot,
            events={pod.metadata.name: _events(cluster.kubernetes, pod) for pod in needs.events},
            outputs=_runner_outputs(cluster, needs.outputs),
            report_room_bytes=_report_room_bytes(cluster) if needs.outputs else snapshot.report_room_bytes,
        )
    return snapshot


def _pods_of(cluster: Cluster, diagnosis: Diagnosis) -> tuple[Pod, ...]:
    """The runner pods of `diagnosis`.

    Anyone may set a label; setting an owner reference requires the right to delete the owner, or a controller's rights.
    """
    return tuple(pod for pod in cluster.cache.pods.all() if pod.metadata.is_owned_by(diagnosis.metadata.uid))


def _read_pod(cluster: Cluster, name: str) -> None:
    if cluster.cache.pods.get(name):
        return
    try:
        cluster.cache.pods.put(cluster.kubernetes.read_pod(cluster.runner_namespace, name))
    except NotFoundError:
        return


def _candidates(cluster: Cluster, target: Target) -> Candidates:
    if target.node_selector:
        nodes = cluster.kubernetes.list_nodes(equality_selector(target.node_selector.match_labels))
        for node in nodes[: target.max_nodes]:  # usually those that are then chosen: the list is sorted by name
            cluster.cache.nodes.put(node)
        return Candidates(nodes=nodes)
    pod = target.pod_ref
    return Candidates(pod=cluster.kubernetes.find_pod(pod.namespace, pod.name) if pod else None)


def _node(cluster: Cluster, name: str, max_age_seconds: float) -> Node | None:
    nodes = cluster.cache.nodes
    if known := nodes.get(name, max_age_seconds):
        return known
    try:
        node = cluster.kubernetes.read_node(name)
    except NotFoundError:
        nodes.drop(name)
        return None
    nodes.put(node)
    return node


def _histories(cluster: Cluster, node_names: Sequence[str]) -> dict[str, tuple[RunSummary, ...]]:
    """The earlier runs of nodes that get a runner now, from their newest reports.

    A node's runner starts without them if they cannot be read, or not in time: they only explain more.
    """
    end_at = time.monotonic() + HISTORIES_SECONDS
    try:
        if not cluster.cache.reports.is_complete:
            cluster.refill_reports()
    except ClusterError as error:
        logger.info("runners start without earlier runs: %s", error)
        return {}
    reports = cluster.cache.reports.all()
    return {name: _history(cluster, newest_of_node(reports, name), name, end_at) for name in node_names}


def _history(
    cluster: Cluster, reports: Sequence[StoredReport], node_name: str, end_at: float
) -> tuple[RunSummary, ...]:
    for report in reports:
        if time.monotonic() > end_at:
            break
        try:
            return cluster.kubernetes.read_history(report.name, node_name)
        except NotFoundError:
            continue  # deleted with its diagnosis
        except ClusterError as error:
            logger.info("the runner on node %s starts without earlier runs: %s", node_name, error)
            break
    return ()


def _report_room_bytes(cluster: Cluster) -> int:
    """What the budget leaves for reports of unfinished runs, which take precedence over those of other runs."""
    used = stored_bytes(cluster.cache.reports.all(), unfinished_runs(cluster.cache.diagnoses.claims()))
    return max(0, cluster.config.limits.stored_reports_bytes - used)


def _events(kubernetes: KubernetesClient, pod: Pod) -> tuple[Event, ...]:
    try:
        return kubernetes.list_pod_events(pod.metadata)
    except ClusterError as error:
        # Events only explain: the run ends with the same reason without them.
        logger.info("cannot read the events of pod %s: %s", pod.metadata.name, error)
        return ()


def _runner_outputs(cluster: Cluster, ended: Sequence[Pod]) -> dict[str, RunnerOutput]:
    """What some of the `ended` runners left. Those whose log could not be read before come last, behind all others."""
    outputs: dict[str, RunnerOutput] = {}
    end_at = time.monotonic() + LOGS_SECONDS
    for pod in sorted(ended, key=lambda pod: cluster.cache.has_failed_log(pod.metadata.name)):
        output = outputs[pod.metadata.name] = _runner_output(cluster.kubernetes, pod)
        cluster.cache.note_log(pod.metadata.name, failed=output.log is None)
        if time.monotonic() > end_at or sum(one.log is not None for one in outputs.values()) >= RESULTS_AT_ONCE:
            break
    return outputs


def _runner_output(kubernetes: KubernetesClient, pod: Pod) -> RunnerOutput:
    # The node that the API server has bound the pod to, never the one that a document names.
    node_name = pod.spec.node_name
    try:
        log = kubernetes.read_log(pod.metadata.namespace, pod.metadata.name)
    except ClusterError as error:
        return RunnerOutput(log=None, log_error=str(error))
    try:
        node_pods = kubernetes.list_pods_on_node(node_name) if node_name else ()
    except OversizedError as error:
        # A node writes the status of its pods. Any other failure is the API server's, and is retried.
        return RunnerOutput(log=None, log_error=str(error))
    return RunnerOutput(log=log, node_pods=node_pods)
