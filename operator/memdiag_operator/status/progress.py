"""How far a run is, in steps coarse enough that reporting it costs little.

Every step is a write of the status, which every watcher receives. So progress within a trace is reported in ticks:
USUAL_TICKS per run, more only in a long run, where there is one every LONG_TICK_SECONDS; the nodes of a run share them.
A node's ticks are never less than MIN_TICK_SECONDS apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from memdiag_api.diagnosis import RunStep

USUAL_TICKS = 5
LONG_TICK_SECONDS = 90
MIN_TICK_SECONDS = 5
STARTING_PERCENT = 5
COLLECTING_PERCENT = 95


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one node is."""

    step: RunStep
    percent: int


WAITING = Progress(RunStep.WAITING, 0)
STARTING = Progress(RunStep.STARTING, STARTING_PERCENT)
COLLECTING = Progress(RunStep.COLLECTING, COLLECTING_PERCENT)
DONE = Progress(RunStep.DONE, 100)


def tick_seconds(window_seconds: int, nodes: int) -> int:
    """Seconds between two progress reports of a trace of `window_seconds`, in a run on this number of `nodes`."""
    ticks = max(1, max(USUAL_TICKS, window_seconds // LONG_TICK_SECONDS) // max(1, nodes))
    return max(MIN_TICK_SECONDS, -(-window_seconds // ticks))


def tracing(elapsed_seconds: int, window_seconds: int) -> Progress:
    """During the trace: between STARTING and COLLECTING in proportion to the time."""
    share = min(1.0, elapsed_seconds / window_seconds) if window_seconds else 0.0
    return Progress(RunStep.TRACING, STARTING_PERCENT + int(share * (COLLECTING_PERCENT - STARTING_PERCENT)))


def of_run(nodes: Sequence[Progress]) -> tuple[int, str]:
    """How far the whole run is, in percent and in readable form: `Tracing 41%`, or `2/5 nodes 48%`."""
    percent = sum(one.percent for one in nodes) // len(nodes)
    if len(nodes) == 1:
        return percent, f"{nodes[0].step} {percent}%"
    done = sum(one.step is RunStep.DONE for one in nodes)
    return percent, f"{done}/{len(nodes)} nodes {percent}%"
