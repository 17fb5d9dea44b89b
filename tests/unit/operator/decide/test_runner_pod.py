"""The runner pod has what it needs, and nothing else."""

import itertools
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest

from memdiag_api.diagnosis import MemoryDiagnosisSpec
from memdiag_api.evidence import LEAK_CHECKS, Check
from memdiag_node import cli
from memdiag_node.findings.thresholds import Thresholds
from memdiag_operator.config import MemoryLimit, OperatorConfig, RunnerSettings, ThresholdSettings
from memdiag_operator.decide.runner_pod import MEBIBYTE, memory_limit_bytes, runner_pod
from support.kubernetes_objects import CONFIG, IMAGE, NODE, POD_NAME, RUN, UID, diagnosis, node

GIBIBYTE = 1024 * MEBIBYTE


def manifest(config: OperatorConfig = CONFIG, **spec: Any) -> dict[str, Any]:
    made = diagnosis(spec=spec)
    assert isinstance(made.spec, MemoryDiagnosisSpec)
    return runner_pod(made.metadata, made.spec, run=RUN, node=node(), config=config, deadline_seconds=870)


def container(config: OperatorConfig = CONFIG, **spec: Any) -> dict[str, Any]:
    (only,) = manifest(config, **spec)["spec"]["containers"]
    return only  # type: ignore[no-any-return] # manifests are plain JSON


def with_runner(**settings: Any) -> OperatorConfig:
    return OperatorConfig(runner=RunnerSettings(image=IMAGE, **settings))


def test_it_belongs_to_its_diagnosis() -> None:
    meta = manifest()["metadata"]
    assert meta["name"] == POD_NAME
    (owner,) = meta["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("MemoryDiagnosis", UID, True)


def test_labels_and_annotations_of_the_diagnosis_are_not_copied() -> None:
    made = diagnosis(annotations={"argocd.argoproj.io/tracking-id": "x"})
    assert isinstance(made.spec, MemoryDiagnosisSpec)
    pod = runner_pod(made.metadata, made.spec, run=RUN, node=node(), config=CONFIG, deadline_seconds=1)
    assert "argocd" not in str(pod)


def test_injectors_are_asked_to_leave_it_alone() -> None:
    meta = manifest()["metadata"]
    assert meta["labels"]["sidecar.istio.io/inject"] == "false"
    assert meta["labels"]["admission.datadoghq.com/enabled"] == "false"
    assert meta["annotations"]["linkerd.io/inject"] == "disabled"
    assert meta["annotations"]["vault.hashicorp.com/agent-inject"] == "false"
    assert meta["annotations"]["oneagent.dynatrace.com/inject"] == "false"


def test_the_command_line_says_what_to_measure() -> None:
    made = container(duration="90s", topN=5, checks=["Breakdown", "SocketQueues"])
    assert made["command"] == ["memdiag-node"]
    line = " ".join(made["args"])
    assert line.startswith(f"--output framed --run-id {RUN} --node-name {NODE} --duration 90s")
    assert "--check Breakdown --check SocketQueues --top-n 5" in line
    assert "AllocPageTrace" not in line


def test_the_runner_knows_how_long_it_has_after_a_request_to_stop() -> None:
    config = with_runner(termination_grace_seconds=45)
    assert manifest(config)["spec"]["terminationGracePeriodSeconds"] == 45
    assert "--grace 45" in " ".join(container(config)["args"])


@pytest.mark.parametrize(
    ("requested", "run"),
    [
        pytest.param(None, set(Check), id="the default"),
        pytest.param(LEAK_CHECKS, set(Check), id="stored by version 0.1.0, which had three"),
        pytest.param([*LEAK_CHECKS, Check.OWNERS], set(Check), id="all that can find a leak, and another"),
        pytest.param([Check.KERNEL_OBJECTS], {Check.KERNEL_OBJECTS}, id="one"),
        pytest.param([Check.OWNERS], {Check.OWNERS, Check.BREAKDOWN, Check.CONTAINERS}, id="one that uses others"),
        pytest.param([Check.CONTAINERS, Check.BREAKDOWN], {Check.CONTAINERS, Check.BREAKDOWN}, id="two"),
    ],
)
def test_what_is_requested_is_run_with_what_it_needs(requested: Sequence[Check] | None, run: set[Check]) -> None:
    spec: dict[str, Any] = {} if requested is None else {"checks": requested}
    arguments = container(CONFIG, **spec)["args"]
    checks = [value for option, value in itertools.pairwise(arguments) if option == "--check"]
    assert sorted(checks) == sorted(run)


def test_paths_are_left_out_where_the_configuration_says_so() -> None:
    assert "--no-report-paths" not in container()["args"]
    assert "--no-report-paths" in container(with_runner(report_paths=False))["args"]


def test_processes_are_reported_with_arguments_only_where_the_configuration_says_so() -> None:
    assert "--report-arguments" not in container()["args"]
    assert "--report-arguments" in container(with_runner(report_arguments=True))["args"]


def test_thresholds_of_the_configuration_reach_the_runner() -> None:
    thresholds = CONFIG.thresholds.model_copy(update={"large_mebibytes": 512, "large_share": 0.05})
    made = diagnosis()
    assert isinstance(made.spec, MemoryDiagnosisSpec)
    config = CONFIG.model_copy(update={"thresholds": thresholds})
    pod = runner_pod(made.metadata, made.spec, run=RUN, node=node(), config=config, deadline_seconds=1)
    line = " ".join(pod["spec"]["containers"][0]["args"])
    assert "--suspect-mib 16 --suspect-share 0.001 " in line
    assert "--large-mib 512 --large-share 0.05 " in line


def test_the_runner_takes_every_threshold_of_the_configuration() -> None:
    """Each has an option of the command line, with the same default."""
    changed = {
        "suspect_mebibytes": 1,
        "suspect_share": 0.25,
        "notable_mebibytes": 2,
        "notable_share": 1e-05,
        "large_mebibytes": 3,
        "large_share": 1.0,
        "unexplained_ceiling_mebibytes": 4,
        "stuck_seconds": 4.5,
        "leak_age_seconds": 5.0,
        "slow_drain_seconds": 1e9,
        "growth_mebibytes_per_day": 5,
        "exhaustion_days": 0.5,
        "object_growth_kibibytes_per_minute": 7,
    }
    assert changed.keys() == ThresholdSettings.model_fields.keys()
    assert len(changed) == len(fields(Thresholds))
    for settings in (ThresholdSettings(), ThresholdSettings(**changed)):
        made = container(CONFIG.model_copy(update={"thresholds": settings}))
        taken = cli._thresholds(cli._parser().parse_args(made["args"]))
        assert taken == Thresholds(
            suspect_floor_bytes=settings.suspect_mebibytes * MEBIBYTE,
            suspect_share=settings.suspect_share,
            notable_floor_bytes=settings.notable_mebibytes * MEBIBYTE,
            notable_share=settings.notable_share,
            large_floor_bytes=settings.large_mebibytes * MEBIBYTE,
            large_share=settings.large_share,
            unexplained_ceiling_bytes=settings.unexplained_ceiling_mebibytes * MEBIBYTE,
            stuck_floor_seconds=settings.stuck_seconds,
            leak_age_seconds=settings.leak_age_seconds,
            slow_drain_seconds=settings.slow_drain_seconds,
            growth_per_day_bytes=settings.growth_mebibytes_per_day * MEBIBYTE,
            exhaustion_seconds=settings.exhaustion_days * 86_400,
            object_growth_per_minute_bytes=settings.object_growth_kibibytes_per_minute << 10,
        )
    assert cli._thresholds(cli._parser().parse_args(container()["args"])) == Thresholds()


def test_it_has_three_capabilities_and_no_more() -> None:
    """SYS_PTRACE with the host's PIDs is root on the host; DAC_READ_SEARCH opens every file of it."""
    context = container()["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "PERFMON", "SYSLOG"]}
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "privileged" not in context


def test_it_has_no_token_no_network_of_the_host_and_no_second_life() -> None:
    spec = manifest()["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "hostNetwork" not in spec
    assert "hostIPC" not in spec
    assert spec["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == 870


def test_nothing_of_the_host_is_mounted() -> None:
    pod = manifest()["spec"]
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


def test_of_the_hosts_namespaces_it_has_the_pids_only() -> None:
    assert [key for key in manifest()["spec"] if key.startswith("host")] == ["hostPID"]


def test_the_scheduler_decides_whether_it_fits() -> None:
    spec = manifest()["spec"]
    assert "nodeName" not in spec
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    assert term == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [NODE]}]}


def test_requests_are_limits() -> None:
    resources = container()["resources"]
    assert resources["requests"] == resources["limits"] == {"cpu": "500m", "memory": "336Mi"}


@pytest.mark.parametrize(
    ("capacity_bytes", "mebibytes"),
    [(0, 320), (2 * GIBIBYTE, 322), (24 * GIBIBYTE, 336), (512 * GIBIBYTE, 648), (4096 * GIBIBYTE, 2942)],
)
def test_memory_follows_the_node(capacity_bytes: int, mebibytes: int) -> None:
    assert memory_limit_bytes(capacity_bytes, MemoryLimit()) == mebibytes * MEBIBYTE


def test_privileged_is_the_configurations_choice_and_excludes_the_rest() -> None:
    context = container(with_runner(privileged=True, se_linux_type="spc_t", app_armor_profile="Unconfined"))[
        "securityContext"
    ]
    assert context["privileged"] is True
    assert "capabilities" not in context
    assert "allowPrivilegeEscalation" not in context
    assert context["seLinuxOptions"] == {"type": "spc_t"}
    assert context["appArmorProfile"] == {"type": "Unconfined"}


def test_settings_reach_the_pod() -> None:
    spec = manifest(with_runner(priority_class_name="", image_pull_secrets=("registry",)))["spec"]
    assert "priorityClassName" not in spec
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"} in spec["tolerations"]
