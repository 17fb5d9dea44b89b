"""How much may be in progress at once: which run starts, which waits and what it says, and the cost of deciding it."""

from typing import Any

import pytest

from memdiag_api.conditions import ConditionType, Reason
from memdiag_api.diagnosis import NodeResult
from memdiag_operator.cluster.store import Cache
from memdiag_operator.config import LimitSettings, OperatorConfig
from memdiag_operator.decide.claims import claim_of
from memdiag_operator.decide.limits import Load, held_back, load, may_start, why_it_waits
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.reconcile import reconcile
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.kube.objects import Diagnosis
from support.kubernetes_objects import CONFIG, NODE, NOW, ago, diagnosis, running_status, timestamp

LIMITS = LimitSettings(unfinished_diagnoses=3, node_runs=1000)
WHY = why_it_waits(LIMITS)


def new(name: str, age: float = 10, *, nodes: int | None = None, **fields: Any) -> Diagnosis:
    """A diagnosis that has not started, created `age` seconds ago."""
    target: dict[str, Any] = {"nodeName": NODE}
    if nodes:
        target = {"nodeSelector": {"matchLabels": {"a": "b"}}, "maxNodes": nodes}
    made = diagnosis(name=name, uid=f"uid-{name}", spec={"target": target, **fields.pop("spec", {})}, **fields)
    return made.model_copy(
        update={"metadata": made.metadata.model_copy(update={"creation_timestamp": ago(age)})},
    )


def under_way(name: str, unsettled: int = 1, settled: int = 0) -> Diagnosis:
    reasons = ["Pending"] * unsettled + ["Completed"] * settled
    states = [{"nodeName": f"{name}-{number}", "reason": reason} for number, reason in enumerate(reasons)]
    return new(name, 100, nodes=unsettled + settled, status={**running_status(), "results": [], "nodeStates": states})


def startable(*diagnoses: Diagnosis, starting: tuple[str, ...] = ()) -> list[str]:
    """Names of those that may start; both functions must agree."""
    claims = [claim_of(one) for one in diagnoses]
    held = held_back(claims, starting, LIMITS)
    wanting = [claim for claim in claims if claim.wants_to_start and claim.name not in starting]
    assert {claim.name for claim in wanting if not may_start(claim, claims, starting, LIMITS)} == held
    return sorted(claim.name for claim in wanting if claim.name not in held)


def test_the_oldest_start_first_and_no_more_than_the_limit() -> None:
    assert startable(new("c", 1), new("a", 3), new("b", 2), under_way("x"), under_way("y")) == ["a"]
    assert startable(new("c", 1), new("a", 3), new("b", 2)) == ["a", "b", "c"]


def test_those_that_were_created_together_go_by_name() -> None:
    assert startable(new("b"), new("a"), under_way("x"), under_way("y")) == ["a"]


def test_node_runs_count_as_they_may_become_and_then_as_they_are_left() -> None:
    assert startable(new("a", nodes=300), under_way("x", 701)) == []
    assert startable(new("a", nodes=300), under_way("x", 700, settled=300)) == ["a"]


def test_a_large_one_that_does_not_fit_is_not_overtaken_by_smaller_ones() -> None:
    large, small = new("large", 9, nodes=1000), new("small", 8)
    assert startable(large, small, under_way("x")) == []
    assert startable(large, small) == ["large"]


def test_the_largest_diagnosis_fits_alone() -> None:
    assert startable(new("a", nodes=1000)) == ["a"]
    with pytest.raises(ValueError, match="node_runs"):
        LimitSettings(node_runs=999)


def test_those_that_start_right_now_are_counted_before_their_status_says_so() -> None:
    waiting = [new("a", 4), new("b", 3), new("c", 2), new("d", 1)]
    assert startable(*waiting, starting=("a", "b")) == ["c"]
    assert startable(*waiting, under_way("x"), starting=("a", "b")) == []


def test_one_that_ends_as_it_starts_takes_no_place() -> None:
    full = (under_way("x"), under_way("y"), under_way("z"))
    for spec in ({"terminate": True}, {"suspend": True}, {"topN": "many"}):
        assert not claim_of(new("a", spec=spec)).wants_to_start
    assert load([claim_of(one) for one in (*full, new("a"))]) == Load(3, 3)


# --- what it says -----------------------------------------------------------------------------------------------------


def reported(plan: Plan, kind: ConditionType) -> tuple[str, str, str]:
    assert plan.status
    (found,) = [one for one in plan.status.conditions if one.type is kind]
    return found.status, found.reason, found.message


def look(one: Diagnosis, why: str = WHY) -> tuple[Plan, Diagnosis]:
    """What is decided while the limit is reached, and the diagnosis afterwards."""
    plan = reconcile(Snapshot(diagnosis=one, limit_reached=why), CONFIG, NOW)
    return plan, one.model_copy(update={"status": plan.status}) if plan.status else one


def test_one_that_may_not_start_says_why_once_and_no_deadline_runs() -> None:
    plan, waits = look(new("a"))
    assert reported(plan, ConditionType.SUCCEEDED) == ("Unknown", "LimitReached", WHY)
    assert reported(plan, ConditionType.RECONCILING)[:2] == ("True", "LimitReached")
    assert "3 diagnoses (limits.unfinishedDiagnoses" in WHY
    assert "1000 node runs (limits.nodeRuns)" in WHY
    assert plan == Plan(status=plan.status)
    assert (waits.status.start_time, waits.status.run_id) == (None, None)
    assert look(waits)[0] == Plan()
    claim = claim_of(waits)
    assert (claim.wants_to_start, claim.says_limit_reached, claim.is_under_way) == (True, True, False)
    started = reconcile(Snapshot(diagnosis=waits), CONFIG, NOW)
    assert reported(started, ConditionType.SUCCEEDED)[:2] == ("Unknown", "Pending")
    assert started.status
    assert started.status.start_time == NOW


def finished(**fields: Any) -> Diagnosis:
    result = NodeResult(node_name=NODE, reason="NodeLost", message="gone")
    status = running_status(result=result, completionTime=timestamp(NOW), nodeStates=[], **fields)
    ended = reconcile(Snapshot(diagnosis=diagnosis(status=running_status(started=ago(9999)))), CONFIG, NOW).status
    assert ended
    conditions = [condition.to_json_object() for condition in ended.conditions]
    return diagnosis(status={**status, "conditions": conditions})


def test_a_rerun_that_has_to_wait_leaves_the_last_answer_and_a_withdrawn_one_no_trace() -> None:
    once = finished()
    before = {one.type: (one.status, one.reason) for one in once.status.conditions}
    assert before[ConditionType.SUCCEEDED] == ("False", "DeadlineExceeded")
    asked = once.model_copy(
        update={"metadata": once.metadata.model_copy(update={"annotations": {"memdiag.dev/requestedAt": "again"}})}
    )
    plan, waits = look(asked)
    assert reported(plan, ConditionType.SUCCEEDED)[:2] == before[ConditionType.SUCCEEDED]
    assert reported(plan, ConditionType.RECONCILING) == ("True", "LimitReached", WHY)
    assert reported(plan, ConditionType.STALLED)[:2] == ("False", "LimitReached")
    assert waits.status.completion_time == once.status.completion_time
    assert claim_of(waits).says_limit_reached

    withdrawn = waits.model_copy(update={"metadata": once.metadata})
    restored = reconcile(Snapshot(diagnosis=withdrawn), CONFIG, NOW)
    assert restored.status
    assert {one.type: (one.status, one.reason) for one in restored.status.conditions} == before
    started = reconcile(Snapshot(diagnosis=waits), CONFIG, NOW).status
    assert started
    assert started.last_run
    assert started.last_run.reason == Reason.DEADLINE_EXCEEDED


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_what_others_write_into_a_diagnosis_is_not_kept() -> None:
    others = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 100_000, "memdiag.dev/requestedAt": "now"}
    cache = Cache()
    cache.diagnoses.put(diagnosis(annotations=others))
    kept = cache.diagnoses.get("where")
    assert kept
    assert kept.metadata.annotations == {"memdiag.dev/requestedAt": "now"}


def test_limits_have_defaults_that_nobody_meets_by_chance() -> None:
    limits = OperatorConfig(runner=CONFIG.runner).limits
    assert (limits.unfinished_diagnoses, limits.node_runs, limits.stored_reports_bytes) == (500, 20_000, 256 << 20)
