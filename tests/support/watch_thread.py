"""A watch of the Kubernetes API in a separate thread, reopened whenever it ends."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

Event = dict[str, Any]
RETRY_SECONDS = 0.2


class WatchThread:
    """Handles the events of the streams that `open_stream` returns, one stream after the other, until it is stopped."""

    def __init__(self, open_stream: Callable[[], Iterable[Event]], handle: Callable[[Event], None]) -> None:
        self._open_stream = open_stream
        self._handle = handle
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Stop after this stream, and wait: a thread that still runs when Python exits can abort the process."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                for event in self._open_stream():
                    self._handle(event)
            except (ApiException, HTTPError, OSError):
                time.sleep(RETRY_SECONDS)
