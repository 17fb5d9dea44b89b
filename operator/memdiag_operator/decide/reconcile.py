"""The next step of a diagnosis, once everything that it depends on is known (see `decision`).

All state is in the diagnosis's status and in its pods, so it can be called at any time, any number of times, by an
operator that has just been started. What it creates twice has the same name and so is created once:

    run starts -> Pending (for a slot) -> runner pod -> Running -> result stored -> pod removed
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import MemoryDiagnosisSpec, NodeResult, NodeState, ReportReference
from memdiag_api.limits import MAX_COVERAGE
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.lifecycle import is_suspended, starts_run
from memdiag_operator.decide.node_run import Step, node_runs
from memdiag_operator.decide.plan import Plan, PodRemoval, status_plan
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.decide.start import MAX_NODES_IN_MESSAGE, refuse, start
from memdiag_operator.decide.stored_reports import said_size_bytes
from memdiag_operator.decide.target import choose_nodes, spec_fault
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, InvalidSpec, Pod
from memdiag_operator.results.wording import run_sentence, run_suspect
from memdiag_operator.status.conditions import (
    after_the_end,
    when_finished,
    when_suspended,
    while_held_back,
    while_running,
)
from memdiag_operator.status.progress import of_run
from memdiag_operator.status.states import UNSETTLED, node_counts, run_states
from memdiag_operator.status.trim import fit, most_relevant


def reconcile(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> Plan:
    """What to do for the diagnosis of `snapshot` at `now`; an empty plan means nothing, for now."""
    diagnosis = snapshot.diagnosis
    if diagnosis.metadata.deletion_timestamp:
        return Plan()  # owner references take everything along
    if starts_run(diagnosis):
        why = snapshot.limit_reached
        return _hold_back(snapshot, why, now) if why else start(snapshot, config, now)
    if diagnosis.is_finished:
        return _tidy(snapshot, now)
    if is_suspended(diagnosis):
        return _suspend(snapshot, now)
    if isinstance(diagnosis.spec, InvalidSpec):
        return refuse(diagnosis, diagnosis.status, Reason.INVALID_SPEC, spec_fault(diagnosis.spec), now)
    return _advance(snapshot, diagnosis.spec, config, now)


def _hold_back(snapshot: Snapshot, why: str, now: datetime) -> Plan:
    """No run starts and no deadline runs; the result of the previous run stays."""
    diagnosis = snapshot.diagnosis
    findings = while_held_back(why, diagnosis.status.conditions, is_rerun=diagnosis.is_finished)
    plan = status_plan(diagnosis, diagnosis.status, findings, now)
    return replace(plan, removals=_removals(diagnosis, snapshot.pods))


def _suspend(snapshot: Snapshot, now: datetime) -> Plan:
    """Stop the runners and the clock: the deadline does not run, and a new run starts afterwards."""
    given_up: dict[str, object] = {"start_time": None, "results": [], "node_states": [], "nodes": None}
    given_up |= {"progress": None, "progress_percent": None, "active_deadline_seconds": None}
    status = snapshot.diagnosis.status.model_copy(update=given_up)
    plan = status_plan(snapshot.diagnosis, status, when_suspended(), now)
    return replace(plan, removals=_removals(snapshot.diagnosis, snapshot.pods))


def _tidy(snapshot: Snapshot, now: datetime) -> Plan:
    """After the end: remove runner pods, and delete the diagnosis when its time to live is over."""
    diagnosis = snapshot.diagnosis
    spec, status = diagnosis.spec, diagnosis.status
    ttl_seconds = None if isinstance(spec, InvalidSpec) else spec.ttl_seconds_after_finished
    ended = status.completion_time
    return replace(
        status_plan(diagnosis, status, after_the_end(status.conditions), now),
        removals=_removals(diagnosis, snapshot.pods),
        delete_diagnosis=bool(ended and ttl_seconds is not None and now >= ended + timedelta(seconds=ttl_seconds)),
    )


def _advance(snapshot: Snapshot, spec: MemoryDiagnosisSpec, config: OperatorConfig, now: datetime) -> Plan:
    diagnosis, status = snapshot.diagnosis, snapshot.diagnosis.status
    stored = diagnosis.model_copy(update={"status": snapshot.stored}) if snapshot.stored else diagnosis
    steps = _within_budget(
        [node_run.step(config, now, snapshot.allotment) for node_run in node_runs(snapshot)], snapshot, config
    )
    states = [step.state for step in steps]
    bare = NodeResult(node_name=states[0].node_name, reason=states[0].reason)
    known = [step.result for step in steps if step.result] or [bare]
    shown = most_relevant(known)
    results, shortened = fit(shown)
    left_off = any(step.is_settled and step.result not in shown for step in steps)
    percent, progress = of_run([step.progress for step in steps])
    update = {
        "target": status.target or choose_nodes(spec.target, config.allowed_nodes).target,
        "nodes": node_counts(states),
        "progress_percent": percent,
        "progress": progress,
        "node_states": states,
        "suspect": run_suspect(known, states) or None,
        "results": results,
        "report_refs": _references(status.report_refs, steps, results),
        "truncated": shortened or left_off or status.truncated,
    }
    if all(step.is_settled for step in steps):
        summary = run_sentence(known, states)
        update |= {"completion_time": now, "summary": summary}
        failures = [one.message for one in known if one.reason != Reason.COMPLETED]
        findings = when_finished(states, spec.fail_on, summary, failures)
    else:
        findings = while_running(_reason(states), _progress(states, known), states)
    return replace(
        status_plan(diagnosis, status.model_copy(update=update), findings, now),
        reports=tuple(step.report for step in steps if step.report),
        launches=tuple(step.launch for step in steps if step.launch),
        stops=tuple(step.stop for step in steps if step.stop),
        # By the stored status, not the new one: a pod stays until its result is stored.
        removals=_removals(stored, _done_with(stored, snapshot.pods)),
    )


def _within_budget(steps: list[Step], snapshot: Snapshot, config: OperatorConfig) -> list[Step]:
    """`steps` without the reports that exceed the budget; the status keeps the most important part of them."""
    room_bytes = snapshot.report_room_bytes
    kept = []
    for step in steps:
        if step.report:
            room_bytes -= said_size_bytes(step.report["metadata"]["annotations"])
            kept.append(step if room_bytes >= 0 else _without_report(step, config))
        else:
            kept.append(step)
    return kept


def _without_report(step: Step, config: OperatorConfig) -> Step:
    why = (
        f"no report was stored: reports of unfinished runs use up limits.storedReportsMebibytes "
        f"({config.limits.stored_reports_mebibytes}) of the operator's configuration"
    )
    result = step.result
    if result:
        result = result.model_copy(update={"coverage": [why, *result.coverage][:MAX_COVERAGE]})
    return replace(step, report=None, result=result)


def _references(known: list[ReportReference], steps: list[Step], results: list[NodeResult]) -> list[ReportReference]:
    """References to the reports of the nodes that are shown: a thousand would be larger than all the rest."""
    new = [
        ReportReference(name=step.report["metadata"]["name"], node_name=step.state.node_name)
        for step in steps
        if step.report
    ]
    shown = {result.node_name for result in results}
    all_known = [*known, *(reference for reference in new if reference not in known)]
    return [reference for reference in all_known if reference.node_name in shown]


def _reason(states: list[NodeState]) -> Reason:
    return Reason.RUNNING if any(state.reason != Reason.PENDING for state in states) else Reason.PENDING


def _progress(states: list[NodeState], known: list[NodeResult]) -> str:
    """How far the run is: what its runners do, or if there are none, what the first node in line waits for."""
    under_way = [result for result in known if result.reason == Reason.RUNNING]
    waiting = [result for result in known if result.reason == Reason.PENDING]
    shown = "; ".join(result.message for result in under_way[:MAX_NODES_IN_MESSAGE] or waiting[:1])
    settled = sum(state.reason not in UNSETTLED for state in states)
    return shown if len(states) == 1 else f"{settled} of {len(states)} nodes done; {shown}"


def _done_with(diagnosis: Diagnosis, pods: Iterable[Pod]) -> list[Pod]:
    """Pods of former runs, and those whose node's result is stored."""
    settled = {name for name, state in run_states(diagnosis).items() if state.reason not in UNSETTLED}
    return [
        pod
        for pod in pods
        if pod.metadata.labels.get(naming.RUN_ID_LABEL) != diagnosis.status.run_id
        or pod.metadata.annotations.get(naming.NODE_ANNOTATION) in settled
    ]


def _removals(diagnosis: Diagnosis, pods: Iterable[Pod]) -> tuple[PodRemoval, ...]:
    """Those of `pods` that are not being deleted yet; on a lost node there is no kubelet to end them."""
    lost = {name for name, state in run_states(diagnosis).items() if state.reason == Reason.NODE_LOST}
    marked = [(pod.metadata, pod.metadata.annotations.get(naming.NODE_ANNOTATION) in lost) for pod in pods]
    return tuple(
        PodRemoval(meta.name, meta.uid, force=is_lost)
        for meta, is_lost in marked
        if is_lost or meta.deletion_timestamp is None
    )
