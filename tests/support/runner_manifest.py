"""A runner pod as the operator creates it, with changes of a test, to check the admission policy."""

from typing import Any

from memdiag_api.diagnosis import MemoryDiagnosisSpec
from memdiag_operator.config import OperatorConfig, RunnerSettings
from memdiag_operator.decide.runner_pod import runner_pod
from support.kubernetes_objects import RUN, diagnosis, node

IMAGE = "memdiag.dev/node-runner:dev"
"""From the overlay that the tests install."""


def runner_manifest(name: str = "tried", *, container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod without owner and labels, with other values in its spec and in its container."""
    asked = diagnosis()
    assert isinstance(asked.spec, MemoryDiagnosisSpec)
    config = OperatorConfig(runner=RunnerSettings(image=IMAGE, allow_tags=True))
    made = runner_pod(asked.metadata, asked.spec, run=RUN, node=node(), config=config, deadline_seconds=60)
    made["metadata"] = {"name": name, "namespace": made["metadata"]["namespace"]}
    made["spec"]["containers"][0].update(container or {})
    made["spec"].update(spec)
    return made
