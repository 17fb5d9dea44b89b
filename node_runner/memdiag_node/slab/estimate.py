"""The total of a figure over all pieces of memory, from a random sample of them."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Estimate(NamedTuple):
    """An estimated total. The estimate is exact, with an error of 0, if all pieces were read."""

    total: float
    standard_error: float
    """Infinite if a single piece of several was read."""


def estimate_total(
    values: npt.NDArray[np.float64], frames: npt.NDArray[np.int64], *, all_pieces: int, all_frames: int
) -> Estimate:
    """Estimate the sum of a figure over `all_pieces` pieces of memory with `all_frames` frames together.

    `values` is the figure in each piece of a simple random sample, `frames` the size of each. The ratio estimator of
    cluster sampling without replacement (W. G. Cochran, Sampling Techniques, third edition, 6.4 and 9A.1): what is
    counted in a piece is taken to be proportional to its size, and the error comes from the deviations.
    """
    read = len(values)
    if not read:
        return Estimate(0.0, math.inf)
    ratio = float(values.sum()) / float(frames.sum())
    if read >= all_pieces:
        return Estimate(float(values.sum()), 0.0)
    if read == 1:
        return Estimate(ratio * all_frames, math.inf)
    deviations = values - ratio * frames
    variance = float(deviations @ deviations) / (read - 1)
    error = all_frames / float(frames.mean()) * math.sqrt((1 - read / all_pieces) * variance / read)
    return Estimate(ratio * all_frames, error)
