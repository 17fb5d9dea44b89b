"""The median of measured values, and how sure it is."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Median:
    """A median with its 90 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the median."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def median_of(values: Sequence[float]) -> Median:
    """The median, with the 90 % interval of the bootstrap. The same values always give the same interval."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return Median(statistics.median(values), medians[_RESAMPLES // 20], medians[-_RESAMPLES // 20 - 1])
