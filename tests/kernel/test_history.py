"""A run is compared with those before it: what is planted between two runs is what has grown."""

import json
import os
import subprocess
import sys
from pathlib import Path

from memdiag_api.evidence import Evidence
from memdiag_api.findings import Finding, FindingKind, LeakAnswer
from memdiag_api.history import HISTORY_VARIABLE, RunSummary
from memdiag_node.findings.naming import THIS_RUN
from planted.bpf_and_xdp import pinned_maps

COMMAND = (sys.executable, "-m", "memdiag_node.cli", "--output", "json", "--quiet", "--duration", "1s")
CHECKS = ("--check", "Breakdown", "--check", "SocketQueues")
MIB = 1 << 20


def run(*arguments: str, history: str = "") -> Evidence:
    environment = os.environ | {HISTORY_VARIABLE: history}
    done = subprocess.run(
        [*COMMAND, *CHECKS, *arguments], capture_output=True, text=True, check=False, timeout=180, env=environment
    )
    assert done.returncode == 0, done.stderr
    return Evidence.model_validate_json(done.stdout)


def vmalloc_bytes(summary: RunSummary) -> int:
    """The class without the BPF maps of the run itself."""
    own = [one.size_bytes for one in summary.holders if (one.owner, one.memory_class) == (THIS_RUN, "Vmalloc")]
    return (summary.class_bytes("Vmalloc") or 0) - sum(own)


def growth(evidence: Evidence, memory_class: str) -> list[Finding]:
    findings = [one for one in evidence.findings if one.kind is FindingKind.GROWTH_SINCE_RUN]
    return [one for one in findings if one.memory_class == memory_class]


def test_200_mib_that_were_planted_between_two_runs_are_the_growth(tmp_path: Path) -> None:
    file = tmp_path / "first.json"
    first = run()
    assert first.summary
    assert first.summary.uptime_seconds is not None
    # The machine of this test may have been booted only just now: growth in its first hour counts less.
    first = first.model_copy(update={"summary": first.summary.model_copy(update={"uptime_seconds": 7200.0})})
    assert first.summary
    file.write_text(json.dumps(first.to_json_object()))
    with pinned_maps(maps=4, map_bytes=50 * MIB) as planted:
        second = run("--history", str(file))
        listed = run(history=json.dumps([first.summary.to_json_object()]))
    for evidence in (second, listed):
        (found,) = growth(evidence, "Vmalloc")
        assert evidence.summary
        before, after = vmalloc_bytes(first.summary), vmalloc_bytes(evidence.summary)
        assert found.size_bytes == after - before
        assert found.size_bytes > 0.8 * planted.value_bytes
        assert found.sentence.startswith("Vmalloc grew by ")
        assert found.leak is not LeakAnswer.YES
        more = [one.size_bytes for one in evidence.summary.holders if one.owner.startswith("no fd: pinned")]
        assert sum(more) >= planted.value_bytes
        assert found.trend
        assert found.trend.over_seconds < 600
        assert [one.run_id for one in evidence.history] == [first.run_id]


def test_a_malformed_history_in_the_environment_is_noted_and_the_run_goes_on() -> None:
    evidence = run(history='[{"runID": 7}]')
    assert evidence.summary
    assert evidence.history == []
    assert [note for note in evidence.notes if "MEMDIAG_HISTORY is malformed" in note]


def test_a_malformed_file_is_an_error_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "history.json"
    file.write_text('[{"runID": 7}]')
    done = subprocess.run([*COMMAND, "--history", str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"--history: {file}: neither a list of run summaries nor a document" in done.stderr
