"""Earlier runs in the report: what changed most, and only what is known about it."""

from collections.abc import Sequence

import pytest

from memdiag_api import limits
from memdiag_api.history import HolderSize, RunSummary, SizeByName
from memdiag_node.render.history import history_lines
from memdiag_node.render.text import WIDTH
from support.report_records import MIB, run, runs


def rows_of(now: RunSummary, *earlier: RunSummary) -> dict[str, list[str]]:
    """The cells of each row by its name: sizes and change."""
    _, header, *rows = history_lines(now, earlier)
    start = header.index("WHAT")
    width = max(len(row[start:].split("  ")[0]) for row in rows)
    return {row[start : start + width].strip(): row[start + width :].split() for row in rows}


def with_caches(summary: RunSummary, *caches: tuple[str, int]) -> RunSummary:
    sizes = [SizeByName(name=name, size_bytes=size * MIB) for name, size in caches]
    return summary.model_copy(update={"slab_caches": sizes})


def full_list(smallest_mib: int) -> Sequence[tuple[str, int]]:
    return [(f"cache-{number}", smallest_mib) for number in range(limits.MAX_SUMMARY_CACHES)]


def test_a_first_run_has_no_section() -> None:
    assert history_lines(runs()[0], []) == []
    assert history_lines(None, runs()) == []


def test_every_run_is_a_column_the_oldest_first() -> None:
    now, *earlier = runs()
    heading, header, *_ = history_lines(now, earlier)
    assert heading == "SINCE EARLIER RUNS   3 runs of this boot, the first 2 days ago; times are in UTC"
    columns = ["WHAT", "24", "Nov", "16:04", "25", "Nov", "16:04", "26", "Nov", "04:04", "NOW", "CHANGE"]
    assert header.split() == columns


def test_what_grew_most_comes_first_and_free_memory_last() -> None:
    found = rows_of(*runs())
    assert list(found) == [
        "AllocPage",
        "SUnreclaim",
        "AllocPage in no known holder",
        "slab cache kmalloc-64",
        "Socket of nginx",
        "MemFree",
    ]
    assert found["AllocPage"] == ["200", "MiB", "1.39", "GiB", "1.99", "GiB", "2.59", "GiB", "+2.39", "GiB"]
    assert found["MemFree"][-2:] == ["-2.60", "GiB"]


def test_runs_without_a_change_are_one_line() -> None:
    assert history_lines(run(0, 200), [run(1, 200)])[1:] == ["  Nothing changed by 1.00 MiB or more."]


def test_a_restarted_process_is_compared_with_itself() -> None:
    """Its process ID and its container are other ones."""
    found = rows_of(run(0, 200, holder_mib=50, pid=99), run(1, 200, holder_mib=20, pid=7))
    assert found["Socket of nginx"] == ["30.0", "MiB", "60.0", "MiB", "+30.0", "MiB"]
    assert not [name for name in found if "[" in name]


@pytest.mark.parametrize(
    ("earlier", "now", "expected"),
    [
        ([], [("new", 50)], None),  # the earlier run did not read caches
        ([("a", 5)], [("a", 5), ("new", 50)], "0 B 50.0 MiB +50.0 MiB"),
        (full_list(20), [*full_list(20), ("new", 50)], "<=20.0 MiB 50.0 MiB +30.0 MiB"),
        (full_list(60), [*full_list(60), ("new", 50)], None),  # it may have shrunk or grown
        ([*full_list(20), ("new", 50)], full_list(20), "50.0 MiB <=20.0 MiB -30.0 MiB"),
        ([*full_list(60), ("new", 50)], full_list(60), None),
    ],
)
def test_a_cache_that_a_run_does_not_list(
    earlier: Sequence[tuple[str, int]], now: Sequence[tuple[str, int]], expected: str | None
) -> None:
    found = rows_of(with_caches(run(0, 500), *now), with_caches(run(1, 200), *earlier))
    assert found.get("slab cache new") == (expected.split() if expected else None)


def test_a_run_without_a_scan_has_no_size_of_what_is_in_no_holder() -> None:
    middle = run(1, 300).model_copy(update={"unexplained_bytes": None, "holders": []})
    found = rows_of(run(0, 500, holder_mib=40), middle, run(2, 200))
    assert found["AllocPage in no known holder"] == ["100", "MiB", "-", "360", "MiB", "+260", "MiB"]
    assert found["Socket of nginx"] == ["10.0", "MiB", "-", "50.0", "MiB", "+40.0", "MiB"]


def test_the_section_is_short_and_narrow_with_the_longest_names_and_most_runs() -> None:
    def full(hours_ago: int, each_mib: int) -> RunSummary:
        names = [f"{number:02}" + "n" * 62 for number in range(limits.MAX_CLASSES)]
        sizes = [SizeByName(name=name, size_bytes=each_mib * MIB) for name in names]
        return run(hours_ago, 200).model_copy(
            update={
                "unexplained_bytes": each_mib * MIB,
                "classes": sizes,
                "slab_caches": sizes[: limits.MAX_SUMMARY_CACHES],
                "holders": [
                    HolderSize(kind=one.name, owner=one.name, size_bytes=one.size_bytes)
                    for one in sizes[: limits.MAX_SUMMARY_HOLDERS]
                ],
            }
        )

    found = history_lines(full(0, 1 << 40), [full(hours, hours << 10) for hours in range(1, limits.MAX_HISTORY_RUNS)])
    assert len(found) == 2 + 8 + 1 + 3 + 3  # heading and header, classes, the rest of AllocPage, caches, holders
    assert max(map(len, found)) <= WIDTH
    assert not [line for line in found[2:] if not line.endswith("B")], "a change is cut off"
