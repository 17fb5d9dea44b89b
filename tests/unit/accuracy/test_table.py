"""The table of an accuracy run."""

from typing import Any

from accuracy.judge import judge, outcome
from accuracy.table import Row, as_markdown
from planted.cases.case import HEALTHY, Answer, PlantedTruth

TRUTH = PlantedTruth(Answer.LEAK, ("UnreadSocket",), ("AllocPage",), size_bytes=3 << 20, pids=(7,), fds=(5,))
KILLED = PlantedTruth(Answer.HARMLESS, ("OomKill",), ("",), size_bytes=3 << 20, container_id="c" * 64)


def test_the_table_has_a_line_for_each_case() -> None:
    owner = {"kind": "Process", "name": "a|b[7]", "pid": 7, "fds": [5]}
    found: dict[str, Any] = {"kind": "UnreadSocket", "memoryClass": "AllocPage", "sizeBytes": 3 << 20, "owner": owner}
    found["freedBy"] = {"action": "End it.", "sizeBytes": 2 << 20}
    right = judge({"findings": [found], "leakDetected": "True"}, TRUTH)
    wrong = judge({"findings": [], "leakDetected": "True"}, HEALTHY)
    rows = [
        Row("stuck", TRUTH, 4 << 20, right),
        Row("idle", HEALTHY, None, wrong),
        Row("killed", KILLED, None, problem="planted only"),
        Row("zram", None, problem="not possible here: there is no zram device"),
    ]
    text = as_markdown(rows, outcome([right, wrong]), "a machine", "12s")
    assert text.splitlines()[0] == "a machine. Window: 12s."
    assert "1 of 2 right (50%)" in text
    assert text.splitlines()[-4:] == [
        "| stuck | leak: 3 MiB AllocPage, pid 7 fd 5 | 4 MiB | UnreadSocket, 3 MiB AllocPage: Process a/b[7] | True "
        "| yes | 0.0% | 33.3% |",
        "| idle | healthy |  |  | True | **no**: LeakDetected is True |  |  |",
        "| killed | harmless: 3 MiB, container cccccccccccc |  |  |  | planted only |  |  |",
        "| zram |  |  |  |  | not possible here: there is no zram device |  |  |",
    ]
