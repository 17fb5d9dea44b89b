"""Removed memory cgroups and killed processes in the report."""

from collections.abc import Iterator, Sequence

from memdiag_api.containers import OomKill, OomScope, RemovedCgroups
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.render.text import cut, table, wrapped

_SMALL_BYTES = 1 << 20
_PLACES_SHOWN = 5
_KILLS_SHOWN = 8
_CLASSES_SHOWN = 4
_ID_SHOWN = 12


def removed_cgroups_lines(record: RemovedCgroups | None) -> list[str]:
    """Return what removed memory cgroups hold, and where they were; nothing if they hold little."""
    if record is None or record.held_bytes < _SMALL_BYTES:
        return []
    change = f" ({record.removed_change:+} in the window)" if record.removed_change else ""
    lines = [
        cut(
            f"REMOVED MEMORY CGROUPS   {record.removed:,}{change} are not freed, and hold "
            f"{format_bytes(record.held_bytes)}; {record.live:,} exist"
        )
    ]
    parts = {
        "page cache": record.file_bytes,
        "anonymous and shared memory": record.anon_bytes,
        "structures (estimated)": record.struct_bytes,
        "per-CPU memory (estimated)": record.percpu_bytes,
        "in swap besides": record.swap_bytes,
    }
    lines += wrapped(", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size), "  of it ")
    shown = record.shares[:_PLACES_SHOWN]
    rows = [("CHARGED", "GROUPS", "WHERE")]
    rows += [
        (format_bytes(one.charged_bytes), f"{one.groups:,}", _place(one.container_id, one.pod_uid, f"below {one.path}"))
        for one in shown
    ]
    rest = record.removed - sum(one.groups for one in shown)
    more = [f"  and {rest:,} more in other places"] if shown and rest > 0 else []
    return [*lines, *(table(rows, right=(0, 1)) if shown else []), *more]


def oom_kills_lines(kills: Sequence[OomKill]) -> list[str]:
    """Return the processes that were killed last; nothing if there is none."""
    if not kills:
        return []
    rows: list[tuple[str, ...]] = [("AGO", "MEMORY", "LIMIT", "VICTIM", "WHERE")]
    rows += [_kill(one) for one in kills[:_KILLS_SHOWN]]
    shown = table(rows, right=(0, 1, 2))
    lines = ["KILLED FOR LACK OF MEMORY   by the kernel in the last day, latest first", shown[0]]
    for row, kill in zip(shown[1:], kills, strict=False):
        lines += [row, *_classes(kill)]
    more = len(kills) - _KILLS_SHOWN
    return [*lines, f"  and {more} more before"] if more > 0 else lines


def _kill(kill: OomKill) -> tuple[str, ...]:
    is_node = kill.scope is OomScope.NODE
    return (
        "-" if kill.seconds_ago is None else format_duration(kill.seconds_ago),
        format_bytes(kill.anon_bytes + kill.file_bytes + kill.shmem_bytes),
        "the node" if is_node else "-" if kill.limit_bytes is None else format_bytes(kill.limit_bytes),
        shown_process(kill.comm, kill.pid),
        _place(kill.container_id, kill.pod_uid, kill.limit_path or "-"),
    )


def _classes(kill: OomKill) -> Iterator[str]:
    largest = sorted(kill.classes_bytes.items(), key=lambda item: -item[1])[:_CLASSES_SHOWN]
    sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in largest if size >= _SMALL_BYTES)
    where = "node" if kill.scope is OomScope.NODE else "cgroup"
    yield from wrapped(sizes, f"            largest in the {where} then: ")


def _place(container_id: str, pod_uid: str, path: str) -> str:
    if container_id:
        return f"container {container_id[:_ID_SHOWN]}"
    return f"pod {pod_uid}" if pod_uid else path
