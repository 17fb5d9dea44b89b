"""Reads the body of an answer within bounds of its size and of its time.

A log comes from the node itself, through the API server: whoever controls the node decides how long it is and how
slowly it comes. A socket's timeout bounds only the wait for the next bytes.
"""

import time
from typing import Any, Self

import urllib3

CHUNK_BYTES = 64 * 1024


class TimedOnceRetry(urllib3.Retry):
    """The usual retries, but not after a timeout: otherwise a request takes four times as long as it may."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        """Count a failed try, see `urllib3.Retry`. Raises `error` when it is a timeout of a read."""
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, *args, **kwargs)


def read_body(response: urllib3.BaseHTTPResponse, *, max_bytes: int, end_at: float) -> bytes:
    """The body of `response`, of a longer one its first `max_bytes`.

    Raises TimeoutError when that takes until after `end_at` (of `time.monotonic`). The connection of a body that was
    not read to its end is closed: to read the rest is what a flood is for.
    """
    parts: list[bytes] = []
    left_bytes = max_bytes
    try:
        while left_bytes:
            # read1 returns what has arrived; read would wait for all of what it was asked for.
            part = response.read1(min(CHUNK_BYTES, left_bytes), decode_content=False)
            if not part:
                break
            parts.append(part)
            left_bytes -= len(part)
            if time.monotonic() > end_at:
                raise TimeoutError(f"the response is too slow: only {max_bytes - left_bytes} bytes arrived in time")
    finally:
        response.close()  # keeps the connection of a body that is at its end
    return b"".join(parts)
