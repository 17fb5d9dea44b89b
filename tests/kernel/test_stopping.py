"""A run that is asked to stop ends within its grace period, however slow the node is."""

import mmap
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_api.evidence import Check, Evidence, NeedState
from memdiag_node.procfs.kpageflags import FrameTable
from memdiag_node.procfs.memory_map import frames_in, read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.sockets.source import SocketSource
from memdiag_node.time_budget import Stop

GRACE_SECONDS = 30
SECONDS_TO_READ_ALL_FLAGS = 120.0
PIECES_OF_FDS = 100

SLOW_RUNNER = """
import sys, time
from memdiag_node.procfs.kpageflags import FrameTable
read = FrameTable.read
def slow(table, first, frames):
    time.sleep(frames * {seconds_a_frame})
    return read(table, first, frames)
FrameTable.read = slow
from memdiag_node.cli import main
sys.exit(main())
"""


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def frame_count() -> int:
    roots = HostRoots()
    return frames_in(read_memory_map(roots.proc, roots.sys, page_bytes=mmap.PAGESIZE))


def test_on_a_large_node_every_step_is_cut_to_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this node it takes 100 s to list fds and 120 s to read page flags, by a clock that only these advance."""
    clock = Clock()
    stop = Stop(GRACE_SECONDS, clock=clock)
    read, held = FrameTable.read, SocketSource.held
    seconds_a_frame = SECONDS_TO_READ_ALL_FLAGS / frame_count()

    def slow_read(table: FrameTable, first_frame: int, frames: int) -> npt.NDArray[np.uint64]:
        clock.seconds += frames * seconds_a_frame
        return read(table, first_frame, frames)

    def slow_held(source: SocketSource) -> Iterator[npt.NDArray[np.void]]:
        for piece in list(held(source)) * PIECES_OF_FDS:
            clock.seconds += 1
            yield piece

    requested_at = [0.0]

    def stop_when_tracing(text: str) -> None:
        if text.startswith("tracing"):
            monkeypatch.setattr(FrameTable, "read", slow_read)
            monkeypatch.setattr(SocketSource, "held", slow_held)
            requested_at[0] = clock.seconds
            stop.set()

    settings = Settings(run_id="stopped", node_name="here", checks=tuple(Check), duration_seconds=600)
    evidence = measure(settings, roots=HostRoots(), stop=stop, progress=stop_when_tracing)
    assert clock.seconds - requested_at[0] < GRACE_SECONDS
    assert evidence.window.interrupted
    assert list(evidence.checks) == list(Check)
    assert evidence.coverage is not None
    assert not evidence.coverage.lists_every_fd  # so nobody says that there is no leak
    assert any("files of processes after pid" in note for note in evidence.coverage.not_seen)
    assert evidence.trace is not None
    assert evidence.census is not None
    assert evidence.census.scanned_share < 0.5


def test_sigterm_ends_a_run_with_a_slow_census_with_a_valid_document() -> None:
    script = SLOW_RUNNER.format(seconds_a_frame=SECONDS_TO_READ_ALL_FLAGS / frame_count())
    with subprocess.Popen(
        [
            *(sys.executable, "-c", script, "--duration", "10m", "--check", "Breakdown", "--check", "SocketQueues"),
            *("--output", "json", "--grace", "5"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "waiting for the second scan" in line:
                break
        process.send_signal(signal.SIGTERM)
        document, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    evidence = Evidence.model_validate_json(document)
    assert evidence.breakdown is not None
    assert evidence.census is not None
    assert evidence.census.scanned_share < 0.5
    assert evidence.window.interrupted


def test_a_run_that_is_stopped_before_it_traces_starts_nothing_more() -> None:
    stop = Stop(GRACE_SECONDS)
    said: list[str] = []
    stop.set()
    settings = Settings(run_id="stopped", node_name="here", checks=tuple(Check), duration_seconds=600)
    evidence = measure(settings, roots=HostRoots(), stop=stop, progress=said.append)
    assert list(evidence.checks) == [Check.BREAKDOWN, Check.OWNERS]
    assert evidence.window.interrupted
    missing = {need.checks[0]: need.detail for need in evidence.needs if need.state is NeedState.MISSING}
    assert missing == dict.fromkeys(
        (Check.SOCKET_QUEUES, Check.KERNEL_OBJECTS, Check.CONTAINERS, Check.ALLOC_PAGE_TRACE),
        "the run was asked to stop before it started",
    )
    assert not any("scanning all sockets" in line for line in said)
