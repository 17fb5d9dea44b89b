"""Where a diagnosis stands and what is to be done next: the one function that every event and every sweep calls.

All state is in the diagnosis's status and in its pods, so it can be called at any time, any number of times, by an
operator that has just been started. What it does twice has the same names and so happens once:

    run begins -> Pending (for a slot) -> runner pod -> Running -> result stored -> pod removed
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from memdiag_api.conditions import ConditionStatus, ConditionType, Reason
from memdiag_api.diagnosis import (
    FailOn,
    MemoryDiagnosisSpec,
    MemoryDiagnosisStatus,
    NodeCounts,
    NodeResult,
    ReportReference,
)
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide import naming
from memdiag_operator.decide.conditions import Finding, conditions, when_finished, when_suspended, while_running
from memdiag_operator.decide.node_run import NodeRun, Step
from memdiag_operator.decide.objects import Diagnosis, InvalidSpec, Pod
from memdiag_operator.decide.runner_state import Finished
from memdiag_operator.decide.sanitize import clip
from memdiag_operator.decide.size import fit
from memdiag_operator.decide.snapshot import Announcement, Plan, PodRemoval, Snapshot
from memdiag_operator.decide.target import spec_fault, target_nodes
from memdiag_operator.decide.wording import most_telling, run_sentence

Findings = dict[ConditionType, Finding]

MESSAGE_LIMIT = 1024
MAX_NODES_IN_MESSAGE = 4


def reconcile(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> Plan:
    """What is to be done for the diagnosis of `snapshot` at `now`; an empty plan says: nothing, for now."""
    diagnosis = snapshot.diagnosis
    if diagnosis.metadata.deletion_timestamp:
        return Plan()  # owner references take everything along
    if starts_anew(diagnosis):
        return _begin(snapshot, now)
    if diagnosis.is_finished:
        return _tidy(snapshot, now)
    if is_suspended(diagnosis):
        return _suspend(snapshot, now)
    fault = spec_fault(diagnosis.spec)
    if fault or isinstance(diagnosis.spec, InvalidSpec):
        return _refuse(snapshot, fault, now)
    return _advance(snapshot, diagnosis.spec, config, now)


def wants_slot(snapshot: Snapshot) -> bool:
    """Whether a runner is to be launched as soon as there is a slot for it, so that the fleet must be looked at."""
    spec = snapshot.diagnosis.spec
    stopped = isinstance(spec, InvalidSpec) or spec.suspend or spec.terminate
    return not stopped and any(node_run.waits_for_slot() for node_run in _node_runs(snapshot))


def runners_to_read(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> list[Pod]:
    """Runner pods of this run that have ended and whose result is not stored yet."""
    return [
        node_run.pod
        for node_run in _node_runs(snapshot)
        if node_run.pod and not node_run.is_settled and isinstance(node_run.state(config, now), Finished)
    ]


def is_settled(diagnosis: Diagnosis) -> bool:
    """Whether a sweep may pass over it: its run has ended, no other is asked for, no time to live runs."""
    spec = diagnosis.spec
    has_ttl = not isinstance(spec, InvalidSpec) and spec.ttl_seconds_after_finished is not None
    is_seen = diagnosis.status.observed_generation == diagnosis.metadata.generation
    return diagnosis.is_finished and is_seen and not has_ttl and not starts_anew(diagnosis)


def starts_anew(diagnosis: Diagnosis) -> bool:
    """Whether a run is to begin: the first, one after a suspension, or one that the annotation asks for."""
    status = diagnosis.status
    if is_suspended(diagnosis):
        return False
    if diagnosis.is_finished:
        return diagnosis.requested_at not in ("", status.last_handled_request)
    return status.start_time is None


def is_suspended(diagnosis: Diagnosis) -> bool:
    """Whether no runner may be started; `terminate` outranks `suspend`."""
    spec = diagnosis.spec
    return not isinstance(spec, InvalidSpec) and spec.suspend and not spec.terminate


def _node_runs(snapshot: Snapshot) -> list[NodeRun]:
    diagnosis, spec = snapshot.diagnosis, snapshot.diagnosis.spec
    idle = diagnosis.is_finished or starts_anew(diagnosis) or diagnosis.metadata.deletion_timestamp
    if idle or isinstance(spec, InvalidSpec):
        return []
    return [NodeRun(snapshot, spec, name) for name in target_nodes(spec)]


def _begin(snapshot: Snapshot, now: datetime) -> Plan:
    diagnosis = snapshot.diagnosis
    meta, requested_at = diagnosis.metadata, diagnosis.requested_at
    names = target_nodes(diagnosis.spec)
    message = f"the run on {_listed(names)} begins"
    status = MemoryDiagnosisStatus(
        run_id=naming.run_id(meta.uid, requested_at, diagnosis.status.run_id),
        last_handled_request=requested_at or None,
        start_time=now,
        nodes=NodeCounts(total=len(names), pending=len(names)),
        results=[NodeResult(node_name=name, reason=Reason.PENDING, message=message) for name in names],
        conditions=diagnosis.status.conditions,
    )
    return _plan(snapshot, status, while_running(Reason.PENDING, message), now)


def _suspend(snapshot: Snapshot, now: datetime) -> Plan:
    """No runner and no clock: the deadline does not run, and a new run begins afterwards."""
    status = snapshot.diagnosis.status.model_copy(update={"start_time": None, "results": [], "nodes": None})
    plan = _plan(snapshot, status, when_suspended(), now)
    return replace(plan, removals=_removals(snapshot.diagnosis, snapshot.pods))


def _tidy(snapshot: Snapshot, now: datetime) -> Plan:
    """After the end: runner pods may go, and the diagnosis too when its time to live is over."""
    diagnosis = snapshot.diagnosis
    spec, status = diagnosis.spec, diagnosis.status
    findings = {one.type: Finding(one.status, one.reason, one.message) for one in status.conditions}
    ttl_seconds = None if isinstance(spec, InvalidSpec) else spec.ttl_seconds_after_finished
    ended = status.completion_time
    return replace(
        _plan(snapshot, status, findings, now),
        removals=_removals(diagnosis, snapshot.pods),
        delete_diagnosis=bool(ended and ttl_seconds is not None and now >= ended + timedelta(seconds=ttl_seconds)),
    )


def _refuse(snapshot: Snapshot, fault: str, now: datetime) -> Plan:
    refusal = NodeResult(node_name="none", reason=Reason.INVALID_SPEC, message=clip(fault, MESSAGE_LIMIT))
    status = snapshot.diagnosis.status.model_copy(
        update={"completion_time": now, "summary": run_sentence([refusal]), "results": []}
    )
    return _plan(snapshot, status, when_finished([refusal], FailOn.NEVER, ""), now)


def _advance(snapshot: Snapshot, spec: MemoryDiagnosisSpec, config: OperatorConfig, now: datetime) -> Plan:
    diagnosis, status = snapshot.diagnosis, snapshot.diagnosis.status
    steps = [node_run.step(config, now) for node_run in _node_runs(snapshot)]
    results, truncated = fit([step.result for step in steps])
    update = {
        "nodes": _counts(steps),
        "results": results,
        "report_refs": _references(status.report_refs, steps),
        "truncated": truncated or status.truncated,
    }
    if all(step.is_settled for step in steps):
        summary, suspect = run_sentence(results), most_telling(results).suspect
        update |= {"completion_time": now, "summary": summary, "suspect": suspect or None}
        findings = when_finished(results, spec.fail_on, summary)
    else:
        findings = while_running(_reason(results), _progress(results))
    return replace(
        _plan(snapshot, status.model_copy(update=update), findings, now),
        reports=tuple(step.report for step in steps if step.report),
        launches=tuple(step.launch for step in steps if step.launch),
        stops=tuple(step.stop for step in steps if step.stop),
        # By the stored status, not by the new one: a pod stays until its result is safe.
        removals=_removals(diagnosis, [pod for pod in snapshot.pods if _is_done_with(diagnosis, pod)]),
    )


def _plan(snapshot: Snapshot, status: MemoryDiagnosisStatus, findings: Findings, now: datetime) -> Plan:
    before, generation = snapshot.diagnosis.status, snapshot.diagnosis.metadata.generation
    new = status.model_copy(
        update={
            "observed_generation": generation,
            "conditions": conditions(before.conditions, findings, generation, now),
        }
    )
    if new.to_json_object() == before.to_json_object():
        return Plan()
    return Plan(status=new, announcements=_announcements(snapshot.diagnosis, new))


def _announcements(diagnosis: Diagnosis, new: MemoryDiagnosisStatus) -> tuple[Announcement, ...]:
    """Events for what is new in `new`: a run's begin and its end."""
    before = diagnosis.status
    began = new.run_id != before.run_id
    ended = new.completion_time is not None and not diagnosis.is_finished
    if not began and not ended:
        return ()
    conditions_now = {one.type: one for one in new.conditions}
    succeeded, leak = conditions_now[ConditionType.SUCCEEDED], conditions_now[ConditionType.LEAK_DETECTED]
    if began:
        return (Announcement("Normal", "Started", f"Run {new.run_id}: {succeeded.message}"),)
    ended_well = succeeded.status is ConditionStatus.TRUE
    told = [Announcement("Normal" if ended_well else "Warning", succeeded.reason, succeeded.message)]
    if leak.status is ConditionStatus.TRUE:
        told.append(Announcement("Warning", leak.reason, new.suspect or leak.message))
    return tuple(told)


def _references(known: list[ReportReference], steps: list[Step]) -> list[ReportReference]:
    new = [
        ReportReference(name=step.report["metadata"]["name"], node_name=step.result.node_name)
        for step in steps
        if step.report
    ]
    return [*known, *(reference for reference in new if reference not in known)]


def _counts(steps: list[Step]) -> NodeCounts:
    by_reason = Counter(step.result.reason for step in steps)
    pending, running = by_reason[Reason.PENDING], by_reason[Reason.RUNNING]
    succeeded = by_reason[Reason.COMPLETED]
    return NodeCounts(
        total=len(steps),
        pending=pending,
        running=running,
        succeeded=succeeded,
        failed=len(steps) - pending - running - succeeded,
    )


def _reason(results: list[NodeResult]) -> Reason:
    return Reason.RUNNING if any(result.reason != Reason.PENDING for result in results) else Reason.PENDING


def _progress(results: list[NodeResult]) -> str:
    active = [result for result in results if result.reason in (Reason.PENDING, Reason.RUNNING)]
    told = "; ".join(result.message for result in active[:MAX_NODES_IN_MESSAGE])
    return told if len(results) == 1 else f"{len(results) - len(active)} of {len(results)} nodes done; {told}"


def _is_done_with(diagnosis: Diagnosis, pod: Pod) -> bool:
    status = diagnosis.status
    if pod.metadata.labels.get(naming.RUN_ID_LABEL) != status.run_id:
        return True
    node_name = pod.metadata.annotations.get(naming.NODE_ANNOTATION)
    return any(
        result.node_name == node_name and result.reason not in (Reason.PENDING, Reason.RUNNING)
        for result in status.results
    )


def _removals(diagnosis: Diagnosis, pods: Iterable[Pod]) -> tuple[PodRemoval, ...]:
    """Those of `pods` that are not on their way already; on a lost node no kubelet is there to see them off."""
    lost = {one.node_name for one in diagnosis.status.results if one.reason == Reason.NODE_LOST}
    marked = [(pod.metadata, pod.metadata.annotations.get(naming.NODE_ANNOTATION) in lost) for pod in pods]
    return tuple(
        PodRemoval(meta.name, meta.uid, force=is_lost)
        for meta, is_lost in marked
        if is_lost or meta.deletion_timestamp is None
    )


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:MAX_NODES_IN_MESSAGE])
    more = len(names) - MAX_NODES_IN_MESSAGE
    return f"{shown} and {more} more" if more > 0 else shown or "no node"
