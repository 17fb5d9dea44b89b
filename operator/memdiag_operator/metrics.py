"""The operator's Prometheus metrics (docs/observability.md). The only importer of `prometheus_client`.

No label has a value that a user or a node chose: the values of each label are a short, fixed list. Counters start at 0
for all of them, so that the first failure is an increase and not only a new series.
"""

from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from memdiag_api.conditions import Reason
from memdiag_api.evidence import VerdictKind
from memdiag_api.report import MemoryDiagnosisReport
from memdiag_operator.decide.changes import run_end, run_starts
from memdiag_operator.decide.limits import Load
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.slots import Allotment
from memdiag_operator.kube.objects import Diagnosis

VERDICTS = (*(Reason(kind.value) for kind in VerdictKind), Reason.NO_RESULT, Reason.PARTIAL_RESULTS)
"""Reasons of LeakDetected after a run."""
FAILURES = tuple(
    reason
    for reason in Reason
    if (
        reason not in {Reason.PENDING, Reason.LIMIT_REACHED, Reason.RUNNING, Reason.SUSPENDED, Reason.COMPLETED}
        and reason not in VERDICTS
    )
    or reason is Reason.PARTIAL_RESULTS
)
"""Reasons of Succeeded after a run that did not succeed."""
DURATION_BUCKETS_SECONDS = (10, 30, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)

REPORT_REFUSALS = frozenset({"400", "403", "405", "413", "422"})
"""Status codes of a permanently rejected report; 409 means that it already exists."""


class OperatorMetrics:
    """What the operator has done, and how busy it is. Thread-safe."""

    def __init__(self) -> None:
        # A second series for every counter, which is hardly ever used.
        disable_created_metrics()  # type: ignore[no-untyped-call] # without types there
        self.registry = registry = CollectorRegistry()
        # Process memory, CPU and file descriptors, under the names that all exporters use.
        ProcessCollector(registry=registry)
        build = Info("memdiag_build", "The operator's version.", registry=registry)
        build.info({"version": version("memdiag")})

        self._started = Counter("memdiag_runs_started", "Runs that have started.", registry=registry)
        self._runs = Counter(
            "memdiag_runs",
            "Runs that have ended, by the reason of the condition Succeeded.",
            ("result", "reason"),
            registry=registry,
        )
        self._durations = Histogram(
            "memdiag_run_duration_seconds",
            "Time from the start of a run to its end, including the time that it waits for a slot.",
            ("result",),
            buckets=DURATION_BUCKETS_SECONDS,
            registry=registry,
        )
        self._node_results = Counter(
            "memdiag_node_results", "Nodes' parts of runs that have ended, by reason.", ("reason",), registry=registry
        )
        self._verdicts = Counter(
            "memdiag_verdicts",
            "Runs that have ended, by the reason of the condition LeakDetected.",
            ("verdict",),
            registry=registry,
        )
        self._reports_refused = Counter(
            "memdiag_reports_refused", "Reports that the API server rejected.", registry=registry
        )
        self._requests = Counter(
            "memdiag_api_requests",
            "Requests to the API server, except watches; code is none if there was no response.",
            ("verb", "resource", "code"),
            registry=registry,
        )
        self._faults = Counter(
            "memdiag_faults", "Internal errors of the operator: each is logged with a traceback.", registry=registry
        )
        self._queue = Gauge("memdiag_queue_length", "Node runs that have no runner yet.", registry=registry)
        self._slots_used = Gauge(
            "memdiag_runner_slots_used", "Runners that are running or about to start.", registry=registry
        )
        self._slots_limit = Gauge(
            "memdiag_runner_slots_limit", "Maximum number of runners at the same time.", registry=registry
        )
        self._unfinished = Gauge(
            "memdiag_unfinished_diagnoses", "Diagnoses whose run has started and not ended.", registry=registry
        )
        self._unfinished_nodes = Gauge(
            "memdiag_unfinished_node_runs", "Node runs of unfinished diagnoses that have not ended.", registry=registry
        )
        self._held_back = Gauge(
            "memdiag_held_back_diagnoses",
            "Diagnoses that wait until the limits allow them to start.",
            registry=registry,
        )
        self._reports = Gauge(
            "memdiag_stored_reports_bytes", "Approximate size of all reports in etcd.", registry=registry
        )
        self._runs_deleted = Counter(
            "memdiag_runs_without_reports",
            "Ended runs whose reports were deleted to stay within limits.storedReportsMebibytes.",
            registry=registry,
        )
        self._last_sweep = Gauge(
            "memdiag_last_sweep_timestamp_seconds",
            "When the operator last checked the whole cluster with the API server responding; 0 before the first time.",
            registry=registry,
        )
        self._announce_series()

    def _announce_series(self) -> None:
        self._runs.labels("succeeded", Reason.COMPLETED.value)
        self._node_results.labels(Reason.COMPLETED.value)
        for reason in FAILURES:
            self._runs.labels("failed", reason.value)
            self._node_results.labels(reason.value)
        for verdict in VERDICTS:
            self._verdicts.labels(verdict.value)
        for result in ("succeeded", "failed"):
            self._durations.labels(result)

    def serve(self, address: str, port: int) -> None:
        """Serve scrapes on a separate thread, at any path, until the process ends. Raises OSError if it cannot."""
        start_http_server(port, address, self.registry)

    def limit(self, slots: int) -> None:
        """Set the configured limit of runners."""
        self._slots_limit.set(slots)

    def applied(self, diagnosis: Diagnosis, plan: Plan) -> None:
        """Count a plan made for `diagnosis` that has been carried out."""
        if run_starts(diagnosis, plan):
            self._started.inc()
        end = run_end(diagnosis, plan)
        if end is None:
            return
        self._runs.labels(end.result, end.reason).inc()
        self._durations.labels(end.result).observe(end.duration_seconds)
        self._verdicts.labels(end.verdict).inc()
        for reason in end.node_reasons:
            self._node_results.labels(reason).inc()

    def swept(self, allotment: Allotment, load: Load, held_back: int, timestamp_seconds: float) -> None:
        """Record a sweep of the whole cluster at this time (seconds since the epoch)."""
        self._queue.set(allotment.queue_length)
        self._slots_used.set(allotment.slots_used)
        self._unfinished.set(load.diagnoses)
        self._unfinished_nodes.set(load.node_runs)
        self._held_back.set(held_back)
        self._last_sweep.set(timestamp_seconds)

    def counted_reports(self, stored_bytes: int, deleted_runs: int) -> None:
        """Record the size of all reports, after the reports of `deleted_runs` runs were deleted."""
        self._reports.set(stored_bytes)
        self._runs_deleted.inc(deleted_runs)

    def requested(self, verb: str, resource: str, code: str) -> None:
        """Count a request to the API server; `code` is `none` if there was no response."""
        self._requests.labels(verb, resource, code).inc()
        if (verb, resource) == ("create", MemoryDiagnosisReport.PLURAL) and code in REPORT_REFUSALS:
            self._reports_refused.inc()

    def faulted(self) -> None:
        """Count an internal error."""
        self._faults.inc()
