"""The operator's configuration: one YAML file, usually a mounted ConfigMap, checked as a whole at start.

The rights and the image of a runner are set here, never in a custom resource.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from memdiag_api.diagnosis import LABEL_KEY_PATTERN, MAX_LABEL_KEY_LENGTH, LabelValue
from memdiag_api.model import ApiModel

DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")

Word = Annotated[str, StringConstraints(min_length=1, max_length=253)]
Seconds = Annotated[int, Field(ge=1, le=86400)]
LabelKey = Annotated[str, StringConstraints(max_length=MAX_LABEL_KEY_LENGTH, pattern=LABEL_KEY_PATTERN)]
CpuQuantity = Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]*m|[0-9]+(\.[0-9]{1,3})?)$")]


class ConfigError(Exception):
    """The configuration is invalid; the text names the file, the field and what is expected there."""


class Settings(ApiModel):
    """A part of the configuration: immutable, unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Toleration(Settings):
    """A taint that runner pods tolerate, as in a pod's spec."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


# A node with a leak is often under pressure, or cordoned because of it.
DEFAULT_TOLERATIONS = tuple(
    Toleration(key=key)
    for key in (
        "node.kubernetes.io/memory-pressure",
        "node.kubernetes.io/disk-pressure",
        "node.kubernetes.io/pid-pressure",
        "node.kubernetes.io/unschedulable",
        "node-role.kubernetes.io/control-plane",
    )
)


class MemoryLimit(Settings):
    """A runner's memory, request and limit: (base + share of the node's RAM) x safety factor."""

    base_mebibytes: Annotated[int, Field(ge=64, le=16384)] = 256
    node_share: Annotated[float, Field(ge=0, le=0.05)] = 0.0005
    safety_factor: Annotated[float, Field(ge=1, le=4)] = 1.25


class RunnerSettings(Settings):
    """The settings of runner pods."""

    image: Word
    allow_tags: bool = Field(default=False, description="for images that are not in a registry and so have no digest")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Word, ...] = ()
    namespace: Word = "memdiag-runners"
    service_account_name: Word = "memdiag-runner"
    priority_class_name: str = "memdiag-runner"
    tolerations: tuple[Toleration, ...] = DEFAULT_TOLERATIONS
    cpu: CpuQuantity = "500m"
    memory: MemoryLimit = MemoryLimit()
    scratch_mebibytes: Annotated[int, Field(ge=8, le=1024, description="size of the memory-backed /tmp")] = 64
    termination_grace_seconds: Annotated[
        Seconds, Field(description="time to detach and to print a partial result when a runner is stopped early")
    ] = 30
    report_arguments: Annotated[
        bool, Field(description="report processes with their arguments, which may be passwords and tokens")
    ] = False
    report_paths: Annotated[
        bool, Field(description="report large files with the ends of their paths, which may name customers or projects")
    ] = True
    privileged: bool = Field(
        default=False, description="for hosts where three capabilities do not suffice (docs/configuration.md)"
    )
    app_armor_profile: Literal["RuntimeDefault", "Unconfined"] | None = None
    se_linux_type: str | None = None

    @model_validator(mode="after")
    def _image_cannot_be_exchanged(self) -> Self:
        if not self.allow_tags and not DIGEST.search(self.image):
            raise ValueError(
                f"image {self.image} must be named by digest, NAME@sha256:<64 hex digits>, since a tag can be moved to "
                "another image. `docker push` prints the digest, and so does `docker inspect --format "
                "'{{index .RepoDigests 0}}' IMAGE`. For an image that is not in a registry, set runner.allowTags"
            )
        return self


class LabelRequirement(Settings):
    """One of a selector's matchExpressions."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[LabelValue, ...] = ()

    @model_validator(mode="after")
    def _values_go_with_the_operator(self) -> Self:
        if bool(self.values) != (self.operator in ("In", "NotIn")):
            raise ValueError("In and NotIn require values, Exists and DoesNotExist must have none")
        return self


class AllowedNodes(Settings):
    """Which nodes may be diagnosed: a Kubernetes label selector; an empty one allows all."""

    match_labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    match_expressions: tuple[LabelRequirement, ...] = ()


Mebibytes = Annotated[int, Field(ge=1, le=1 << 20)]
NodeShare = Annotated[float, Field(ge=0, le=1, description="of the node's memory", allow_inf_nan=False)]
Duration = Annotated[float, Field(gt=0, le=1e9, description="in seconds", allow_inf_nan=False)]


class ThresholdSettings(Settings):
    """From where on a finding matters; of a size and a share, the larger one counts (docs/verdicts.md)."""

    suspect_mebibytes: Annotated[Mebibytes, Field(description="of pinned or growing memory that may be a leak")] = 16
    suspect_share: NodeShare = 0.001
    notable_mebibytes: Annotated[Mebibytes, Field(description="of kernel memory whose holder is known")] = 64
    notable_share: NodeShare = 0.0025
    large_mebibytes: Annotated[
        Mebibytes,
        Field(description="of a class that nothing explains: from this size on, the verdict is never NoLeak"),
    ] = 256
    large_share: NodeShare = 0.02
    unexplained_ceiling_mebibytes: Annotated[
        Mebibytes, Field(description="of unexplained memory that rules out NoLeak on the largest nodes, too")
    ] = 4096
    stuck_seconds: Annotated[Duration, Field(description="without a read, with unread data: a stuck socket")] = 1.0
    leak_age_seconds: Annotated[Duration, Field(description="that unread data has waited: a leak if not less")] = 10.0
    slow_drain_seconds: Annotated[Duration, Field(description="to drain a backlog at its present rate")] = 600.0
    growth_mebibytes_per_day: Annotated[Mebibytes, Field(description="growth that matters on every node")] = 512
    exhaustion_days: Annotated[
        float,
        Field(
            gt=0, le=36_500, allow_inf_nan=False, description="until growth exhausts the node: slower growth is fine"
        ),
    ] = 30.0
    object_growth_kibibytes_per_minute: Annotated[
        int, Field(ge=1, le=1 << 30, description="of slab objects of one call stack that may be a leak")
    ] = 512


class GraceSettings(Settings):
    """How long to wait for a state that may recover by itself before the node's run ends with it."""

    unschedulable_seconds: Seconds = 60
    image_pull_seconds: Seconds = 90
    container_start_seconds: Seconds = 120
    node_not_ready_seconds: Seconds = 60
    log_seconds: Annotated[Seconds, Field(description="for a finished runner's log to become readable")] = 60


class SweepSettings(Settings):
    """How often the whole cluster is checked, with or without events."""

    idle_seconds: Seconds = 30
    active_seconds: Annotated[
        Seconds, Field(description="while a run is unfinished: how often its progress is updated")
    ] = 5


class LimitSettings(Settings):
    """How much the operator does at the same time, and how much it stores."""

    unfinished_diagnoses: Annotated[
        int, Field(ge=1, le=5000, description="that have started and not ended; further ones wait before they start")
    ] = 500
    # The largest diagnosis, target.maxNodes = 1000, must fit when it is alone.
    node_runs: Annotated[int, Field(ge=1000, le=200_000, description="nodes of unfinished diagnoses, together")] = (
        20_000
    )
    stored_reports_mebibytes: Annotated[
        int,
        Field(
            ge=1, le=8192, description="of all MemoryDiagnosisReports in the cluster; above it, the oldest are deleted"
        ),
    ] = 256

    @property
    def stored_reports_bytes(self) -> int:
        """The budget for reports."""
        return self.stored_reports_mebibytes << 20


class OperatorConfig(Settings):
    """The whole file."""

    runner: RunnerSettings
    max_concurrent_runners: Annotated[int, Field(ge=1, le=1000)] = 3
    allowed_nodes: AllowedNodes = AllowedNodes()
    keep_reports_of_runs: Annotated[
        int, Field(ge=0, le=20, description="ended runs of a diagnosis whose reports are kept on a rerun")
    ] = 3
    limits: LimitSettings = LimitSettings()
    thresholds: ThresholdSettings = ThresholdSettings()
    grace: GraceSettings = GraceSettings()
    sweep: SweepSettings = SweepSettings()


def load_config(path: Path) -> OperatorConfig:
    """Read and check the file at `path`. Raises ConfigError, which lists every invalid field."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_config(text, source=str(path))


def parse_config(text: str, *, source: str = "configuration") -> OperatorConfig:
    """Check the YAML `text`. Raises ConfigError, which names `source` and lists every invalid field."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: must be a mapping that starts with `runner:`")
    try:
        return OperatorConfig.model_validate(document)
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from error
