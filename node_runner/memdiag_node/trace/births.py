"""Judge outstanding blocks by their birth times: do they grow, are they pinned, or is it churn?

The window is divided into three parts. The youngest says little: any load whose blocks live for a while still has some
outstanding there. The rule uses what is left of the two older ones; docs/trace.md shows it with examples.

    Churn    less than a tenth of the outstanding bytes is from the two older thirds
    Growing  in both older thirds, at least half of the slices have survivors; the oldest third has at least half as
             many bytes as the middle one (a load of long-lived blocks thins out towards the past); and the
             growth is more than twice its error
    Pinned   at least half of the bytes is from the older thirds, but from fewer than half of their slices: filled
             once, and kept since then
    Unclear  anything else, and anything with fewer than 8 blocks

Growth is what is left of the two older thirds divided by their time: bytes allocated and not freed, per second. Its
error combines the standard error of the mean over their slices with the error of thinned figures.

Only slices that have started are judged. The last of them may be shorter than the others, if the window ended early, or
longer, since the trace continues while the holders are scanned. As one of the youngest, it is not part of the rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from memdiag_api.evidence import Trend

_MIN_BLOCKS = 8
_MIN_SLICES = 6
_CHURN_SHARE = 0.1
_PINNED_SHARE = 0.5
_FILLED_SLICES = 0.5
_FLATNESS = 0.5
_ERRORS = 2.0


@dataclass(frozen=True, slots=True)
class Growth:
    """How fast the survivors of a stack accumulate, and what that means."""

    bytes_per_second: float
    error_bytes_per_second: float
    trend: Trend


def growth_of(
    births_bytes: Sequence[float],
    *,
    slice_seconds: float,
    last_slice_seconds: float,
    blocks: int,
    error_bytes: float = 0.0,
) -> Growth:
    """Judge outstanding bytes by time of birth: one value for each slice that has started, oldest first.

    `slice_seconds` is the length of every slice except the last. `error_bytes` is the standard error of the sum, 0 if
    every block was recorded.
    """
    third = len(births_bytes) // 3
    if len(births_bytes) < _MIN_SLICES or slice_seconds <= 0:
        return Growth(0.0, 0.0, Trend.UNCLEAR)
    oldest, middle = births_bytes[:third], births_bytes[third : 2 * third]
    older = [*oldest, *middle]
    older_bytes, total = math.fsum(older), math.fsum(births_bytes)
    # A long last slice must not make a steady leak look like churn: that rule cuts it to the length of the others.
    excess = births_bytes[-1] * max(0.0, 1 - slice_seconds / last_slice_seconds) if last_slice_seconds else 0.0
    older_share = _share(older_bytes, total)
    rate = fmean(older) / slice_seconds
    scatter = stdev(older) / math.sqrt(len(older)) / slice_seconds
    thinning = error_bytes * math.sqrt(older_share) / (len(older) * slice_seconds)
    error = math.hypot(scatter, thinning)
    if blocks < _MIN_BLOCKS:
        trend = Trend.UNCLEAR
    elif _share(older_bytes, total - excess) < _CHURN_SHARE:
        trend = Trend.CHURN
    elif _is_growing(oldest, middle) and rate > _ERRORS * error:
        trend = Trend.GROWING
    elif older_share >= _PINNED_SHARE and _filled(older) < _FILLED_SLICES:
        trend = Trend.PINNED
    else:
        trend = Trend.UNCLEAR
    return Growth(rate, error, trend)


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0


def _is_growing(oldest: Sequence[float], middle: Sequence[float]) -> bool:
    everywhere = _filled(oldest) >= _FILLED_SLICES and _filled(middle) >= _FILLED_SLICES
    return everywhere and fmean(oldest) >= _FLATNESS * fmean(middle)


def _filled(births_bytes: Sequence[float]) -> float:
    """The share of slices that have survivors."""
    return sum(1 for born in births_bytes if born > 0) / len(births_bytes)


def median_life_seconds(freed_by_bucket: dict[int, int]) -> float | None:
    """The median life of freed blocks; None if none was timed.

    A bucket is a quarter of an octave: number 4 * o + q has the lives from (4 + q) / 4 * 2^o microseconds up to the
    next bucket's, as page_trace.bpf.c counts them. The answer is the middle of the median's bucket.
    """
    total = sum(freed_by_bucket.values())
    seen = 0
    for bucket in sorted(freed_by_bucket):
        seen += freed_by_bucket[bucket]
        if total and 2 * seen >= total:
            octave, quarter = divmod(bucket, 4)
            return (4.5 + quarter) / 4 * 2.0**octave / 1e6
    return None
