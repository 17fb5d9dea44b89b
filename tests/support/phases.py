"""The phases of a diagnosis, and what Argo CD and Flux are to make of each."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from local_cluster.paths import PROJECT

RECORDED = PROJECT / "tests/fixtures/phases"
"""Objects of every phase as an API server had them: `MEMDIAG_RECORD_PHASES=1 pytest tests/api/test_gitops.py`."""


def recording(phase: str) -> Path:
    """The file of a phase."""
    return RECORDED / f"{phase.replace(', ', '-').replace(' ', '-')}.json"


def recorded(phase: str) -> dict[str, Any]:
    """The recorded object of a phase."""
    item: dict[str, Any] = json.loads(recording(phase).read_text())
    return item


class Judgement(NamedTuple):
    """The health in Argo CD, a part of its message, the status in Flux."""

    argo: str
    message: str
    flux: str


JUDGEMENTS = {
    "not seen by the operator": Judgement("Progressing", "has not seen this spec yet", "InProgress"),
    "waiting": Judgement("Progressing", "runner", "InProgress"),
    "running": Judgement("Progressing", "tracing on node-a", "InProgress"),
    "done, no leak": Judgement("Healthy", "Nothing grows, nothing is stuck.", "Current"),
    "done, spec changed since": Judgement("Progressing", "has not seen this spec yet", "InProgress"),
    "done, rerun asked": Judgement("Progressing", "another run was requested and has not started yet", "InProgress"),
    "done, suspended": Judgement("Healthy", "Nothing grows, nothing is stuck.", "Current"),
    "suspended, rerun asked": Judgement("Suspended", "another run was requested, and spec.suspend", "InProgress"),
    "rerun begun": Judgement("Progressing", "runner", "InProgress"),
    "rerun done": Judgement("Healthy", "Nothing grows, nothing is stuck.", "Current"),
    "leak found": Judgement("Healthy", "suspect: nginx[4711] fd 11", "Current"),
    "gate failed": Judgement("Degraded", "LeakFound: failOn is LeakDetected", "Failed"),
    "failed": Judgement("Degraded", "NodeNotFound: there is no node no-such-node", "Failed"),
    "suspended": Judgement("Suspended", "spec.suspend is true", "InProgress"),
    "terminated": Judgement("Degraded", "Terminated: ", "Failed"),
}
