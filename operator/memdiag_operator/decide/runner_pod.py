"""The runner pod: a bare pod, so that no Job starts a second one, with the least rights that the measurement needs."""

from collections.abc import Sequence
from typing import Any

from memdiag_api.capabilities import RUNNER_CAPABILITIES
from memdiag_api.diagnosis import MemoryDiagnosisSpec
from memdiag_api.evidence import LEAK_CHECKS, Check, with_implied
from memdiag_api.history import HISTORY_VARIABLE, RunSummary
from memdiag_operator.config import MemoryLimit, OperatorConfig, RunnerSettings, ThresholdSettings
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Node, ObjectMeta
from memdiag_operator.kube.quantities import parse_byte_quantity
from memdiag_operator.results.history import history_text

CONTAINER_NAME = "node-runner"
MEBIBYTE = 1024 * 1024
STOP_DEADLINE_SECONDS = 1
"""The deadline of a runner pod that is to stop: the kubelet ends it and keeps its log and termination message."""

# Sidecars and variables of others must not be in a runner, and the admission policy rejects them.
INJECTOR_OPT_OUT_LABELS = {
    "sidecar.istio.io/inject": "false",
    "admission.datadoghq.com/enabled": "false",
    "kuma.io/sidecar-injection": "disabled",
}
INJECTOR_OPT_OUT_ANNOTATIONS = {
    "sidecar.istio.io/inject": "false",
    "linkerd.io/inject": "disabled",
    "vault.hashicorp.com/agent-inject": "false",
    "dynatrace.com/inject": "false",
    "oneagent.dynatrace.com/inject": "false",
    "instrumentation.opentelemetry.io/inject-sdk": "false",
}


def runner_pod(
    diagnosis: ObjectMeta,
    spec: MemoryDiagnosisSpec,
    *,
    run: str,
    node: Node,
    config: OperatorConfig,
    deadline_seconds: int,
    history: Sequence[RunSummary] = (),
) -> dict[str, Any]:
    """The manifest of the pod that measures `node` for the run `run`.

    `deadline_seconds`: the time left for the run, after which the kubelet ends the pod even without the operator.
    `history`: earlier runs of the node, with which the runner compares.
    """
    node_name, settings = node.metadata.name, config.runner
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": naming.child_name(diagnosis.name, diagnosis.uid, run, node_name),
            "namespace": settings.namespace,
            "labels": {
                **INJECTOR_OPT_OUT_LABELS,
                **naming.RUNNER_LABELS,
                naming.DIAGNOSIS_UID_LABEL: diagnosis.uid,
                naming.RUN_ID_LABEL: run,
            },
            "annotations": {
                **INJECTOR_OPT_OUT_ANNOTATIONS,
                naming.DIAGNOSIS_ANNOTATION: diagnosis.name,
                naming.NODE_ANNOTATION: node_name,
                naming.NODE_UID_ANNOTATION: node.metadata.uid,
                naming.BOOT_ID_ANNOTATION: node.status.node_info.boot_id,
            },
            "ownerReferences": [naming.owner_reference(diagnosis)],
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": max(1, deadline_seconds),
            "terminationGracePeriodSeconds": settings.termination_grace_seconds,
            "hostPID": True,
            "serviceAccountName": settings.service_account_name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "affinity": _only_on(node_name),
            "tolerations": [one.model_dump(by_alias=True, exclude_none=True) for one in settings.tolerations],
            "containers": [_container(spec, run, node, config) | _environment(history)],
            "volumes": [
                {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": f"{settings.scratch_mebibytes}Mi"}},
            ],
            **({"priorityClassName": settings.priority_class_name} if settings.priority_class_name else {}),
            **(
                {"imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets]}
                if settings.image_pull_secrets
                else {}
            ),
        },
    }


def memory_limit_bytes(node_capacity_bytes: int, limit: MemoryLimit) -> int:
    """A runner's memory on a node with `node_capacity_bytes` of RAM, in whole MiB.

    The base is the interpreter, the compiler at load time and the memory-backed /tmp; the share is the trace's table of
    two bytes per page frame (0.05 % of RAM).
    """
    exact = (limit.base_mebibytes * MEBIBYTE + limit.node_share * node_capacity_bytes) * limit.safety_factor
    return -(-int(exact) // MEBIBYTE) * MEBIBYTE


def _container(spec: MemoryDiagnosisSpec, run: str, node: Node, config: OperatorConfig) -> dict[str, Any]:
    settings = config.runner
    capacity_bytes = parse_byte_quantity(node.status.capacity.get("memory", "0"))
    resources = {
        "cpu": settings.cpu,
        "memory": f"{memory_limit_bytes(capacity_bytes, settings.memory) // MEBIBYTE}Mi",
    }
    return {
        "name": CONTAINER_NAME,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["memdiag-node"],
        "args": [
            *("--output", "framed"),
            *("--run-id", run),
            *("--node-name", node.metadata.name),
            *("--duration", spec.duration),
            *(word for check in _checks(spec) for word in ("--check", check.value)),
            *("--top-n", str(spec.top_n)),
            *("--cpu-budget-percent", str(spec.cpu_budget_percent)),
            *_threshold_arguments(config.thresholds),
            *("--grace", str(settings.termination_grace_seconds)),
            *(("--report-arguments",) if settings.report_arguments else ()),
            *(() if settings.report_paths else ("--no-report-paths",)),
            "--quiet",
        ],
        "resources": {"requests": resources, "limits": resources},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": _security_context(settings),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own, in memory
        ],
    }


def _threshold_arguments(thresholds: ThresholdSettings) -> list[str]:
    options: dict[str, float] = {
        "--suspect-mib": thresholds.suspect_mebibytes,
        "--suspect-share": thresholds.suspect_share,
        "--notable-mib": thresholds.notable_mebibytes,
        "--notable-share": thresholds.notable_share,
        "--large-mib": thresholds.large_mebibytes,
        "--large-share": thresholds.large_share,
        "--unexplained-ceiling-mib": thresholds.unexplained_ceiling_mebibytes,
        "--stuck-seconds": thresholds.stuck_seconds,
        "--leak-age-seconds": thresholds.leak_age_seconds,
        "--slow-drain-seconds": thresholds.slow_drain_seconds,
        "--growth-mib-per-day": thresholds.growth_mebibytes_per_day,
        "--exhaustion-days": thresholds.exhaustion_days,
        "--object-growth-kib-per-minute": thresholds.object_growth_kibibytes_per_minute,
    }
    return [word for option, value in options.items() for word in (option, str(value))]


def _environment(history: Sequence[RunSummary]) -> dict[str, Any]:
    """The only variable that a runner may have: the admission policy rejects any other."""
    text = history_text(history)
    return {"env": [{"name": HISTORY_VARIABLE, "value": text}]} if text else {}


def _checks(spec: MemoryDiagnosisSpec) -> list[Check]:
    """The checks to run. The default of the field is that of version 0.1.0, which had three: see its description."""
    is_whole = set(spec.checks) >= set(LEAK_CHECKS)
    return with_implied([*spec.checks, *(Check if is_whole else ())])


def _security_context(settings: RunnerSettings) -> dict[str, Any]:
    context: dict[str, Any] = {"runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": True}
    if settings.privileged:
        context |= {"privileged": True}
    else:
        context |= {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": list(RUNNER_CAPABILITIES)},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    if settings.app_armor_profile:
        context["appArmorProfile"] = {"type": settings.app_armor_profile}
    if settings.se_linux_type:
        context["seLinuxOptions"] = {"type": settings.se_linux_type}
    return context


def _only_on(node_name: str) -> dict[str, Any]:
    """Affinity instead of spec.nodeName: the scheduler still checks that the pod fits."""
    field = {"key": "metadata.name", "operator": "In", "values": [node_name]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
