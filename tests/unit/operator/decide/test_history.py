"""A node's next runner gets what its last report kept."""

import json
from datetime import timedelta
from typing import Any

from memdiag_api.evidence import Evidence
from memdiag_api.history import HISTORY_VARIABLE, RunSummary
from memdiag_node.history import comparable, history_of_variable
from support.clockwork import Clockwork, answers_on
from support.kubernetes_objects import NOW, diagnosis, node

DAY = timedelta(days=1)


class Node:
    """A machine that reports each run with the history that its runner was given, if it is of the same boot."""

    def __init__(self) -> None:
        self.boot_id = "first boot"
        self.given: list[RunSummary] = []
        self.evidence: list[Evidence] = []
        self.clock: Clockwork | None = None

    def answer(self, node_name: str, run: str) -> Evidence:
        assert self.clock
        end = self.clock.now + timedelta(seconds=60)
        template = answers_on(node_name, run)
        found = template.model_copy(
            update={
                "host": template.host.model_copy(update={"boot_id": self.boot_id}),
                "summary": RunSummary(
                    run_id=run, end_time=end, boot_id=self.boot_id, mem_total_bytes=1 << 39, alloc_page_bytes=1 << 30
                ),
                "history": comparable(self.given, boot_id=self.boot_id, now=self.clock.now),
            }
        )
        self.evidence.append(found)
        return found


class WatchedClockwork(Clockwork):
    """It gives each runner's variables to the node."""

    machine: Node

    def apply(self, plan: Any) -> None:
        for manifest in plan.launches:
            self.machine.given = given_to(manifest)
        super().apply(plan)


def given_to(manifest: dict[str, Any]) -> list[RunSummary]:
    (container,) = manifest["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container.get("env", [])}
    runs, note = history_of_variable(variables.get(HISTORY_VARIABLE, ""))
    assert not note
    return runs


def world() -> tuple[WatchedClockwork, Node]:
    machine = Node()
    clock = WatchedClockwork(diagnosis(), {"node1": node()}, machine.answer)
    clock.machine = machine
    machine.clock = clock
    return clock, machine


def rerun(clock: Clockwork, name: str) -> None:
    clock.now += DAY
    clock.annotate(name)
    clock.run(120)
    assert clock.diagnosis.is_finished


def test_the_second_run_on_a_node_gets_the_summary_of_the_first() -> None:
    clock, machine = world()
    clock.run(120)
    first = machine.evidence[0]
    assert machine.given == []
    rerun(clock, "again")
    assert machine.given == [first.summary]
    rerun(clock, "and again")
    assert [one.run_id for one in machine.given] == [one.run_id for one in reversed(machine.evidence[:2])]
    assert [one.run_id for one in machine.evidence[-1].history] == [one.run_id for one in machine.given]


def test_after_a_reboot_the_runner_gets_it_too_but_does_not_use_it() -> None:
    clock, machine = world()
    clock.run(120)
    machine.boot_id = "second boot"
    rerun(clock, "again")
    assert [one.boot_id for one in machine.given] == ["first boot"]
    assert machine.evidence[-1].history == []


def test_another_diagnosis_of_the_node_gets_it_as_well() -> None:
    clock, machine = world()
    clock.run(120)
    other = WatchedClockwork(
        diagnosis(uid="another"), clock.nodes, machine.answer, newest_reports=clock.newest_reports, now=NOW + DAY
    )
    other.machine, machine.clock = machine, other
    other.run(120)
    assert len(machine.given) == 1


def test_many_runs_keep_the_earliest_and_the_latest() -> None:
    clock, machine = world()
    clock.run(120)
    for number in range(14):
        rerun(clock, f"again {number}")
    runs = [one.run_id for one in machine.evidence]
    assert len(machine.given) == 10
    assert (machine.given[0].run_id, machine.given[-1].run_id) == (runs[-2], runs[0])


def test_the_status_has_no_history() -> None:
    clock, _ = world()
    clock.run(120)
    rerun(clock, "again")
    text = json.dumps(clock.status.to_json_object())
    assert "bootID" not in text
    assert "allocPageErrorBytes" not in text


def test_a_node_without_reports_gets_a_runner_without_variables() -> None:
    clock, _ = world()
    clock.run(1)
    (runner,) = clock.runners.values()
    assert "env" not in runner.manifest["spec"]["containers"][0]
