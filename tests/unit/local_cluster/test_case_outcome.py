"""The outcome of a run of the case: kept in a file, and summed up."""

from pathlib import Path
from typing import Any

from local_cluster.case_outcome import Moment, Outcome
from local_cluster.case_story import beside_the_story, tools_show

MIB = 1 << 20
WORKER, OTHER = 512, 600


def holder(pid: int, unread_bytes: int) -> dict[str, Any]:
    return {"unreadBytes": unread_bytes, "owners": [{"pid": pid}]}


def stack(*frames: str, outstanding_bytes: int, explained_bytes: int) -> dict[str, Any]:
    return {"frames": frames, "outstandingBytes": outstanding_bytes, "explainedBytes": explained_bytes}


def an_outcome() -> Outcome:
    moment = Moment(free=2000 * MIB, tcp=36 * MIB, unread={"9": MIB, "10": 2 * MIB})
    evidence = {
        "holders": [holder(WORKER, MIB), holder(WORKER, 2 * MIB), holder(OTHER, 5 * MIB)],
        "coverage": {"pinnedBytes": 210 * MIB},
        "breakdown": {"allocPageBytes": 223 * MIB},
        "stacks": [
            stack("alloc", "pipe_write+0x1", outstanding_bytes=90 * MIB, explained_bytes=0),
            stack("alloc", "virtnet_poll+0x1 [virtio_net]", outstanding_bytes=10 * MIB, explained_bytes=MIB),
            stack("refill", "virtnet_poll+0x1 [virtio_net]", outstanding_bytes=40 * MIB, explained_bytes=30 * MIB),
        ],
        "trace": {"outstandingBlocks": 1015},
        "window": {"tracedSeconds": 60.2},
    }
    return Outcome(
        ready_seconds=27.4, sent_before=3, sent=4, worker_pid=WORKER, before=moment, planted=moment, tools={"top": "-"},
        diagnosis={"status": {}}, diagnosis_seconds=151, evidence=evidence, full=moment, after=moment, rerun={},
    )  # fmt: skip


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    outcome = an_outcome()
    outcome.save(tmp_path / "outcome.json")
    read = Outcome.load(tmp_path / "outcome.json")
    assert (read.full, read.worker_pid, read.tools) == (outcome.full, WORKER, {"top": "-"})
    assert read.unread == outcome.unread


def test_only_the_workers_sockets_count_and_the_drivers_largest_stack() -> None:
    outcome = an_outcome()
    assert outcome.unread == 3 * MIB
    assert outcome.pinned == 210 * MIB
    assert outcome.join_share == 0.75


def test_the_figures_stand_beside_those_of_the_story() -> None:
    lines = beside_the_story(an_outcome()).splitlines()
    (ratio,) = [line for line in lines if "pinned per unread byte" in line]
    assert ratio.split()[-1] == "70"
    (blocks,) = [line for line in lines if "not freed" in line]
    assert blocks.endswith("4,919 in 10 min      1,015 in 60 s")


def test_a_long_answer_of_a_tool_is_cut() -> None:
    shown = tools_show({"slabtop": "\n".join(["x" * 300] * 40)}).splitlines()
    assert shown[0] == "    # slabtop"
    assert len(shown) < 20
    assert max(map(len, shown)) <= 122
