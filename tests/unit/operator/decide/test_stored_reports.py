"""Reports of the whole cluster keep to a budget: the oldest runs go, unfinished ones never."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from memdiag_operator.decide.reconcile import reconcile
from memdiag_operator.decide.snapshot import Snapshot
from memdiag_operator.decide.stored_reports import (
    UNKNOWN_SIZE_BYTES,
    Run,
    StoredReport,
    runs_to_delete,
    stored_bytes,
    stored_report,
    unfinished_runs,
)
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import ObjectMeta
from memdiag_operator.results.attribution import attribute
from memdiag_operator.results.receive import RunnerOutput
from memdiag_operator.results.report import report, size_of
from support.clockwork import of_many
from support.evidence import evidence_with
from support.kubernetes_objects import (
    CONFIG,
    NODE,
    NOW,
    RUN,
    UID,
    ago,
    delivered,
    diagnosis,
    fleet,
    node,
    pod,
    running_status,
    terminated,
)

EVIDENCE = evidence_with(run_id=RUN)
OLD, MIDDLE, NEW = (Run("uid", name) for name in ("old", "middle", "new"))


def stored(run: Run, age: float, size_bytes: int = 100, number: int = 0) -> StoredReport:
    return StoredReport(f"{run.run_id}-{number}", run, ago(age), size_bytes)


def test_the_oldest_run_goes_first_and_whole() -> None:
    reports = [stored(NEW, 1), stored(OLD, 30), stored(OLD, 2, number=1), stored(MIDDLE, 20)]
    assert list(runs_to_delete(reports, (), 400)) == []
    assert list(runs_to_delete(reports, (), 399)) == [OLD]
    assert list(runs_to_delete(reports, (), 199)) == [OLD, MIDDLE]


def test_an_unfinished_run_keeps_its_reports_at_any_age() -> None:
    reports = [stored(OLD, 30), stored(MIDDLE, 20), stored(NEW, 1)]
    assert list(runs_to_delete(reports, {OLD}, 200)) == [MIDDLE]
    assert list(runs_to_delete(reports, {OLD, MIDDLE, NEW}, 0)) == []


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1000), st.integers(1, 500)), max_size=40),
    st.sets(st.integers(0, 9)),
    st.integers(0, 5000),
)
def test_what_is_left_fits_or_is_unfinished(
    drawn: list[tuple[int, int, int]], unfinished: set[int], budget_bytes: int
) -> None:
    reports = [stored(Run("uid", str(run)), age, size, at) for at, (run, age, size) in enumerate(drawn)]
    protected = {Run("uid", str(run)) for run in unfinished}
    deleted = list(runs_to_delete(reports, protected, budget_bytes))
    left = [one for one in reports if one.run not in deleted]
    assert not protected.intersection(deleted)
    assert stored_bytes(left) <= budget_bytes or all(one.run in protected for one in left)
    if deleted:  # none more than needed
        last = deleted[-1]
        assert stored_bytes(left) + stored_bytes(reports, {last}) > budget_bytes


def test_only_runs_under_way_are_unfinished() -> None:
    going_on = diagnosis(status=running_status())
    over = diagnosis(name="b", uid="uid-b", status=running_status(completionTime="2026-03-01T12:00:00Z"))
    assert unfinished_runs(fleet((), (going_on, over, diagnosis(name="c"))).claims) == {Run(UID, RUN)}


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_a_report_says_its_size() -> None:
    manifest = report(EVIDENCE, attribute(()), diagnosis=diagnosis().metadata, run=RUN, node_name=NODE, suspect="")
    one = stored_report(ObjectMeta.model_validate(manifest["metadata"]))
    assert one.run == Run(UID, RUN)
    assert 0 <= size_of(manifest) - one.size_bytes < 100


def test_a_report_that_does_not_say_its_size_counts_as_a_usual_one() -> None:
    for annotations in ({}, {naming.SIZE_ANNOTATION: "much"}, {naming.SIZE_ANNOTATION: "9" * 99}):
        meta = ObjectMeta(name="a", annotations=annotations)
        assert stored_report(meta).size_bytes == UNKNOWN_SIZE_BYTES


# --- when unfinished runs fill the budget -----------------------------------------------------------------------------


def snapshot(**fields: Any) -> Snapshot:
    message, log = delivered(EVIDENCE)
    runner = pod(phase="Succeeded", state=terminated(message))
    return Snapshot(
        diagnosis=diagnosis(status=running_status()),
        nodes={NODE: node()},
        pods=(runner,),
        outputs={runner.metadata.name: RunnerOutput(log)},
        **fields,
    )


def test_without_room_the_result_is_kept_in_the_status_and_says_so() -> None:
    with_room = reconcile(snapshot(), CONFIG, NOW)
    assert len(with_room.reports) == 1
    without = reconcile(snapshot(report_room_bytes=1000), CONFIG, NOW)
    assert without.reports == ()
    assert without.status
    assert without.status.report_refs == []
    (result,) = without.status.results
    assert result.verdict
    assert result.coverage[0].startswith("no report was stored: reports of unfinished runs use up limits.storedReports")


def test_of_a_run_on_many_nodes_one_former_run_is_kept() -> None:
    for count, kept in ((100, 3), (101, 1)):
        clock = of_many(count, config=CONFIG.model_copy(update={"max_concurrent_runners": 1000}))
        for number in range(5):
            clock.annotate(str(number))
            clock.run(200, look_every_seconds=20)
        assert len(clock.cleanups[-1].kept_runs) == 1 + kept, count
