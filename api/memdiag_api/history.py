"""What is kept of a run for later ones: sizes by which they see slow growth (docs/history.md)."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, TypeVar

from pydantic import AwareDatetime, Field

from memdiag_api import limits
from memdiag_api.memory_classes import ClassName
from memdiag_api.record import ByteCount, Name, Record, SignedByteCount

HISTORY_VARIABLE = "MEMDIAG_HISTORY"
"""The environment variable in which a runner pod gets the summaries of earlier runs: a JSON list of them."""

SummaryText = Annotated[str, Field(max_length=limits.MAX_SUMMARY_TEXT)]


class SizeByName(Record):
    """SizeByName is the size of one class of memory, or of one slab cache."""

    name: SummaryText = Field(description="Name of the class or slab cache.")
    size_bytes: ByteCount


class HolderSize(Record):
    """HolderSize is what the holders of one kind and owner kept."""

    kind: SummaryText = Field(description="Kind of the holders, as in holders.")
    memory_class: SummaryText = Field(
        default=ClassName.ALLOC_PAGE.value, description="Class of the breakdown that the bytes belong to."
    )
    owner: SummaryText = Field(description="Process that has them, or a description of the holder if none has.")
    size_bytes: ByteCount


class RunSummary(Record):
    """RunSummary is what later runs of the same node and boot compare with: the sizes of memory at the end of a run."""

    run_id: Name = Field(description="ID of the run.")
    end_time: AwareDatetime = Field(description="End of its window, by the clock of the host.")
    boot_id: SummaryText = Field(description="Random ID that the kernel generated at boot.")
    node_name: Name = Field(default="", description="Name of the node, as passed to the runner.")
    uptime_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Time since boot in seconds. Null if it was not read.",
    )
    mem_total_bytes: ByteCount
    classes: Annotated[list[SizeByName], Field(max_length=limits.MAX_CLASSES)] = Field(
        default_factory=list, description="Classes of the breakdown."
    )
    alloc_page_bytes: ByteCount = Field(description="Bytes of AllocPage.")
    alloc_page_error_bytes: ByteCount = Field(default=0, description="Estimated error of allocPageBytes.")
    unexplained_bytes: SignedByteCount | None = Field(
        default=None,
        description="Part of AllocPage that is in no known holder. Negative if the holders have more than AllocPage, "
        "which is possible because they are not read at the same moment. Null if the holders were not scanned.",
    )
    holders: Annotated[list[HolderSize], Field(max_length=limits.MAX_SUMMARY_HOLDERS)] = Field(
        default_factory=list, description="The largest holders, summed up by kind and owner."
    )
    slab_caches: Annotated[list[SizeByName], Field(max_length=limits.MAX_SUMMARY_CACHES)] = Field(
        default_factory=list,
        description="The largest slab caches that the kernel cannot reclaim. Empty if they were not read.",
    )

    def class_bytes(self, name: str) -> int | None:
        """The size of a class. None if it was not measured."""
        if name == ClassName.ALLOC_PAGE:
            return self.alloc_page_bytes
        return next((one.size_bytes for one in self.classes if one.name == name), None)


RunSummaryT = TypeVar("RunSummaryT", bound=RunSummary)


def latest_first(runs: Iterable[RunSummaryT]) -> list[RunSummaryT]:
    """Return each run once, the latest first."""
    by_id: dict[tuple[str, datetime], RunSummaryT] = {}
    for run in sorted(runs, key=lambda one: one.end_time, reverse=True):
        by_id.setdefault((run.run_id, run.end_time), run)
    return list(by_id.values())


def thinned(runs: Sequence[RunSummaryT], limit: int) -> list[RunSummaryT]:
    """Return at most `limit` of `runs`, which are sorted by time: the first, the last and an even choice in between.

    What is left out is each time the run whose neighbours are the closest to each other, so that frequent runs do not
    shorten the time over which growth is measured.
    """
    kept = list(runs)
    while len(kept) > max(limit, 2):
        gaps = [abs((kept[at + 1].end_time - kept[at - 1].end_time).total_seconds()) for at in range(1, len(kept) - 1)]
        del kept[1 + gaps.index(min(gaps))]
    return kept[: max(0, limit)]
