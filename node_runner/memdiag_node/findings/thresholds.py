"""The thresholds of the findings and the verdict, all of which can be configured (docs/verdicts.md)."""

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
DAY_SECONDS = 86_400
_LEAST_OBJECT_GROWTH_BYTES = 256 * KIB
"""In a short window, caches of every CPU that fill once are as large."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Minimum sizes of findings: the larger of a floor and a share of the node's memory.

    The floors avoid false alarms on small machines: the queues and caches of a healthy node change by some MiB all the
    time, and its slab alone has 50 to 150 MiB. The shares avoid them on large ones: the queues of a busy server can
    hold 0.1 % of 512 GiB for a short time.
    """

    suspect_floor_bytes: int = 16 * MIB
    suspect_share: float = 0.001
    notable_floor_bytes: int = 64 * MIB
    notable_share: float = 0.0025
    large_floor_bytes: int = 256 * MIB
    large_share: float = 0.02
    unexplained_ceiling_bytes: int = 4 * GIB
    """Unexplained AllocPage of this size rules out NoLeak on the largest machines, too."""
    stuck_floor_seconds: float = 1.0
    """A socket with unread data of which nothing was read for so long is stuck."""
    leak_age_seconds: float = 10.0
    """Unread data is a leak only if it has waited for so long, or grows. Back-pressure of a few seconds is neither."""
    slow_drain_seconds: float = 600.0
    """A reader is slow if its backlog would take so long to drain at the present rate."""
    growth_per_day_bytes: int = 512 * MIB
    """Growth of so much a day matters on every node."""
    exhaustion_seconds: float = 30.0 * DAY_SECONDS
    """Slower growth matters if it would exhaust the node's free and reclaimable memory within this time."""
    object_growth_per_minute_bytes: int = 512 * KIB
    """Slab objects of one call stack that grow by so much a minute may be a leak. Their growth is sampled: the smaller
    it is, the more of it is chance."""

    def is_relevant_growth(self, bytes_per_second: float, exhausts_node_in_seconds: float | None) -> bool:
        """Return whether memory that grows like this matters. Null: the available memory is not known."""
        return (
            bytes_per_second * DAY_SECONDS >= self.growth_per_day_bytes
            or exhausts_node_in_seconds is None
            or exhausts_node_in_seconds <= self.exhaustion_seconds
        )

    def object_growth_bytes(self, window_seconds: float) -> int:
        """Return the minimum growth in bytes, within the window, of slab objects of one stack that may be a leak."""
        return max(_LEAST_OBJECT_GROWTH_BYTES, round(self.object_growth_per_minute_bytes * window_seconds / 60))

    def suspect_bytes(self, mem_total_bytes: int) -> int:
        """Return the minimum size in bytes of pinned or growing memory that makes a suspect."""
        return max(self.suspect_floor_bytes, round(self.suspect_share * mem_total_bytes))

    def notable_bytes(self, mem_total_bytes: int) -> int:
        """Return the size in bytes from which kernel memory with a known holder is worth a finding."""
        return max(self.notable_floor_bytes, round(self.notable_share * mem_total_bytes))

    def slab_cache_bytes(self, mem_total_bytes: int) -> int:
        """Return the size in bytes of one slab cache that rules out NoLeak: a quarter of what a class may have."""
        return self.large_bytes(mem_total_bytes) // 4

    def large_bytes(self, mem_total_bytes: int) -> int:
        """Return the size in bytes of a class or of one owner of it that rules out NoLeak, unless it is explained."""
        return max(self.large_floor_bytes, round(self.large_share * mem_total_bytes))
