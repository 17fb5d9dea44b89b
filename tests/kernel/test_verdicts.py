"""Each verdict on a load that causes it, and none on loads that do not."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from memdiag_api.evidence import Check, Evidence, LeakDetected, Trend, VerdictKind
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.holding import packet_slab_bytes
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from planted import traffic

DEFAULT = Thresholds(leak_age_seconds=2)
"""The windows here are too short for the usual age of a leak."""


@contextmanager
def running(kind: str) -> Iterator[tuple[int, str]]:
    """The load's pid, and its output when it is ready."""
    child = subprocess.Popen([sys.executable, traffic.__file__, kind], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        word, _, said = child.stdout.readline().strip().partition(" ")
        assert word == "ready"
        yield child.pid, said
    finally:
        child.kill()
        child.communicate()


def diagnose(seconds: float = 5.0, thresholds: Thresholds = DEFAULT) -> Evidence:
    settings = Settings(
        run_id="verdict", node_name="here", checks=tuple(Check), duration_seconds=seconds, thresholds=thresholds
    )
    return measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None)


def test_a_busy_server_that_reads_is_not_a_suspect() -> None:
    with running("healthy"):
        verdict = diagnose().verdict
    assert verdict.kind is VerdictKind.NO_LEAK, verdict


def test_a_connection_that_nobody_reads_is_the_suspect() -> None:
    with running("stuck") as (pid, fd):
        evidence = diagnose()
    verdict = evidence.verdict
    assert verdict.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET, verdict
    assert verdict.holder is not None
    suspect = evidence.holders[verdict.holder]
    assert [(owner.pid, owner.fds) for owner in suspect.owners] == [(pid, [int(fd)])]
    assert suspect.unread_bytes == 2000 * 64
    assert verdict.suspect_bytes > 100 * suspect.unread_bytes
    assert f"[{pid}] fd {fd}" in verdict.sentence


def test_data_that_was_not_read_for_a_few_seconds_is_not_called_a_leak_yet() -> None:
    with running("stuck") as (pid, fd):
        evidence = diagnose(2.0, Thresholds(leak_age_seconds=60))
    first = evidence.findings[0]
    assert (first.kind, first.leak) == (FindingKind.UNREAD_SOCKET, LeakAnswer.UNKNOWN), first
    assert first.owner is not None
    assert (first.owner.pid, first.owner.fds) == (pid, [int(fd)])
    assert evidence.leak_detected is LeakDetected.UNKNOWN


def test_a_leak_that_is_spread_over_many_connections_is_seen_in_full() -> None:
    """More connections than are listed individually; the listed ones do not pin enough to be a suspect."""
    with running("spread") as (pid, said):
        connections, each_bytes = map(int, said.split())
        all_bytes = connections * each_bytes
        limits = Thresholds(suspect_floor_bytes=round(0.8 * all_bytes), suspect_share=0, leak_age_seconds=1)
        evidence = diagnose(2.0, limits)
    verdict = evidence.verdict
    assert verdict.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET, verdict
    assert verdict.suspect_bytes >= all_bytes  # with the heads of packets, in slab
    assert f"[{pid}] fd " in verdict.sentence
    assert f"and {connections - 1} more of its sockets" in verdict.sentence
    mine = [one for one in evidence.holders if [owner.pid for owner in one.owners] == [pid] and one.unread_bytes]
    assert sum(one.summed for one in mine) == connections
    assert sum(one.unread_bytes for one in mine) == all_bytes
    assert sum(one.pinned_bytes + packet_slab_bytes(one) for one in mine) == verdict.suspect_bytes
    assert len(mine) < connections


def test_pages_that_keep_being_taken_are_a_growing_allocation() -> None:
    with running("growing") as (pid, _):
        evidence = diagnose(8.0)
    verdict = evidence.verdict
    assert verdict.kind is VerdictKind.GROWING_KERNEL_ALLOCATION, verdict
    assert verdict.stack is not None
    stack = evidence.stacks[verdict.stack]
    assert stack.trend is Trend.GROWING
    assert any("pipe_write" in frame for frame in stack.frames)
    assert stack.processes[0].pid == pid
    assert evidence.holders[stack.held_by[0].holder].owners[0].pid == pid
