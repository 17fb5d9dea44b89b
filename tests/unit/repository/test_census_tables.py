from bench.census_tables import agreement, parse_slabtop, sample_rows, spread

SLABTOP = """\
 Active / Total Objects (% used)    : 100 / 200 (50.0%)
 Minimum / Average / Maximum Object : 0.01K / 0.24K / 50.28K

  OBJS ACTIVE  USE OBJ SIZE  SLABS OBJ/SLAB CACHE SIZE NAME
  2100   2000  95%    0.19K    100       21       400K dentry
   408    102  25%    0.04K      4      102        16K extent_status
"""


def test_slabtop_rows_are_read_by_cache() -> None:
    assert parse_slabtop(SLABTOP) == {"dentry": [2100, 2000, 400 << 10], "extent_status": [408, 102, 16 << 10]}


def test_the_cache_that_differs_the_most_is_named() -> None:
    before = parse_slabtop(SLABTOP)
    after = before | {"dentry": [2121, 2010, 0]}
    ours = {"dentry": [2110, 1990, 0], "extent_status": [408, 51, 0], "other": [1, 1, 0]}
    assert agreement(ours, before, after, column=0, large=before) == (2, "dentry", 0)  # between the two
    assert agreement(ours, before, after, column=1, large=before) == (2, "extent_status", -0.5)
    assert agreement(ours, before, after, column=1, large=["dentry", "other"]) == (1, "dentry", -10 / 2010)


def test_a_spread_is_median_smallest_and_largest() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"


def test_the_stated_error_stands_beside_the_true_one() -> None:
    sample = {"budget_seconds": 10, "seconds": 1, "cpu_seconds": 1, "sampled_share": 0.08, "slabs": 5}
    sample |= {"before_bytes": 0, "peak_bytes": 1 << 20, "estimate": 103.0, "margin": 8.0, "truth": 100}
    assert "| 8.0% | 5 | 1.00 MiB | 103 | ±8.0% | +3.0% |" in sample_rows([sample])
