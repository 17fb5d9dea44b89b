"""Reads the body of a response within limits of size and time.

A log comes from the node itself, through the API server: an attacker who controls the node decides how long it is and
how slowly it arrives. A socket's timeout limits only the wait for the next bytes.
"""

import time
from typing import Any, Self

import urllib3

CHUNK_BYTES = 64 * 1024


class TimedOnceRetry(urllib3.Retry):
    """The usual retries, but not after a timeout: otherwise a request could take four times as long as allowed."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        """Count a failed try, see `urllib3.Retry`. Raises `error` if it is a read timeout."""
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, *args, **kwargs)


def read_body(response: urllib3.BaseHTTPResponse, *, max_bytes: int, end_at: float) -> bytes:
    """The body of `response`, at most its first `max_bytes`.

    Raises TimeoutError if that takes until after `end_at` (of `time.monotonic`). The connection of a body that was not
    read to its end is closed: reading the rest of a flood would serve the attacker.
    """
    parts: list[bytes] = []
    left_bytes = max_bytes
    try:
        while left_bytes:
            # read1 returns what has arrived; read would wait for the whole requested length.
            part = response.read1(min(CHUNK_BYTES, left_bytes), decode_content=False)
            if not part:
                break
            parts.append(part)
            left_bytes -= len(part)
            if time.monotonic() > end_at:
                raise TimeoutError(f"the response is too slow: only {max_bytes - left_bytes} bytes arrived in time")
    finally:
        response.close()  # keeps the connection if the body was read to its end
    return b"".join(parts)
