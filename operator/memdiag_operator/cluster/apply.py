"""Carries out a plan, in an order that loses nothing if the operator is killed in between."""

import logging
from datetime import UTC, datetime
from typing import Any

from memdiag_api.diagnosis import API_VERSION, MemoryDiagnosis
from memdiag_operator.cluster.client import EVENT_NAMESPACE, KubernetesClient
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import (
    AlreadyExistsError,
    ClusterError,
    ConflictError,
    NotFoundError,
    RefusedError,
)
from memdiag_operator.cluster.store import Cache
from memdiag_operator.decide.mutation import mutations
from memdiag_operator.decide.plan import Plan, PodRemoval, ReportCleanup
from memdiag_operator.decide.runner_pod import STOP_DEADLINE_SECONDS
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.decide.stored_reports import runs_to_delete, stored_report, unfinished_runs
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import ObjectMeta, Pod
from memdiag_operator.status.events import Announcement

logger = logging.getLogger(__name__)

REPORTER = "memdiag-operator"
MAX_EVENT_MESSAGE = 1024  # pkg/apis/core/validation/events.go, NoteLengthLimit
ADMISSION_POLICY = "ValidatingAdmissionPolicy 'memdiag-runners'"
"""How the API server names manifests/base/node-runner/admission-policy.yaml when it rejects a pod."""


def apply(cluster: Cluster, snapshot: Snapshot, plan: Plan) -> dict[str, str]:
    """Carry out `plan`. Returns, by pod name, why a runner pod was not created, or not as it was sent.

    Responses of the API server go to the cache, so that the next decision sees them before a watch delivers them.
    Raises ConflictError if the diagnosis has changed since `snapshot`: then only reports have been written.
    """
    kubernetes, diagnoses, meta = cluster.kubernetes, cluster.cache.diagnoses, snapshot.diagnosis.metadata
    for manifest in plan.reports:
        _create_report(cluster, manifest)
    if plan.status:
        diagnoses.put(kubernetes.write_status(meta, plan.status))
    elif plan.confirm:
        kubernetes.confirm_version(meta)
    refusals = {
        manifest["metadata"]["name"]: refusal
        for manifest in plan.launches
        if (refusal := _launch(cluster, meta.uid, manifest))
    }
    for pod in plan.stops:
        _stop(cluster, pod)
    for pod in plan.removals:
        _remove(cluster, pod)
    if plan.report_cleanup:
        _clean_up_reports(cluster, plan.report_cleanup)
    run = plan.decided.run_id if plan.decided else snapshot.diagnosis.status.run_id
    for announcement in plan.announcements:
        _announce(cluster.kubernetes, meta, run or "", announcement)
    if plan.delete_diagnosis:
        kubernetes.delete_diagnosis(meta)
    if plan.draft:
        diagnoses.keep_draft(snapshot.diagnosis.model_copy(update={"status": plan.draft}))
    return refusals


def _create_report(cluster: Cluster, manifest: dict[str, Any]) -> None:
    try:
        cluster.kubernetes.create_report(manifest)
        made = ObjectMeta.model_validate(manifest["metadata"])
        cluster.cache.reports.put(stored_report(made.model_copy(update={"creation_timestamp": cluster.now()})))
    except AlreadyExistsError:
        # A previous operator has created it; the same run on the same node has the same evidence.
        logger.info("report %s already exists", manifest["metadata"]["name"])
    except RefusedError as error:
        # The status still has the most important part; retrying would not help.
        logger.error("report %s was rejected: %s", manifest["metadata"]["name"], error)  # noqa: TRY400 - not our fault


def delete_old_reports(cluster: Cluster) -> int:
    """Delete the reports of the oldest runs until the others fit into their budget. Returns the number of runs."""
    budget_bytes = cluster.config.limits.stored_reports_bytes
    unfinished = unfinished_runs(cluster.cache.diagnoses.claims())
    runs = list(runs_to_delete(cluster.cache.reports.all(), unfinished, budget_bytes))
    for run in runs:
        selector = f"{naming.DIAGNOSIS_UID_LABEL}={run.diagnosis_uid},{naming.RUN_ID_LABEL}={run.run_id}"
        cluster.kubernetes.delete_reports(selector)
        cluster.cache.reports.drop(run.__eq__)
        logger.info(
            "deleted the reports of run %s, the oldest, to stay within limits.storedReportsMebibytes", run.run_id
        )
    return len(runs)


def _clean_up_reports(cluster: Cluster, cleanup: ReportCleanup) -> None:
    kept = ",".join(cleanup.kept_runs)
    selector = f"{naming.DIAGNOSIS_UID_LABEL}={cleanup.diagnosis_uid},{naming.RUN_ID_LABEL} notin ({kept})"
    try:
        cluster.kubernetes.delete_reports(selector)
    except ClusterError as error:
        # They are deleted with the next run, or with the diagnosis.
        logger.warning("cannot delete the reports of former runs: %s", error)
        return
    uid, kept_runs = cleanup.diagnosis_uid, cleanup.kept_runs
    cluster.cache.reports.drop(lambda run: run.diagnosis_uid == uid and run.run_id not in kept_runs)


def _launch(cluster: Cluster, owner_uid: str, manifest: dict[str, Any]) -> str:
    """Create a runner pod, or find it already created. Returns why there is none, otherwise an empty string."""
    namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    try:
        pod, created = cluster.kubernetes.create_pod(manifest)
    except AlreadyExistsError:
        pod = cluster.kubernetes.read_pod(namespace, name)
        if not pod.metadata.is_owned_by(owner_uid):
            return _refused(f"pod {namespace}/{name} already exists and has another owner: delete it")
    except NotFoundError:
        return _refused(f"there is no namespace {namespace}: apply memdiag's manifests")
    except RefusedError as error:
        hint = f". {_exempt(namespace)}" if ADMISSION_POLICY in str(error) else ""
        return _refused(f"{error}{hint}")
    else:
        if changed := mutations(manifest, created):
            _remove_changed(cluster.kubernetes, pod)
            return f"the runner pod was changed during admission and deleted: {changed}. {_exempt(namespace)}"
    cluster.cache.pods.put(pod)
    logger.info("created runner pod %s/%s", namespace, name)
    return ""


def _refused(why: str) -> str:
    return f"the API server rejected the runner pod: {why}"


def _exempt(namespace: str) -> str:
    return f"If a webhook changes pods or adds to them, exempt the namespace {namespace} from it"


def _remove_changed(kubernetes: KubernetesClient, pod: Pod) -> None:
    try:
        kubernetes.delete_pod(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid, force=False)
    except (NotFoundError, ConflictError):
        logger.info("runner pod %s was already deleted", pod.metadata.name)


def _stop(cluster: Cluster, pod: PodRemoval) -> None:
    namespace, seconds = cluster.runner_namespace, STOP_DEADLINE_SECONDS
    try:
        cluster.cache.pods.put(cluster.kubernetes.set_pod_deadline(namespace, pod.name, seconds))
    except NotFoundError:
        _is_gone(cluster.cache, pod)


def _remove(cluster: Cluster, pod: PodRemoval) -> None:
    try:
        leaving = cluster.kubernetes.delete_pod(cluster.runner_namespace, pod.name, pod.uid, force=pod.force)
    except NotFoundError:
        _is_gone(cluster.cache, pod)
        return
    except ConflictError:
        logger.info("runner pod %s was already deleted and replaced by another pod of the same name", pod.name)
        cluster.cache.pods.drop(pod.name, pod.uid)
        return
    if leaving:
        cluster.cache.pods.put(leaving)
    else:
        cluster.cache.pods.drop(pod.name, pod.uid)


def _is_gone(cache: Cache, pod: PodRemoval) -> None:
    logger.info("runner pod %s was already deleted", pod.name)
    cache.pods.drop(pod.name, pod.uid)


def _announce(kubernetes: KubernetesClient, meta: ObjectMeta, run: str, announcement: Announcement) -> None:
    """Create an event. Events are best effort: a failure is logged and not retried."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    manifest = {
        "metadata": {
            "name": naming.event_name(meta.name, meta.uid, run, announcement.reason),
            "namespace": EVENT_NAMESPACE,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": MemoryDiagnosis.KIND,
            "name": meta.name,
            "uid": meta.uid,
        },
        "type": announcement.type,
        "reason": announcement.reason,
        "message": announcement.message[:MAX_EVENT_MESSAGE],
        "source": {"component": REPORTER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        kubernetes.create_event(manifest)
    except AlreadyExistsError:
        pass
    except ClusterError as error:
        logger.warning("cannot create event %s: %s", announcement.reason, error)
