"""The size of reports in etcd, and which reports are deleted when it exceeds the budget: those of the oldest runs.

The reports of a run are kept or deleted together: half of a run's evidence is of little use. Those of a run that has
not ended are always kept; if they alone use up the budget, no more reports are stored.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from memdiag_operator.decide.fleet import Claim
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import ObjectMeta

UNKNOWN_SIZE_BYTES = 128 * 1024
"""The assumed size of a report stored by memdiag 0.1.0, which does not state its size."""
NEWEST_REPORTS = 3
_MAX_DIGITS = 9
_EARLIEST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has reports."""

    diagnosis_uid: str
    run_id: str


@dataclass(frozen=True, slots=True)
class StoredReport:
    """One report, without its content."""

    name: str
    run: Run
    created: datetime
    size_bytes: int
    node_name: str = ""
    """The node that it is about; empty for a report of version 0.1.0."""


def stored_report(meta: ObjectMeta) -> StoredReport:
    """The report with the metadata `meta`."""
    run = Run(meta.labels.get(naming.DIAGNOSIS_UID_LABEL, ""), meta.labels.get(naming.RUN_ID_LABEL, ""))
    node_name = meta.annotations.get(naming.NODE_ANNOTATION, "")
    size_bytes = said_size_bytes(meta.annotations)
    return StoredReport(meta.name, run, meta.creation_timestamp or _EARLIEST, size_bytes, node_name)


def newest_of_node(reports: Iterable[StoredReport], node_name: str) -> list[StoredReport]:
    """The newest reports about a node, of any diagnosis, the latest first: the first ones may have been deleted."""
    of_node = (report for report in reports if report.node_name == node_name)
    return sorted(of_node, key=lambda report: (report.created, report.name), reverse=True)[:NEWEST_REPORTS]


def said_size_bytes(annotations: Mapping[str, str]) -> int:
    """The size that a report's annotations state."""
    said = annotations.get(naming.SIZE_ANNOTATION, "")
    return int(said) if said.isdecimal() and len(said) <= _MAX_DIGITS else UNKNOWN_SIZE_BYTES


def unfinished_runs(claims: Iterable[Claim]) -> frozenset[Run]:
    """The runs that have not ended."""
    return frozenset(Run(claim.uid, claim.run_id) for claim in claims if claim.is_under_way)


def stored_bytes(reports: Iterable[StoredReport], runs: Collection[Run] | None = None) -> int:
    """The size of `reports`, of all of them or of those of `runs`."""
    return sum(report.size_bytes for report in reports if runs is None or report.run in runs)


def runs_to_delete(reports: Iterable[StoredReport], unfinished: Collection[Run], budget_bytes: int) -> Iterator[Run]:
    """The runs whose reports must be deleted so that the others fit into `budget_bytes`, the oldest first."""
    sizes: dict[Run, int] = {}
    ages: dict[Run, datetime] = {}
    for report in reports:
        sizes[report.run] = sizes.get(report.run, 0) + report.size_bytes
        ages[report.run] = min(ages.get(report.run, report.created), report.created)
    excess = sum(sizes.values()) - budget_bytes
    for run in sorted(sizes, key=lambda one: (ages[one], one.diagnosis_uid, one.run_id)):
        if excess <= 0:
            return
        if run not in unfinished:
            excess -= sizes[run]
            yield run
