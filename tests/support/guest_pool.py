"""Guests in the background, two at a time: QEMU emulates most of a guest's work on one CPU."""

import os
import queue
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from typing import Any

AT_ONCE = 2


class GuestPool:
    """Boots in the order in which they were added; each result is kept for all tests that need it.

    The threads are daemons: if the tests are interrupted, they end with this process, and the guests with them.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._results: dict[Hashable, Future[Any]] = {}
        for _ in range(at_once):
            threading.Thread(target=self._work, daemon=True).start()

    def add(self, key: Hashable, boot: Callable[[], Any]) -> None:
        """Call `boot` when its turn comes, unless `key` was added before."""
        if key not in self._results:
            self._results[key] = result = Future[Any]()
            self._waiting.put((boot, result))

    def result(self, key: Hashable) -> Any:
        """What the boot returned, as soon as it has. Raises what it raised."""
        return self._results[key].result()

    def wait(self) -> None:
        """Return when no guest runs or waits."""
        wait(self._results.values())

    def _work(self) -> None:
        # Tests that run meanwhile come first. This is for the thread, and for what it starts.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        while True:
            boot, result = self._waiting.get()
            try:
                result.set_result(boot())
            except BaseException as error:
                result.set_exception(error)
