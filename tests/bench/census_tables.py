"""What the runs of census_cost.py found, as Markdown: ratios, agreement, and the stated error beside the true one."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memdiag_api.units import format_bytes

Caches = Mapping[str, Sequence[int]]
"""By the name of the cache: places for objects, allocated objects, bytes of its slabs."""


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, with the smallest and the largest in parentheses."""
    values = sorted(values)
    shown = [f"{value:.{digits}f}" for value in (statistics.median(values), values[0], values[-1])]
    return "{} ({} to {})".format(*shown)


def parse_slabtop(text: str) -> dict[str, list[int]]:
    """The rows of `slabtop -o`: objects, active objects and bytes of each cache."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.split()[:2] == ["OBJS", "ACTIVE"])
    rows = (line.split() for line in lines if line.strip())
    return {row[7]: [int(row[0]), int(row[1]), int(row[6].removesuffix("K")) << 10] for row in rows}


def agreement(
    ours: Caches, before: Caches, after: Caches, *, column: int, large: Iterable[str]
) -> tuple[int, str, float]:
    """How many of the caches `large` all have, and the one that is furthest from theirs, as a share.

    `before` and `after` are what the other tool found around ours: what is between them agrees. Column 0 is places for
    objects, column 1 allocated objects.
    """
    differences = {}
    for name in sorted(large):
        if name in ours and name in before and name in after:
            low, high = sorted((before[name][column], after[name][column]))
            value = ours[name][column]
            differences[name] = (value - min(max(value, low), high)) / max(1, high)
    largest = max(differences, key=lambda name: abs(differences[name]))
    return len(differences), largest, differences[largest]


def cpu_seconds(run: Mapping[str, Any]) -> float:
    """The CPU time of all parts of a census."""
    return float(sum(part["cpu_seconds"] for part in run["parts"].values()))


def peak_bytes(run: Mapping[str, Any]) -> int:
    """The most memory that a census had at any time."""
    return int(max(part["peak_bytes"] for part in run["parts"].values()))


def objects(run: Mapping[str, Any]) -> int:
    """The allocated objects of all caches."""
    return sum(in_use for _, in_use, _ in run["caches"].values())


def cost_rows(levels: Mapping[int, Sequence[Mapping[str, Any]]]) -> str:
    """The table of cost by the number of planted objects; each round has what both found and took."""
    rows = [
        "| planted | all objects | memdiag, CPU s | µs per object | resident before, MiB | peak, MiB | "
        "`slabtop -o`, CPU s | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for planted, rounds in levels.items():
        ours = [one["ours"] for one in rounds]
        cells = [
            f"{planted:,}",
            f"{statistics.median(map(objects, ours)):,.0f}",
            spread(map(cpu_seconds, ours)),
            spread(cpu_seconds(run) * 1e6 / objects(run) for run in ours),
            f"{statistics.median(run['before_bytes'] for run in ours) / 2**20:.0f}",
            spread((peak_bytes(run) / 2**20 for run in ours), 0),
            spread((one["slabtop_seconds"] for one in rounds), 3),
            spread((cpu_seconds(one["ours"]) / one["slabtop_seconds"] for one in rounds), 0),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def part_rows(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table of the parts of a census: median CPU time and peak of memory."""
    rows = ["| part | CPU s | peak, MiB |", "|---|---|---|"]
    for name in runs[0]["parts"]:
        seconds = spread(run["parts"][name]["cpu_seconds"] for run in runs)
        peak = statistics.median(run["parts"][name]["peak_bytes"] for run in runs)
        rows.append(f"| {name} | {seconds} | {peak / 2**20:.0f} |")
    return "\n".join(rows)


def sample_rows(samples: Sequence[Mapping[str, Any]]) -> str:
    """The table of the simulated machine."""
    rows = [
        "| time limit, s | took, s | CPU s | read | slabs kept | memory added | objects, estimated | "
        "stated error (95 %) | true error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in samples:
        cells = [
            f"{one['budget_seconds']:g}",
            f"{one['seconds']:.2f}",
            f"{one['cpu_seconds']:.2f}",
            f"{one['sampled_share']:.1%}",
            f"{one['slabs']:,}",
            format_bytes(one["peak_bytes"] - one["before_bytes"]),
            f"{one['estimate']:,.0f}",
            f"±{one['margin'] / one['truth']:.1%}",
            f"{one['estimate'] / one['truth'] - 1:+.1%}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def guest_rows(ours: Sequence[Mapping[str, Any]], drgn: Sequence[Mapping[str, Any]]) -> str:
    """The table of what drgn and the census took in a guest."""
    rows = ["| step | memdiag, CPU s | drgn, CPU s | drgn / memdiag |", "|---|---|---|---|"]
    steps = {
        "imports and start": ("imports", "start"),
        "count every cache": ("count",),
        "list the directory entries": ("list",),
        "count and list": ("count", "list"),
    }
    for name, parts in steps.items():
        pair = [[sum(run["cpu_seconds"][part] for part in parts) for run in runs] for runs in (ours, drgn)]
        ratio = spread(peer / mine for mine, peer in zip(*pair, strict=True))
        rows.append(f"| {name} | {spread(pair[0])} | {spread(pair[1])} | {ratio} |")
    return "\n".join(rows)
