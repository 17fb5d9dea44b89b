"""Starts a run: its nodes are chosen once for the whole run, and the previous run is recorded."""

from dataclasses import replace
from datetime import datetime

from memdiag_api.conditions import ConditionType, Reason
from memdiag_api.diagnosis import (
    LastRun,
    MemoryDiagnosisStatus,
    NodeCounts,
    NodeResult,
    NodeState,
)
from memdiag_api.limits import MAX_HANDLED_REQUESTS, MAX_PREVIOUS_RUNS, MAX_SENTENCE
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.deadline import deadline_seconds, shortfall
from memdiag_operator.decide.lifecycle import handled_requests
from memdiag_operator.decide.plan import Plan, ReportCleanup, status_plan
from memdiag_operator.decide.snapshot import Candidates, Snapshot
from memdiag_operator.decide.target import choose_nodes, spec_fault
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, InvalidSpec
from memdiag_operator.results.sanitize import clip
from memdiag_operator.status.conditions import when_refused, while_running
from memdiag_operator.status.progress import DONE, WAITING, of_run
from memdiag_operator.status.trim import most_relevant

MAX_NODES_IN_MESSAGE = 4
LARGE_RUN_NODES = 100
"""After a run on more nodes, whose reports may take 250 MiB, the reports of only one former run are kept."""


def start(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> Plan:
    """Choose the nodes once for the whole run, and record the previous run."""
    diagnosis, spec = snapshot.diagnosis, snapshot.diagnosis.spec
    before, requested_at = diagnosis.status, diagnosis.requested_at
    status = MemoryDiagnosisStatus(
        run_id=naming.run_id(diagnosis.metadata.uid, requested_at, before.run_id),
        last_handled_request=requested_at or None,
        handled_requests=_with_request(requested_at, before),
        start_time=now,
        last_run=_last_run(before),
        previous_run_ids=_previous_run_ids(before),
        conditions=before.conditions,
    )
    cleanup = _report_cleanup(diagnosis, status, config)
    if isinstance(spec, InvalidSpec) or spec_fault(spec):
        return replace(refuse(diagnosis, status, Reason.INVALID_SPEC, spec_fault(spec), now), report_cleanup=cleanup)
    candidates = snapshot.candidates or Candidates()
    choice = choose_nodes(spec.target, config.allowed_nodes, selected=candidates.nodes, target_pod=candidates.pod)
    status = status.model_copy(update={"target": choice.target})
    if choice.refusal:
        return replace(refuse(diagnosis, status, *choice.refusal, now), report_cleanup=cleanup)
    names = choice.node_names
    seconds = deadline_seconds(spec, len(names), config)
    why = shortfall(spec, len(names), config, seconds)
    message = f"started on {_listed(names)}" + (f"; {why}" if why else "")
    percent, progress = of_run([WAITING] * len(names))
    shown = [
        NodeResult(
            node_name=name,
            reason=Reason.PENDING,
            message=clip(message, MAX_SENTENCE),
            step=WAITING.step,
            progress_percent=WAITING.percent,
        )
        for name in names
    ]
    status = status.model_copy(
        update={
            "active_deadline_seconds": seconds,
            "nodes": NodeCounts(total=len(names), pending=len(names)),
            "progress_percent": percent,
            "progress": progress,
            "node_states": [NodeState(node_name=name, reason=Reason.PENDING) for name in names],
            "results": most_relevant(shown),
        }
    )
    plan = status_plan(diagnosis, status, while_running(Reason.PENDING, message, status.node_states), now)
    return replace(plan, report_cleanup=cleanup)


def _with_request(requested_at: str, before: MemoryDiagnosisStatus) -> list[str]:
    requests = [requested_at, *handled_requests(before)] if requested_at else handled_requests(before)
    return list(dict.fromkeys(requests))[:MAX_HANDLED_REQUESTS]


def _last_run(before: MemoryDiagnosisStatus) -> LastRun | None:
    """The run that has ended in `before`; if that run was cancelled by a suspension, the one before it."""
    if before.completion_time is None:
        return before.last_run
    found = {one.type: one for one in before.conditions}
    succeeded, leak = found.get(ConditionType.SUCCEEDED), found.get(ConditionType.LEAK_DETECTED)
    return LastRun(
        run_id=before.run_id or "",
        start_time=before.start_time,
        completion_time=before.completion_time,
        reason=succeeded.reason if succeeded else "",
        leak_detected=leak.status if leak else "",
        verdict=leak.reason if leak else "",
        suspect=before.suspect,
        summary=before.summary,
    )


def _previous_run_ids(before: MemoryDiagnosisStatus) -> list[str]:
    """Runs that may have reports, the latest first; a run that a suspension cancelled may have some as well."""
    ended = [before.run_id] if before.run_id else []
    return [*ended, *before.previous_run_ids][:MAX_PREVIOUS_RUNS]


def _report_cleanup(
    diagnosis: Diagnosis, status: MemoryDiagnosisStatus, config: OperatorConfig
) -> ReportCleanup | None:
    """When a run starts, the reports of all but the last few runs are deleted."""
    limit = config.keep_reports_of_runs
    ended = diagnosis.status.nodes
    if ended and ended.total > LARGE_RUN_NODES:
        limit = min(limit, 1)
    if len(status.previous_run_ids) <= limit:
        return None
    return ReportCleanup(diagnosis.metadata.uid, (status.run_id or "", *status.previous_run_ids[:limit]))


def refuse(diagnosis: Diagnosis, status: MemoryDiagnosisStatus, reason: Reason, why: str, now: datetime) -> Plan:
    """End a run that has no node to measure."""
    message = clip(why, MAX_SENTENCE)
    percent, progress = of_run([DONE])
    ended = status.model_copy(
        update={
            "completion_time": now,
            "summary": clip(f"{reason}: {why}", MAX_SENTENCE),
            "progress_percent": percent,
            "progress": progress,
            "results": [],
            "node_states": [],
        }
    )
    return status_plan(diagnosis, ended, when_refused(reason, message), now)


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:MAX_NODES_IN_MESSAGE])
    more = len(names) - MAX_NODES_IN_MESSAGE
    return f"{shown} and {more} more" if more > 0 else shown or "no node"
