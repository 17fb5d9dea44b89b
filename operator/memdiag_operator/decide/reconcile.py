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
    MAX_HANDLED_REQUESTS,
    LastRun,
    MemoryDiagnosisSpec,
    MemoryDiagnosisStatus,
    NodeCounts,
    NodeResult,
    NodeState,
    ReportReference,
)
from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.deadline import deadline_seconds, shortfall
from memdiag_operator.decide.node_run import NodeRun, Step
from memdiag_operator.decide.runner_state import Finished, starts_slowly
from memdiag_operator.decide.snapshot import Announcement, Plan, PodRemoval, ReportCleanup, Snapshot
from memdiag_operator.decide.stored_reports import said_size_bytes
from memdiag_operator.decide.target import UNSETTLED, choose_nodes, run_states, spec_fault
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import Diagnosis, InvalidSpec, Pod
from memdiag_operator.results.node_result import MAX_COVERAGE
from memdiag_operator.results.sanitize import clip
from memdiag_operator.results.wording import run_sentence, run_suspect
from memdiag_operator.status.conditions import (
    Finding,
    after_the_end,
    conditions,
    when_finished,
    when_refused,
    when_suspended,
    while_held_back,
    while_running,
)
from memdiag_operator.status.progress import DONE, WAITING, of_run
from memdiag_operator.status.trim import fit, most_telling

Findings = dict[ConditionType, Finding]

MESSAGE_LIMIT = 1024
MAX_NODES_IN_MESSAGE = 4
MAX_PREVIOUS_RUNS = 20
LARGE_RUN_NODES = 100
"""Of a run on more nodes, whose reports may take 250 MiB, those of one former run are kept."""


def reconcile(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> Plan:
    """What is to be done for the diagnosis of `snapshot` at `now`; an empty plan says: nothing, for now."""
    diagnosis = snapshot.diagnosis
    if diagnosis.metadata.deletion_timestamp:
        return Plan()  # owner references take everything along
    if starts_anew(diagnosis):
        return _hold_back(snapshot, now) if snapshot.limit_reached else _begin(snapshot, config, now)
    if diagnosis.is_finished:
        return _tidy(snapshot, now)
    if is_suspended(diagnosis):
        return _suspend(snapshot, now)
    if isinstance(diagnosis.spec, InvalidSpec):
        return _refuse(snapshot, diagnosis.status, Reason.INVALID_SPEC, spec_fault(diagnosis.spec), now)
    return _advance(snapshot, diagnosis.spec, config, now)


def wants_slot(snapshot: Snapshot) -> bool:
    """Whether a runner is to be launched as soon as there is a slot for it, so that the fleet must be looked at."""
    spec = snapshot.diagnosis.spec
    stopped = isinstance(spec, InvalidSpec) or spec.suspend or spec.terminate
    return not stopped and any(node_run.waits_for_slot for node_run in _node_runs(snapshot))


def runners_to_read(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> list[Pod]:
    """Runner pods of this run that have ended and whose result is not stored yet."""
    return [
        node_run.pod
        for node_run in _node_runs(snapshot)
        if node_run.pod and not node_run.is_settled and isinstance(node_run.runner_state(config, now), Finished)
    ]


def slow_starters(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> list[Pod]:
    """Runner pods of this run that a kubelet should have started by now: their events say what is wrong."""
    return [
        node_run.pod
        for node_run in _node_runs(snapshot)
        if node_run.pod and not node_run.is_settled and starts_slowly(node_run.pod, now, config.grace)
    ]


def nodes_to_read(diagnosis: Diagnosis, pods: Iterable[Pod], config: OperatorConfig) -> list[str]:
    """Those of the run's nodes that a decision needs to know now: with a runner, or among the first in line for one.

    The rest of a thousand is left alone until it is their turn (`nodes_to_launch_on`).
    """
    with_runner: list[str] = []
    in_line: list[str] = []
    for node_run in _node_runs(Snapshot(diagnosis=diagnosis, pods=tuple(pods))):
        if not node_run.is_settled:
            is_in_line = node_run.pod is None and node_run.state.reason == Reason.PENDING
            (in_line if is_in_line else with_runner).append(node_run.node_name)
    return with_runner + in_line[: config.max_concurrent_runners]


def nodes_to_launch_on(snapshot: Snapshot) -> list[str]:
    """The run's nodes that get a slot now, if they turn out to be as they should."""
    if snapshot.allotment is None:
        return []
    uid = snapshot.diagnosis.metadata.uid
    return sorted(slot.node_name for slot in snapshot.allotment.admitted if slot.diagnosis_uid == uid)


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
        return diagnosis.requested_at not in ("", *_handled_requests(status))
    if isinstance(diagnosis.spec, InvalidSpec):
        return status.start_time is None
    return status.start_time is None or not run_states(diagnosis)


def is_suspended(diagnosis: Diagnosis) -> bool:
    """Whether no runner may be started; `terminate` outranks `suspend`."""
    spec = diagnosis.spec
    return not isinstance(spec, InvalidSpec) and spec.suspend and not spec.terminate


def _node_runs(snapshot: Snapshot) -> list[NodeRun]:
    diagnosis, spec = snapshot.diagnosis, snapshot.diagnosis.spec
    idle = diagnosis.is_finished or starts_anew(diagnosis) or diagnosis.metadata.deletion_timestamp
    if idle or isinstance(spec, InvalidSpec):
        return []
    meta, run = diagnosis.metadata, diagnosis.status.run_id or ""
    states = run_states(diagnosis)
    stored = {result.node_name: result for result in diagnosis.status.results}
    pods = {pod.metadata.name: pod for pod in snapshot.pods}
    return [
        NodeRun(
            snapshot=snapshot,
            spec=spec,
            state=state,
            stored=stored.get(name),
            pod=pods.get(naming.child_name(meta.name, meta.uid, run, name)),
            nodes_total=len(states),
        )
        for name, state in states.items()
    ]


def _handled_requests(status: MemoryDiagnosisStatus) -> list[str]:
    """Requests that had their run, the latest first; memdiag 0.1.0 remembered the last one only."""
    last = [status.last_handled_request] if status.last_handled_request else []
    return list(dict.fromkeys([*last, *status.handled_requests]))[:MAX_HANDLED_REQUESTS]


def _hold_back(snapshot: Snapshot, now: datetime) -> Plan:
    """No run begins and no deadline runs; the answer of the run before stays."""
    diagnosis = snapshot.diagnosis
    findings = while_held_back(snapshot.limit_reached, diagnosis.status.conditions, is_rerun=diagnosis.is_finished)
    plan = _plan(snapshot, diagnosis.status, findings, now)
    return replace(plan, removals=_removals(diagnosis, snapshot.pods))


def _begin(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> Plan:
    """Choose the nodes, once for the whole run, and remember the run before."""
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
        return replace(_refuse(snapshot, status, Reason.INVALID_SPEC, spec_fault(spec), now), report_cleanup=cleanup)
    choice = choose_nodes(spec.target, config.allowed_nodes, selected=snapshot.selected, target_pod=snapshot.target_pod)
    status = status.model_copy(update={"target": choice.target})
    if choice.refusal:
        return replace(_refuse(snapshot, status, *choice.refusal, now), report_cleanup=cleanup)
    names = choice.node_names
    seconds = deadline_seconds(spec, len(names), config)
    why = shortfall(spec, len(names), config, seconds)
    message = f"the run on {_listed(names)} begins" + (f"; {why}" if why else "")
    percent, progress = of_run([WAITING] * len(names))
    shown = [
        NodeResult(
            node_name=name,
            reason=Reason.PENDING,
            message=clip(message, MESSAGE_LIMIT),
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
            "results": most_telling(shown),
        }
    )
    plan = _plan(snapshot, status, while_running(Reason.PENDING, message, status.node_states), now)
    return replace(plan, report_cleanup=cleanup)


def _with_request(requested_at: str, before: MemoryDiagnosisStatus) -> list[str]:
    requests = [requested_at, *_handled_requests(before)] if requested_at else _handled_requests(before)
    return list(dict.fromkeys(requests))[:MAX_HANDLED_REQUESTS]


def _last_run(before: MemoryDiagnosisStatus) -> LastRun | None:
    """The run that has ended in `before`; when it was given up by a suspension, the one before that."""
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
    """Runs that may have reports, the latest first; one that a suspension has given up may have some as well."""
    ended = [before.run_id] if before.run_id else []
    return [*ended, *before.previous_run_ids][:MAX_PREVIOUS_RUNS]


def _report_cleanup(
    diagnosis: Diagnosis, status: MemoryDiagnosisStatus, config: OperatorConfig
) -> ReportCleanup | None:
    """As a run begins, reports of all but the last few runs go."""
    limit = config.keep_reports_of_runs
    ended = diagnosis.status.nodes
    if ended and ended.total > LARGE_RUN_NODES:
        limit = min(limit, 1)
    if len(status.previous_run_ids) <= limit:
        return None
    return ReportCleanup(diagnosis.metadata.uid, (status.run_id or "", *status.previous_run_ids[:limit]))


def _suspend(snapshot: Snapshot, now: datetime) -> Plan:
    """No runner and no clock: the deadline does not run, and a new run begins afterwards."""
    given_up: dict[str, object] = {"start_time": None, "results": [], "node_states": [], "nodes": None}
    given_up |= {"progress": None, "progress_percent": None, "active_deadline_seconds": None}
    status = snapshot.diagnosis.status.model_copy(update=given_up)
    plan = _plan(snapshot, status, when_suspended(), now)
    return replace(plan, removals=_removals(snapshot.diagnosis, snapshot.pods))


def _tidy(snapshot: Snapshot, now: datetime) -> Plan:
    """After the end: runner pods may go, and the diagnosis too when its time to live is over."""
    diagnosis = snapshot.diagnosis
    spec, status = diagnosis.spec, diagnosis.status
    ttl_seconds = None if isinstance(spec, InvalidSpec) else spec.ttl_seconds_after_finished
    ended = status.completion_time
    return replace(
        _plan(snapshot, status, after_the_end(status.conditions), now),
        removals=_removals(diagnosis, snapshot.pods),
        delete_diagnosis=bool(ended and ttl_seconds is not None and now >= ended + timedelta(seconds=ttl_seconds)),
    )


def _refuse(snapshot: Snapshot, status: MemoryDiagnosisStatus, reason: Reason, why: str, now: datetime) -> Plan:
    """The end of a run that has no node to look at."""
    message = clip(why, MESSAGE_LIMIT)
    percent, progress = of_run([DONE])
    ended = status.model_copy(
        update={
            "completion_time": now,
            "summary": clip(f"{reason}: {why}", MESSAGE_LIMIT),
            "progress_percent": percent,
            "progress": progress,
            "results": [],
            "node_states": [],
        }
    )
    return _plan(snapshot, ended, when_refused(reason, message), now)


def _advance(snapshot: Snapshot, spec: MemoryDiagnosisSpec, config: OperatorConfig, now: datetime) -> Plan:
    diagnosis, status = snapshot.diagnosis, snapshot.diagnosis.status
    stored = diagnosis.model_copy(update={"status": snapshot.stored}) if snapshot.stored else diagnosis
    steps = _within_budget(
        [node_run.step(config, now, snapshot.allotment) for node_run in _node_runs(snapshot)], snapshot, config
    )
    states = [step.state for step in steps]
    bare = NodeResult(node_name=states[0].node_name, reason=states[0].reason)
    known = [step.result for step in steps if step.result] or [bare]
    shown = most_telling(known)
    results, shortened = fit(shown)
    left_off = any(step.is_settled and step.result not in shown for step in steps)
    percent, progress = of_run([step.progress for step in steps])
    update = {
        "target": status.target or choose_nodes(spec.target, config.allowed_nodes).target,
        "nodes": _counts(states),
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
        _plan(snapshot, status.model_copy(update=update), findings, now),
        reports=tuple(step.report for step in steps if step.report),
        launches=tuple(step.launch for step in steps if step.launch),
        stops=tuple(step.stop for step in steps if step.stop),
        # By the stored status, not by the new one: a pod stays until its result is safe.
        removals=_removals(stored, _done_with(stored, snapshot.pods)),
    )


def _within_budget(steps: list[Step], snapshot: Snapshot, config: OperatorConfig) -> list[Step]:
    """`steps` without the reports that the budget has no room for; the status keeps the top of what they say."""
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
        f"no report is stored: those of unfinished runs fill limits.storedReportsMebibytes, "
        f"{config.limits.stored_reports_mebibytes} in the operator's configuration"
    )
    result = step.result
    if result:
        result = result.model_copy(update={"coverage": [why, *result.coverage][:MAX_COVERAGE]})
    return replace(step, report=None, result=result)


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
    """Events for what is new in `new`: a run's begin, its first runner at work, its end, what to do about a leak."""
    before = diagnosis.status
    began = new.run_id != before.run_id
    ended = new.completion_time is not None and (began or not diagnosis.is_finished)
    if not began and not ended:
        return () if diagnosis.is_finished else _first_at_work(before, new)
    conditions_now = {one.type: one for one in new.conditions}
    succeeded, leak = conditions_now[ConditionType.SUCCEEDED], conditions_now[ConditionType.LEAK_DETECTED]
    if began and not ended:
        return (Announcement("Normal", "Started", f"Run {new.run_id}: {succeeded.message}"),)
    ended_well = succeeded.status is ConditionStatus.TRUE
    told = [Announcement("Normal" if ended_well else "Warning", succeeded.reason, succeeded.message)]
    if leak.status is ConditionStatus.TRUE:
        what = new.suspect or leak.message
        told.append(Announcement("Warning", leak.reason, f"{what.rstrip('.')}. {_advice(new)}".strip()))
    return tuple(told)


def _first_at_work(before: MemoryDiagnosisStatus, new: MemoryDiagnosisStatus) -> tuple[Announcement, ...]:
    """Once for a run, however many nodes it has."""
    if any(one.reason != Reason.PENDING for one in before.results):
        return ()
    return tuple(
        Announcement("Normal", Reason.RUNNING, f"Runner pod {one.pod_name} is at work on node {one.node_name}.")
        for one in new.results
        if one.reason == Reason.RUNNING
    )[:1]


def _advice(status: MemoryDiagnosisStatus) -> str:
    telling = [one.verdict.advice for one in most_telling(status.results) if one.verdict]
    return telling[0] if telling else ""


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


def _counts(states: list[NodeState]) -> NodeCounts:
    by_reason = Counter(state.reason for state in states)
    pending, running = by_reason[Reason.PENDING], by_reason[Reason.RUNNING]
    succeeded = by_reason[Reason.COMPLETED]
    return NodeCounts(
        total=len(states),
        pending=pending,
        running=running,
        succeeded=succeeded,
        failed=len(states) - pending - running - succeeded,
    )


def _reason(states: list[NodeState]) -> Reason:
    return Reason.RUNNING if any(state.reason != Reason.PENDING for state in states) else Reason.PENDING


def _progress(states: list[NodeState], known: list[NodeResult]) -> str:
    """How far the run is: what its runners do, or without any what the first in line waits for."""
    under_way = [result for result in known if result.reason == Reason.RUNNING]
    waiting = [result for result in known if result.reason == Reason.PENDING]
    told = "; ".join(result.message for result in under_way[:MAX_NODES_IN_MESSAGE] or waiting[:1])
    settled = sum(state.reason not in UNSETTLED for state in states)
    return told if len(states) == 1 else f"{settled} of {len(states)} nodes done; {told}"


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
    """Those of `pods` that are not on their way already; on a lost node no kubelet is there to see them off."""
    lost = {name for name, state in run_states(diagnosis).items() if state.reason == Reason.NODE_LOST}
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
