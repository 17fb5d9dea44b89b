"""The runner pod that a hollow node chooses to run."""

from typing import Any

import pytest

from support.hollow_node import live_runner


def pod(name: str, node: str = "node1", phase: str = "Pending", **metadata: Any) -> dict[str, Any]:
    meta = {"name": name, "annotations": {"memdiag.dev/node": node}, **metadata}
    return {"metadata": meta, "status": {"phase": phase}}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_the_pod_of_an_ended_run_that_is_not_deleted_yet_is_passed_over(phase: str) -> None:
    """Its name sorts first. The operator deletes it only after it has written the end of the run into the status."""
    assert live_runner([pod("a-ended", phase=phase)], "node1") == ""
    assert live_runner([pod("a-ended", phase=phase), pod("b-next")], "node1") == "b-next"


def test_a_pod_that_is_being_deleted_or_is_for_another_node_is_passed_over() -> None:
    pods = [pod("a-leaving", deletionTimestamp="2026-01-01T00:00:00Z"), pod("b-elsewhere", node="node2"), pod("c-here")]
    assert live_runner(pods, "node1") == "c-here"


def test_a_running_pod_is_found_too() -> None:
    assert live_runner([pod("a", phase="Running")], "node1") == "a"
    assert live_runner([], "node1") == ""
