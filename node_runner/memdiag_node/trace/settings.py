"""The settings of a trace."""

from dataclasses import dataclass

from memdiag_api.limits import MAX_SLICES


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """The settings of a trace."""

    duration_seconds: float
    """The planned window, which defines the slices. A trace that runs longer puts the rest in the last slice."""
    slices: int = 20
    cpu_budget_share: float = 0.05
    """Share of each CPU's time for recording; above it, what makes the load is thinned out. 0: never."""

    def __post_init__(self) -> None:
        if not 0 < self.slices <= MAX_SLICES or self.duration_seconds <= 0 or not 0 <= self.cpu_budget_share <= 1:
            raise ValueError(f"a trace needs a positive duration, 1 to {MAX_SLICES} slices, a budget of 0 to 1: {self}")

    @property
    def slice_seconds(self) -> float:
        """The length of a slice."""
        return self.duration_seconds / self.slices
