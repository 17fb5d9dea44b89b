"""Removes what a diagnosis leaves if it is deleted without its children, as `kubectl delete --cascade=orphan` does.

Usually Kubernetes' garbage collector follows the owner references. It removes them from orphans, but the labels stay:
they have the UID of the diagnosis, which is never used again.
"""

import logging
from collections.abc import Iterable

from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import ConflictError, NotFoundError, UnreadableError
from memdiag_operator.cluster.store import Cache
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Pod

logger = logging.getLogger(__name__)


def orphans(cache: Cache) -> list[Pod]:
    """Runner pods whose diagnosis is not in the cache and that are not being deleted yet."""
    if not cache.is_complete:
        return []
    living = {claim.uid for claim in cache.diagnoses.claims()}
    return [
        pod
        for pod in cache.pods.all()
        if pod.metadata.labels.get(naming.DIAGNOSIS_UID_LABEL) not in living and not pod.metadata.deletion_timestamp
    ]


def remove_orphans(cluster: Cluster, deleted_uids: Iterable[str]) -> None:
    """Remove runner pods whose diagnosis no longer exists, and the reports of the diagnoses `deleted_uids`.

    Raises ClusterError if the API server does not respond.
    """
    for uid in deleted_uids:
        cluster.kubernetes.delete_reports(f"{naming.DIAGNOSIS_UID_LABEL}={uid}")
    for pod in orphans(cluster.cache):
        meta = pod.metadata
        if _is_gone(cluster.kubernetes, meta.annotations.get(naming.DIAGNOSIS_ANNOTATION, ""), _owner_uid(pod)):
            _remove(cluster, pod)


def _owner_uid(pod: Pod) -> str:
    return pod.metadata.labels.get(naming.DIAGNOSIS_UID_LABEL, "")


def _is_gone(kubernetes: KubernetesClient, name: str, uid: str) -> bool:
    """Whether the API server says so: the cache may be behind."""
    if not name:
        return True
    try:
        return kubernetes.read_diagnosis(name).metadata.uid != uid
    except NotFoundError:
        return True
    except UnreadableError:  # it exists, as stored by another version
        return False


def _remove(cluster: Cluster, pod: Pod) -> None:
    meta = pod.metadata
    logger.info("deleting runner pod %s: its diagnosis no longer exists", meta.name)
    try:
        cluster.kubernetes.delete_reports(f"{naming.DIAGNOSIS_UID_LABEL}={_owner_uid(pod)}")
        leaving = cluster.kubernetes.delete_pod(meta.namespace, meta.name, meta.uid, force=False)
    except (NotFoundError, ConflictError):
        leaving = None
    if leaving:
        cluster.cache.pods.put(leaving)
    else:
        cluster.cache.pods.drop(meta.name, meta.uid)
