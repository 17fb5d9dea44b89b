"""Slab memory by cache and by container, for the report."""

from memdiag_api.census.slab import SlabCache, SlabCaches
from memdiag_api.units import format_bytes
from memdiag_node.render.text import percent, table, wrapped

_SMALL_BYTES = 1024 * 1024
_ALWAYS_SHOWN = 5
_CACHES_SHOWN = 16
_CONTAINERS_SHOWN = 5
_CONTAINER_ID_SHOWN = 12


def slab_lines(record: SlabCaches) -> list[str]:
    """The lines of the report; empty without any slab."""
    total = record.reclaimable_bytes + record.unreclaimable_bytes
    if not total:
        return []
    lines = [
        f"SLAB BY CACHE   {format_bytes(total)} in slabs, {format_bytes(record.reclaimable_bytes)} of it reclaimable"
    ]
    if record.sampled_share < 1:
        lines.append(
            f"  Scaled from {percent(round(1000 * record.sampled_share), 1000).strip()} of memory: "
            f"standard error {format_bytes(record.error_bytes)}"
        )
    shown = [
        cache
        for number, cache in enumerate(record.caches[:_CACHES_SHOWN])
        if number < _ALWAYS_SHOWN or cache.size_bytes >= _SMALL_BYTES
    ]
    if shown:
        header = ("SIZE", "CHANGE", "OBJECTS", "EACH", "CACHE")
        rows = table((header, *map(_row, shown)), right=(0, 1, 2, 3))
        lines.append(rows[0])
        for row, cache in zip(rows[1:], shown, strict=True):
            lines += [row, *wrapped(cache.purpose, " " * 12)]
    hidden = len(record.caches) - len(shown) + record.other_caches
    if hidden:
        rest = total - sum(cache.size_bytes for cache in shown)
        lines.append(f"  and {hidden} more caches with {format_bytes(max(0, rest))}")
    return lines + _beside(record) + _charged(record)


def _row(cache: SlabCache) -> tuple[str, ...]:
    change = cache.change_bytes
    return (
        format_bytes(cache.size_bytes),
        "-" if change is None else f"{'+' if change >= 0 else ''}{format_bytes(change)}",
        f"{cache.objects:,}",
        format_bytes(cache.object_bytes),
        cache.name + (" (merged)" if cache.merged else ""),
    )


def _beside(record: SlabCaches) -> list[str]:
    lines = []
    if record.large_kmalloc_bytes:
        lines.append(f"  Large kmalloc blocks, in no cache: {format_bytes(record.large_kmalloc_bytes)}")
    if abs(record.difference_bytes) >= _SMALL_BYTES:
        what = "" if record.large_kmalloc_bytes is not None else ", large kmalloc blocks among it"
        lines.append(f"  The kernel's own counters differ by {format_bytes(record.difference_bytes)}{what}")
    if record.removed_cgroups and record.removed_cgroup_bytes >= _SMALL_BYTES:
        lines.append(
            f"  Removed memory cgroups: {record.removed_cgroups:,} still have "
            f"{format_bytes(record.removed_cgroup_bytes)} of objects"
        )
    return lines


def _charged(record: SlabCaches) -> list[str]:
    lines = []
    for charge in (record.charged or [])[:_CONTAINERS_SHOWN]:
        if charge.size_bytes < _SMALL_BYTES:
            continue
        owner = f"container {charge.container_id[:_CONTAINER_ID_SHOWN]}" if charge.container_id else "other cgroups"
        caches = ", ".join(f"{cache.name} {format_bytes(cache.size_bytes)}" for cache in charge.caches)
        lines += wrapped(f"{format_bytes(charge.size_bytes)} charged to {owner}: {caches}", "  ")
    return lines
