"""Reads from the API server what a decision needs: everything about one diagnosis, or the whole fleet's work list."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.errors import ClusterError, NotFoundError
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide import naming
from memdiag_operator.decide.objects import Diagnosis, Node, Pod
from memdiag_operator.decide.reconcile import is_settled, runners_to_read
from memdiag_operator.decide.snapshot import Fleet, RunnerOutput, Snapshot
from memdiag_operator.decide.target import target_nodes


def gather(kubernetes: KubernetesClient, config: OperatorConfig, name: str, now: datetime) -> Snapshot | None:
    """The diagnosis `name` and what bears on it, without the fleet; None when it does not exist (any more)."""
    try:
        diagnosis = kubernetes.read_diagnosis(name)
    except NotFoundError:
        return None
    uid = diagnosis.metadata.uid
    labelled = kubernetes.list_pods(
        config.runner.namespace, f"{naming.RUNNER_SELECTOR},{naming.DIAGNOSIS_UID_LABEL}={uid}"
    )
    snapshot = Snapshot(
        diagnosis=diagnosis,
        nodes=_nodes(kubernetes, diagnosis),
        # A label is anyone's word: an owner reference takes the right to delete the owner, or a controller's.
        pods=tuple(pod for pod in labelled if pod.metadata.is_owned_by(uid)),
    )
    outputs = {pod.metadata.name: _runner_output(kubernetes, pod) for pod in runners_to_read(snapshot, config, now)}
    return replace(snapshot, outputs=outputs)


def gather_fleet(kubernetes: KubernetesClient, config: OperatorConfig) -> Fleet:
    """Everyone who holds or wants a slot."""
    pods = kubernetes.list_pods(config.runner.namespace, naming.RUNNER_SELECTOR)
    return Fleet(pods=pods, diagnoses=kubernetes.list_diagnoses())


def unsettled_names(fleet: Fleet) -> Sequence[str]:
    """The diagnoses that something is still to be done for: an unfinished run, a time to live, a pod to remove."""
    with_pods = {owner.uid for pod in fleet.pods for owner in pod.metadata.owner_references}
    return [
        diagnosis.metadata.name
        for diagnosis in fleet.diagnoses
        if not is_settled(diagnosis) or diagnosis.metadata.uid in with_pods
    ]


def _nodes(kubernetes: KubernetesClient, diagnosis: Diagnosis) -> dict[str, Node]:
    if diagnosis.is_finished:
        return {}
    nodes: dict[str, Node] = {}
    for name in target_nodes(diagnosis.spec):
        try:
            nodes[name] = kubernetes.read_node(name)
        except NotFoundError:
            continue
    return nodes


def _runner_output(kubernetes: KubernetesClient, pod: Pod) -> RunnerOutput:
    # The node that the API server has bound the pod to, whatever anyone's document says.
    node_name = pod.spec.node_name
    try:
        log = kubernetes.read_log(pod.metadata.namespace, pod.metadata.name)
    except ClusterError as error:
        return RunnerOutput(log=None, log_error=str(error))
    node_pods = kubernetes.list_pods_on_node(node_name) if node_name else ()
    return RunnerOutput(log=log, node_pods=node_pods)
