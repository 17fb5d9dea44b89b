"""Kubernetes objects as the API server returns them, for tests of decisions: typical ones, changed by each test."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from memdiag_api.diagnosis import NodeResult
from memdiag_api.evidence import Evidence, TerminationMessage
from memdiag_api.framing import frame
from memdiag_operator.config import OperatorConfig, RunnerSettings
from memdiag_operator.decide.claims import claim_of
from memdiag_operator.decide.fleet import Fleet
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, Node, Pod

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
UID = "11111111-1111-1111-1111-111111111111"
RUN = naming.run_id(UID, "", None)
NODE = "node1"
NAME = "where"
POD_NAME = naming.child_name(NAME, UID, RUN, NODE)
IMAGE = f"example/node-runner@sha256:{hashlib.sha256(b'an image').hexdigest()}"
CONFIG = OperatorConfig(runner=RunnerSettings(image=IMAGE))


def fleet(pods: Iterable[Pod] = (), diagnoses: Iterable[Diagnosis] = ()) -> Fleet:
    """A cluster with these runner pods and diagnoses."""
    return Fleet(pods=tuple(pods), claims=tuple(map(claim_of, diagnoses)))


def ago(seconds: float) -> datetime:
    """The time this long before NOW."""
    return NOW - timedelta(seconds=seconds)


def timestamp(moment: datetime) -> str:
    """The time in the API server's format."""
    return moment.isoformat().replace("+00:00", "Z")


def diagnosis(
    *,
    name: str = NAME,
    uid: str = UID,
    node: str = NODE,
    spec: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    deleted: bool = False,
) -> Diagnosis:
    """A diagnosis of `node`; without `status`, one that no operator has seen."""
    return Diagnosis.model_validate(
        {
            "metadata": {
                "name": name,
                "uid": uid,
                "generation": 1,
                "resourceVersion": "7",
                "creationTimestamp": timestamp(ago(100)),
                "annotations": annotations or {},
                **({"deletionTimestamp": timestamp(NOW)} if deleted else {}),
            },
            "spec": {"target": {"nodeName": node}, **(spec or {})},
            "status": status or {"observedGeneration": -1},
        }
    )


def running_status(*, result: NodeResult | None = None, started: datetime | None = None, **more: Any) -> dict[str, Any]:
    """The status of a run that has started; `result` is the stored result of its node."""
    entry = result or NodeResult(node_name=NODE, reason="Pending")
    return {
        "observedGeneration": 1,
        "runID": RUN,
        "startTime": timestamp(started or ago(20)),
        "results": [entry.to_json_object()],
        **more,
    }


def node(
    name: str = NODE,
    *,
    ready: str = "True",
    since: float = 1000,
    labels: dict[str, str] | None = None,
    uid: str = "",
    **status: Any,
) -> Node:
    """A Linux node with 24 GiB whose condition Ready has been `ready` for `since` seconds."""
    return Node.model_validate(
        {
            "metadata": {
                "name": name,
                "uid": uid or f"uid-of-{name}",
                "labels": {"kubernetes.io/os": "linux", **(labels or {})},
            },
            "status": {
                "capacity": {"memory": "24Gi", "cpu": "2"},
                "conditions": [
                    {
                        "type": "Ready",
                        "status": ready,
                        "reason": "KubeletReady" if ready == "True" else "NodeStatusUnknown",
                        "message": "the kubelet's word",
                        "lastTransitionTime": timestamp(ago(since)),
                    }
                ],
                "nodeInfo": {"bootID": "boot-1", "operatingSystem": "linux"},
                **status,
            },
        }
    )


def pod(
    *,
    name: str = POD_NAME,
    phase: str = "Running",
    reason: str = "",
    message: str = "",
    state: dict[str, Any] | None = None,
    conditions: list[dict[str, str]] | None = None,
    age: float = 10,
    node_name: str = NODE,
    owner: str = UID,
    run: str = RUN,
    deleted: bool = False,
    gone_at: datetime = NOW,
    annotations: dict[str, str] | None = None,
    deadline_seconds: int = 880,
) -> Pod:
    """A runner pod on `node_name`; `state` is its container's, absent when the kubelet has not reported yet."""
    containers = [{"name": "node-runner", "containerID": "containerd://" + "a" * 64, "state": state}] if state else []
    return Pod.model_validate(
        {
            "metadata": {
                "name": name,
                "namespace": "memdiag-runners",
                "uid": f"uid-of-{name}",
                "creationTimestamp": timestamp(ago(age)),
                "labels": {**naming.RUNNER_LABELS, naming.DIAGNOSIS_UID_LABEL: owner, naming.RUN_ID_LABEL: run},
                "annotations": {
                    naming.NODE_ANNOTATION: node_name,
                    naming.NODE_UID_ANNOTATION: f"uid-of-{node_name}",
                    naming.BOOT_ID_ANNOTATION: "boot-1",
                    **(annotations or {}),
                },
                "ownerReferences": [{"uid": owner}],
                **({"deletionTimestamp": timestamp(gone_at)} if deleted else {}),
            },
            "spec": {"nodeName": node_name, "activeDeadlineSeconds": deadline_seconds},
            "status": {
                "phase": phase,
                "reason": reason,
                "message": message,
                "conditions": conditions or [],
                "containerStatuses": containers,
            },
        }
    )


def running(started: float = 5) -> dict[str, Any]:
    """The state of a container that started the given number of seconds ago."""
    return {"running": {"startedAt": timestamp(ago(started))}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """The state of a container that cannot start yet."""
    return {"waiting": {"reason": reason, "message": message}}


def terminated(message: str = "", *, exit_code: int = 0, reason: str = "", finished: float = 1) -> dict[str, Any]:
    """The state of a container that ended the given number of seconds ago, with its termination message."""
    return {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": message,
            "finishedAt": timestamp(ago(finished)),
        }
    }


def delivered(evidence: Evidence) -> tuple[str, bytes]:
    """Termination message and log of a runner that delivers `evidence`."""
    document = evidence.model_dump_json(by_alias=True, exclude_none=True, ensure_ascii=True).encode()
    return termination_message(document, evidence.run_id, verdict=evidence.verdict.kind), frame(
        document, evidence.run_id
    )


def termination_message(document: bytes, run: str, **fields: Any) -> str:
    """The termination message that announces `document`."""
    return TerminationMessage(
        run_id=run, length_bytes=len(document), sha256=hashlib.sha256(document).hexdigest(), **fields
    ).model_dump_json(by_alias=True, exclude_none=True)
