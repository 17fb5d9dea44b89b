"""Earlier runs of a node, from its report in a real API server to its next runner."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from memdiag_api.history import HISTORY_VARIABLE, HolderSize, RunSummary
from memdiag_node.history import history_of_variable
from support.operator_world import World, pod_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def summary(run_id: str, days: int) -> RunSummary:
    return RunSummary(
        run_id=run_id,
        end_time=NOW + timedelta(days=days),
        boot_id="boot",
        mem_total_bytes=1 << 39,
        alloc_page_bytes=1 << 30,
        unexplained_bytes=-1,
        holders=[HolderSize(kind="Pipe", owner="$(HOME) $$ \u4e2d", size_bytes=1)],
    )


def history_of(runner: dict[str, Any]) -> list[RunSummary]:
    """What the API server stored in the variable of a runner."""
    (container,) = runner["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container.get("env", [])}
    runs, note = history_of_variable(variables.get(HISTORY_VARIABLE, ""))
    assert note == ""
    return runs


def test_a_runner_gets_the_history_of_its_node_and_of_no_other(world: World) -> None:
    here, there = world.node("here"), world.node("there")
    runs = [summary("third", 3), summary("second", 2), summary("first", 1)]

    world.diagnose("one", "here")
    first = here.runner()
    here.run(first)
    assert history_of(pod_of(world, first)) == []
    world.deliver(here, first, summary=runs[0], history=runs[1:])
    assert world.end("one")[:2] == ("True", "Completed")
    (report,) = world.reports("one")
    assert report["metadata"]["annotations"]["memdiag.dev/node"] == "here"
    assert report["evidence"]["summary"]["unexplainedBytes"] == -1
    assert "unexplainedBytes" not in json.dumps(world.read("one")["status"])

    world.diagnose("another", "here")
    world.diagnose("elsewhere", "there")
    second, other = here.runner(), there.runner()
    assert history_of(pod_of(world, second)) == runs
    assert history_of(pod_of(world, other)) == []
    here.run(second)
    world.deliver(here, second)
    assert world.end("another")[:2] == ("True", "Completed")


def test_a_deleted_diagnosis_takes_its_part_of_the_history_along(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("kept", "node-a")
    world.run(node, summary=summary("kept", 1))
    world.end("kept")
    world.diagnose("deleted", "node-a")
    world.run(node, summary=summary("deleted", 2))
    world.end("deleted")
    world.cluster.kubectl("delete", "memdiagreport", world.reports("deleted")[0]["metadata"]["name"])

    world.diagnose("third", "node-a")
    runner = node.runner()
    assert [one.run_id for one in history_of(pod_of(world, runner))] == ["kept"]
