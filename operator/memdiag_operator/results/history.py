"""Earlier runs of a node, from its newest report to its next runner (docs/history.md).

What a node wrote goes back to a runner on the same node only, which validates it again. Here only its size matters.
"""

import json
from collections.abc import Sequence

from pydantic import Field

from memdiag_api.history import RunSummary, latest_first, thinned
from memdiag_api.limits import MAX_HISTORY_BYTES, MAX_HISTORY_RUNS
from memdiag_operator.kube.objects import KubernetesPart


class _Evidence(KubernetesPart):
    summary: RunSummary | None = None
    history: list[RunSummary] = Field(default_factory=list, max_length=MAX_HISTORY_RUNS)


class _Report(KubernetesPart):
    node_name: str
    evidence: _Evidence = _Evidence()


def history_of_report(report: bytes, node_name: str) -> tuple[RunSummary, ...]:
    """The runs that a MemoryDiagnosisReport in JSON knows, the latest first; empty if it is about another node.

    Raises ValueError if they are malformed.
    """
    found = _Report.model_validate_json(report)
    if found.node_name != node_name:
        return ()
    runs = [*([found.evidence.summary] if found.evidence.summary else []), *found.evidence.history]
    return tuple(thinned(latest_first(runs), MAX_HISTORY_RUNS))


def history_text(runs: Sequence[RunSummary]) -> str:
    """`runs` as the value of a variable: a JSON list in ASCII of at most MAX_HISTORY_BYTES; empty if there are none.

    If all are too large, fewer are kept. A `$` is escaped: Kubernetes expands `$(NAME)` in variables.
    """
    kept = list(runs)
    while kept:
        text = json.dumps([run.to_json_object() for run in kept], separators=(",", ":")).replace("$", "\\u0024")
        if len(text) <= MAX_HISTORY_BYTES:
            return text
        kept = thinned(kept, len(kept) - 1)
    return ""
