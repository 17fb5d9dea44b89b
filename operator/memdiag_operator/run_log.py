"""Which diagnosis and run a log line is about: set once where the work starts, included in every line about it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_subject: ContextVar[dict[str, str] | None] = ContextVar("subject", default=None)


@contextmanager
def about(diagnosis: str) -> Iterator[None]:
    """Lines logged inside, also by threads of `asyncio.to_thread`, carry the field `diagnosis`."""
    token = _subject.set({"diagnosis": diagnosis})
    try:
        yield
    finally:
        _subject.reset(token)


def of_run(run_id: str | None) -> None:
    """From here on they also carry the field `runID`, named as in the status; omitted without a run."""
    subject = _subject.get()
    if subject is not None and run_id:
        subject["runID"] = run_id


class SubjectFilter(logging.Filter):
    """Adds the fields to each record; on a handler, where it sees the records of every logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Accept every record."""
        for key, value in (_subject.get() or {}).items():
            setattr(record, key, value)
        return True
