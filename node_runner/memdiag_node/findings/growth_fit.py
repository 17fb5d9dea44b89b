"""Growth over several runs: a straight line through sizes at different times, and whether they rise steadily (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

_MIN_FITTED = 3
"""Points that a fit needs to have an error."""


@dataclass(frozen=True, slots=True)
class Point:
    """The size of something at the end of one run."""

    at_seconds: float
    size_bytes: int
    error_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Growth:
    """Growth from the first point to the last."""

    grown_bytes: int
    seconds: float
    bytes_per_second: float
    error_bytes_per_second: float
    """Standard error of the rate. With two points, what `read_error_bytes` allows."""
    read_error_bytes: int
    """The errors of the first and the last size."""
    explained_share: float
    """Share of the variance that the line explains (R squared). 1 with two points."""
    points: int
    is_rising: bool
    """Whether every interval grew."""


def fit(points: Sequence[Point]) -> Growth | None:
    """Return the growth over `points`, oldest first, with the rate of a least-squares fit. None without two times."""
    if len(points) < 2 or points[-1].at_seconds <= points[0].at_seconds:  # noqa: PLR2004 - a line needs two points
        return None
    count = len(points)
    times = [one.at_seconds - points[0].at_seconds for one in points]
    sizes = [float(one.size_bytes - points[0].size_bytes) for one in points]
    middle_time, middle_size = sum(times) / count, sum(sizes) / count
    spread = sum((time - middle_time) ** 2 for time in times)
    slope = sum((time - middle_time) * (size - middle_size) for time, size in zip(times, sizes, strict=True)) / spread
    total = sum((size - middle_size) ** 2 for size in sizes)
    rest = sum(
        (size - middle_size - slope * (time - middle_time)) ** 2 for time, size in zip(times, sizes, strict=True)
    )
    seconds = times[-1]
    read_error_bytes = points[0].error_bytes + points[-1].error_bytes
    return Growth(
        grown_bytes=points[-1].size_bytes - points[0].size_bytes,
        seconds=seconds,
        bytes_per_second=slope,
        error_bytes_per_second=sqrt(rest / (count - 2) / spread)
        if count >= _MIN_FITTED
        else read_error_bytes / seconds,
        read_error_bytes=read_error_bytes,
        explained_share=max(0.0, 1 - rest / total) if total else 0.0,
        points=count,
        is_rising=all(later.size_bytes > earlier.size_bytes for earlier, later in pairwise(points)),
    )


def fall_bytes(points: Sequence[Point]) -> int:
    """Return the largest fall from any earlier size."""
    highest, fall = 0, 0
    for one in points:
        highest = max(highest, one.size_bytes)
        fall = max(fall, highest - one.size_bytes)
    return fall
