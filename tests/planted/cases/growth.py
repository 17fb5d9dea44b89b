"""Memory that grows while it is diagnosed, and stops well before the machine has no more."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from planted.cases.buffers import add_full_pipe, add_packet_ring
from planted.cases.case import Answer, Case, PlantedTruth
from planted.child import Truth, held
from planted.sockets.common import MIB

_MOST_BYTES = 1_200 * MIB
_KINDS = ("GrowingAllocation", "LargeHolder")


def _growing(
    step: str, step_bytes: int, pause_seconds: float
) -> Callable[[], contextlib.AbstractContextManager[PlantedTruth]]:
    @contextlib.contextmanager
    def plant() -> Iterator[PlantedTruth]:
        with held(_grow, step, step_bytes, pause_seconds) as child:
            yield PlantedTruth(
                Answer.LEAK,
                _KINDS,
                ("AllocPage",),
                bytes_per_second=round(step_bytes / pause_seconds),
                pids=(child.pid,),
            )

    return plant


def _grow(kept: ExitStack, step: str, step_bytes: int, pause_seconds: float) -> Truth:
    """Add `step_bytes` every `pause_seconds`."""
    grown = kept.enter_context(ExitStack())  # what the thread adds is closed after it has ended
    ended = threading.Event()

    def add() -> None:
        for _ in range(_MOST_BYTES // step_bytes):
            _STEPS[step](grown, step_bytes)
            if ended.wait(pause_seconds):
                return

    grower = threading.Thread(target=add)
    grower.start()
    kept.callback(grower.join)
    kept.callback(ended.set)
    return {}


def _add_pipes(kept: ExitStack, size_bytes: int) -> None:
    for _ in range(size_bytes // MIB):
        add_full_pipe(kept)


_STEPS: dict[str, Callable[[ExitStack, int], object]] = {"pipes": _add_pipes, "packet_rings": add_packet_ring}

CASES = (
    Case("growing_pipes", "full pipes, 16 MiB per second more", _growing("pipes", 2 * MIB, 0.125)),
    Case("growing_packet_rings", "packet rings, 16 MiB per second more", _growing("packet_rings", 8 * MIB, 0.5)),
    Case("burst", "full pipes, 96 MiB more every 6 seconds", _growing("pipes", 96 * MIB, 6)),
)
