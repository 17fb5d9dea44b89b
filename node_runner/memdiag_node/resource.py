"""The life cycle of objects that must be closed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self


class Resource:
    """Open from construction until `close`, which the end of its context calls.

    A constructor opens its parts within `with self._opening() as parts`. If that fails, the parts opened so far are
    closed.
    """

    _parts: ExitStack

    @contextmanager
    def _opening(self) -> Iterator[ExitStack]:
        with ExitStack() as parts:
            yield parts
            self._parts = parts.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all parts, the last one first. Idempotent."""
        self._parts.close()
