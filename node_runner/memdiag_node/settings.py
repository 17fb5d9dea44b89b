"""What a run measures, and how."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from memdiag_api.evidence import Check
from memdiag_api.history import RunSummary
from memdiag_node.findings.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure, and how."""

    run_id: str
    node_name: str
    checks: Sequence[Check]
    duration_seconds: float
    cpu_budget_share: float = 0.05
    """Share of each CPU's time for recording allocations. Above it, the trace records only a sample."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    history: Sequence[RunSummary] = ()
    """Summaries of earlier runs, perhaps of other boots."""
    notes: Sequence[str] = ()
    """Notes for the reader of the result."""
    report_arguments: bool = False
    """Whether processes are reported with their arguments, which may contain passwords and tokens."""
    report_paths: bool = True
    """Whether files are reported with the start and the end of their paths."""
