"""What the rules judge: the measurements of a run, with the thresholds for this machine."""

from dataclasses import dataclass
from functools import cached_property

from memdiag_api.evidence import MemoryClass
from memdiag_api.findings import FindingTrend
from memdiag_api.memory_classes import ClassName
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.thresholds import Thresholds

FREE_CLASSES = (ClassName.MEM_FREE, ClassName.PER_CPU_LISTS)
_SLOWEST = 1e-3  # bytes per second: 32 KB a year
RECLAIMABLE_CLASSES = (ClassName.FILE_CACHE, ClassName.SRECLAIMABLE)


@dataclass(frozen=True)
class Situation:
    """The input of the rules."""

    measured: Measurements
    thresholds: Thresholds
    held_bytes: int = 0
    """The part of AllocPage in known holders, each block once."""

    @cached_property
    def suspect_bytes(self) -> int:
        """The minimum size of pinned memory that makes a suspect."""
        return self.thresholds.suspect_bytes(self.measured.host.mem_total_bytes)

    @cached_property
    def notable_bytes(self) -> int:
        """The size from which kernel memory is worth a finding."""
        return self.thresholds.notable_bytes(self.measured.host.mem_total_bytes)

    @cached_property
    def large_bytes(self) -> int:
        """The size that rules out NoLeak, unless it is explained."""
        return self.thresholds.large_bytes(self.measured.host.mem_total_bytes)

    @cached_property
    def slab_cache_bytes(self) -> int:
        """The size of one slab cache that rules out NoLeak."""
        return self.thresholds.slab_cache_bytes(self.measured.host.mem_total_bytes)

    @property
    def page_bytes(self) -> int:
        """The size of a page."""
        return self.measured.host.page_size_bytes

    @cached_property
    def classes(self) -> dict[str, MemoryClass]:
        """The classes of the breakdown by name. Empty if there is none."""
        return {one.name: one for one in self.measured.breakdown.classes} if self.measured.breakdown else {}

    @cached_property
    def class_bytes(self) -> dict[str, int]:
        """The size of each class by name. Empty if there is no breakdown."""
        sizes = {name: one.size_bytes for name, one in self.classes.items()}
        if self.measured.breakdown:
            sizes.setdefault(ClassName.ALLOC_PAGE, self.measured.breakdown.alloc_page_bytes)
        return sizes

    @cached_property
    def available_bytes(self) -> int:
        """Free memory, and memory that the kernel can reclaim."""
        return sum(self.class_bytes.get(name, 0) for name in (*FREE_CLASSES, *RECLAIMABLE_CLASSES))

    def trend(self, bytes_per_second: float, error_bytes_per_second: float, over_seconds: float) -> FindingTrend:
        """Return the trend with the time until the node has no available memory left."""
        exhausts = self.available_bytes / max(bytes_per_second, _SLOWEST) if self.class_bytes else None
        return FindingTrend(
            bytes_per_second=bytes_per_second,
            error_bytes_per_second=error_bytes_per_second,
            over_seconds=over_seconds,
            exhausts_node_in_seconds=exhausts if bytes_per_second > 0 else None,
        )
