"""Names and labels of what the operator creates. Names follow from identities, so a retry finds the first object."""

import hashlib
from typing import Any

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import API_VERSION, GROUP, MemoryDiagnosis
from memdiag_api.evidence import VerdictKind
from memdiag_operator.kube.objects import ObjectMeta

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY = "memdiag-operator"
RUNNER_COMPONENT = "node-runner"
DIAGNOSIS_UID_LABEL = f"{GROUP}/diagnosis-uid"
RUN_ID_LABEL = f"{GROUP}/run-id"

DIAGNOSIS_ANNOTATION = f"{GROUP}/diagnosis"
NODE_ANNOTATION = f"{GROUP}/node"
NODE_UID_ANNOTATION = f"{GROUP}/node-uid"
BOOT_ID_ANNOTATION = f"{GROUP}/boot-id"
SIZE_ANNOTATION = f"{GROUP}/size-bytes"
"""On a report: its size in etcd, so that a list of metadata shows the size of all reports."""

RUNNER_LABELS = {MANAGED_BY_LABEL: MANAGED_BY, COMPONENT_LABEL: RUNNER_COMPONENT}
RUNNER_SELECTOR = ",".join(f"{key}={value}" for key, value in RUNNER_LABELS.items())

# The order of a run's events: after these comes the end of the run, and last the verdict.
_STORY = {"Started": 0, Reason.RUNNING.value: 1}
_VERDICTS = frozenset(kind.value for kind in VerdictKind)

_DIGEST_LENGTH = 10
# A pod's name becomes its host name: a DNS label of at most 63 characters.
_READABLE_LENGTH = 63 - 1 - _DIGEST_LENGTH


def run_id(diagnosis_uid: str, requested_at: str, previous_run_id: str | None) -> str:
    """The ID of the run that follows `previous_run_id` and handles `requested_at`."""
    return _digest(diagnosis_uid, requested_at, previous_run_id or "")


def child_name(diagnosis_name: str, diagnosis_uid: str, run: str, node_name: str) -> str:
    """The name of a run's runner pod on `node_name` and of its report: readable and unique."""
    readable = diagnosis_name.replace(".", "-")[:_READABLE_LENGTH].rstrip("-")
    return f"{readable}-{_digest(diagnosis_uid, run, node_name)}"


def event_name(diagnosis_name: str, diagnosis_uid: str, run: str, reason: str) -> str:
    """The name of the event with `reason` about a run: one object however often it is created.

    A run's events sort by name in the order of time: kubectl lists those of the same second in that order.
    """
    place = _STORY.get(reason, 2 if reason not in _VERDICTS else 3)
    tail = f".{place}-{_digest(diagnosis_uid, run, reason)}"
    return diagnosis_name[: 253 - len(tail)].rstrip(".-") + tail


def owner_reference(diagnosis: ObjectMeta) -> dict[str, Any]:
    """The reference of a child to its diagnosis: the child is deleted with it. Cluster-scoped owners may own pods."""
    return {
        "apiVersion": API_VERSION,
        "kind": MemoryDiagnosis.KIND,
        "name": diagnosis.name,
        "uid": diagnosis.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _digest(*parts: str) -> str:
    # A separator that none of the parts can contain: different parts never make the same text.
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_DIGEST_LENGTH]
