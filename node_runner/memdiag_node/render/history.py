"""Growth since earlier runs in the report: the sizes of each run, for what changed most."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from memdiag_api import limits
from memdiag_api.history import RunSummary, thinned
from memdiag_api.memory_classes import ClassName
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.render.text import table

_SMALL_BYTES = 1 << 20
_RUNS_SHOWN = 3
_CLASSES_SHOWN = 8
_PARTS_SHOWN = 3
_NAME_WIDTH = 34
"""So that the change, which is the last column, is never cut."""
_IDENTITY = re.compile(r"\[\d+\](?: in [0-9a-f]+)?$")
"""Of a process and its container, after its name."""
_FREE = (ClassName.MEM_FREE, ClassName.PER_CPU_LISTS)


@dataclass(frozen=True, slots=True)
class _Size:
    """The size in one run. `is_bound`: it is not in the full list of that run, so it was this size at most."""

    size_bytes: int
    is_bound: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """The sizes of one class, cache or kind of holder in each run, oldest first. None for a run without this figure."""

    name: str
    sizes: Sequence[_Size | None]

    @property
    def first(self) -> _Size | None:
        """The earliest known size."""
        return next((one for one in self.sizes[:-1] if one), None)

    @property
    def change_bytes(self) -> int:
        """The change until this run: of bounds at least as much. 0 if nothing is known about it."""
        first, last = self.first, self.sizes[-1]
        if first is None or last is None:
            return 0
        change = last.size_bytes - first.size_bytes
        return 0 if (first.is_bound and change < 0) or (last.is_bound and change > 0) else change


def history_lines(summary: RunSummary | None, history: Sequence[RunSummary]) -> list[str]:
    """Return the lines of the report; nothing without a summary of this run, or without earlier runs."""
    if summary is None or not history:
        return []
    earlier = sorted(history, key=lambda one: one.end_time)
    runs = [*thinned(earlier, _RUNS_SHOWN), summary]
    seconds = (summary.end_time - earlier[0].end_time).total_seconds()
    count = f"{len(earlier)} run{'s' if len(earlier) > 1 else ''}"
    lines = [f"SINCE EARLIER RUNS   {count} of this boot, the first {format_duration(seconds)} ago; times are in UTC"]
    names = dict.fromkeys([ClassName.ALLOC_PAGE.value, *(one.name for run in runs for one in run.classes)])
    caches = [{f"slab cache {one.name}": one.size_bytes for one in run.slab_caches} for run in runs]
    rows = [
        *_changed(_classes(runs, [name for name in names if name not in _FREE]), _CLASSES_SHOWN),
        *_changed([_unexplained(runs)], 1),
        *_changed(_listed(caches, limits.MAX_SUMMARY_CACHES), _PARTS_SHOWN),
        *_changed(_listed([_holder_sizes(run) for run in runs], limits.MAX_SUMMARY_HOLDERS), _PARTS_SHOWN),
        *_changed(_classes(runs, _FREE), len(_FREE)),
    ]
    if not rows:
        return [*lines, f"  Nothing changed by {format_bytes(_SMALL_BYTES)} or more."]
    header = ("WHAT", *(_when(one.end_time) for one in runs[:-1]), "NOW", "CHANGE")
    return lines + table([header, *map(_cells, rows)], right=range(1, len(header)))


def _changed(rows: Iterable[_Row], limit: int) -> list[_Row]:
    """Return those of the rows that changed most, at most `limit`: first what grew, then what shrank."""
    changed = [row for row in rows if abs(row.change_bytes) >= _SMALL_BYTES]
    most = sorted(changed, key=lambda row: -abs(row.change_bytes))[:limit]
    return sorted(most, key=lambda row: -row.change_bytes)


def _classes(runs: Sequence[RunSummary], names: Iterable[str]) -> Iterator[_Row]:
    """Yield the rows of classes. A run leaves out classes that are empty."""
    for name in names:
        is_known = [bool(run.classes) or name == ClassName.ALLOC_PAGE for run in runs]
        sizes = [run.class_bytes(name) or 0 for run in runs]
        yield _Row(name, [_Size(size) if known else None for size, known in zip(sizes, is_known, strict=True)])


def _unexplained(runs: Sequence[RunSummary]) -> _Row:
    sizes = [run.unexplained_bytes for run in runs]
    return _Row("AllocPage in no known holder", [None if size is None else _Size(size) for size in sizes])


def _listed(lists: Sequence[Mapping[str, int]], limit: int) -> Iterator[_Row]:
    """Yield a row for each name in the lists of the runs, which have the `limit` largest. An empty one was not made."""

    def size_of(sizes: Mapping[str, int], name: str) -> _Size | None:
        if not sizes or name in sizes:
            return _Size(sizes[name]) if sizes else None
        return _Size(min(sizes.values()), is_bound=True) if len(sizes) >= limit else _Size(0)

    for name in dict.fromkeys(name for sizes in lists for name in sizes):
        yield _Row(name, [size_of(sizes, name) for sizes in lists])


def _holder_sizes(run: RunSummary) -> dict[str, int]:
    """Return the sizes by kind and name of the process, which stays the same if the process is restarted."""
    sizes: dict[str, int] = {}
    for one in run.holders:
        name = f"{one.kind} of {_IDENTITY.sub('', one.owner)}"
        sizes[name] = sizes.get(name, 0) + one.size_bytes
    return sizes


def _cells(row: _Row) -> tuple[str, ...]:
    name = row.name if len(row.name) <= _NAME_WIDTH else f"{row.name[: _NAME_WIDTH - 3]}..."
    sign = "+" if row.change_bytes >= 0 else ""
    return name, *map(_size, row.sizes), f"{sign}{format_bytes(row.change_bytes)}"


def _size(size: _Size | None) -> str:
    if size is None:
        return "-"
    return f"{'<=' if size.is_bound else ''}{format_bytes(size.size_bytes)}"


def _when(time: datetime) -> str:
    return f"{time.astimezone(UTC).day} {time.astimezone(UTC):%b %H:%M}"
