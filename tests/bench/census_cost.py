"""The cost of the census of kernel objects, beside slabtop on this machine and beside drgn in a guest.

    python tests/bench/census_cost.py [--rounds 3] [--keep-caches] [--without-guest] [--write docs/benchmarks.md]

slabtop prints what the kernel counts in /proc/slabinfo, and reads no object. drgn reads objects as the census does,
through /proc/kcore, and with the kernel's debug information.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import debug_disk
from bench.census_tables import (
    agreement,
    cost_rows,
    cpu_seconds,
    guest_rows,
    objects,
    parse_slabtop,
    part_rows,
    peak_bytes,
    sample_rows,
    spread,
)
from local_cluster import guest_build
from memdiag_api.units import format_bytes
from planted.files import negative_dentries, tmpfs_mount
from support import guest_drgn
from support.benchmarks import machine, write_section
from support.guest import boot
from support.guest_calls import CALLS, MODULES

_ONCE = Path(__file__).with_name("census_once.py")
_LEVELS = 3
_FILES = 100_000
"""Of each million: in a tmpfs, each with an entry, an inode, the inode's security blob and one page."""
_ABSENT = 700_000
"""Of each million: entries of names that do not exist."""
_OBJECTS = 3 * _FILES + _ABSENT
_LARGE_BYTES = 1 << 20
_TIME_LIMITS_SECONDS = (10.0, 0.2)
_SUITE, _GUEST_NAMES, _GUEST_ROUNDS = "trixie", 100_000, 2


def _once(*arguments: object) -> dict[str, Any]:
    """Run census_once.py. Raises CalledProcessError; its errors are on standard error."""
    command = [sys.executable, str(_ONCE), *map(str, arguments)]
    report: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return report


def _slabtop() -> tuple[float, dict[str, list[int]]]:
    """The CPU time of `slabtop -o`, and its rows."""
    before = _children_seconds()
    done = subprocess.run(["slabtop", "-o"], stdout=subprocess.PIPE, text=True, check=True)
    return _children_seconds() - before, parse_slabtop(done.stdout)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _round() -> dict[str, Any]:
    ours = _once("take")
    seconds, rows = _slabtop()
    return {"ours": ours, "slabtop_seconds": seconds, "slabtop": rows}


def measure_here(rounds: int) -> str:
    """Plant a million objects after the other, take censuses beside slabtop; returns the tables."""
    levels: dict[int, list[dict[str, Any]]] = {}
    with ExitStack() as planted:
        for level in range(1, _LEVELS + 1):
            planted.enter_context(tmpfs_mount(_FILES, file_bytes=1))
            planted.enter_context(negative_dentries(_ABSENT))
            levels[level * _OBJECTS] = [_round() for _ in range(rounds)]
            print(f"{level * _OBJECTS:,} objects: measured", file=sys.stderr)
        samples = [_once("simulate", limit) for limit in _TIME_LIMITS_SECONDS]
    largest = list(levels.values())[-1]
    runs = [one["ours"] for one in largest]
    return f"""\
{cost_rows(levels)}

{textwrap.fill(f"{_linearity(levels)} {_agreement(largest)}", 120)}

Parts at {_LEVELS * _OBJECTS:,} planted objects:

{part_rows(runs)}

Before the census, the start of the runner takes {spread(run["start_seconds"] for run in runs)} s of CPU and
{format_bytes(max(run["start_peak_bytes"] for run in runs))} at most: imports, types of the kernel, and the compiler.

**A simulated node of 1 TiB**: the memory of this machine, as often as it fits. Only finding the slabs is simulated, and
the total from a sample; the search ends at the time limit, or when as many slabs are found as are kept.

{sample_rows(samples)}
"""


def _linearity(levels: dict[int, list[dict[str, Any]]]) -> str:
    """What one more object takes: a straight line through all rounds."""
    runs = [one["ours"] for rounds in levels.values() for one in rounds]
    counts = list(map(objects, runs))
    seconds = statistics.linear_regression(counts, list(map(cpu_seconds, runs)))
    peaks = statistics.linear_regression(counts, list(map(peak_bytes, runs)))
    correlation = statistics.correlation(counts, list(map(cpu_seconds, runs)))
    return (
        f"A straight line through all rounds: {seconds.intercept:.2f} s, and {seconds.slope * 1e6:.2f} µs for each "
        f"object (correlation {correlation:.2f}); of memory at the peak, {peaks.slope:.0f} bytes for each."
    )


def _agreement(rounds: list[dict[str, Any]]) -> str:
    found = []
    for column in (0, 1):
        differences = []
        for one in rounds:
            large = [name for name, (_, _, size_bytes) in one["slabtop"].items() if size_bytes >= _LARGE_BYTES]
            before, after = one["ours"]["slabinfo"]
            differences.append(agreement(one["ours"]["caches"], before, after, column=column, large=large))
        found.append(max(differences, key=lambda one: abs(one[2])))
    (count, cache, share), (_, active_cache, active_share) = found
    last = rounds[-1]["ours"]
    all_active = sum(active for _, active in last["slabinfo"][1].values())
    total = objects(last) / all_active - 1
    return (
        f"Results of the {count} caches of 1 MiB and more, beside the file that slabtop reads, just before and after "
        f"the slabs were found: places for objects differ by {share:+.1%} at most ({cache}), allocated objects by "
        f"{active_share:+.1%} ({active_cache}). slabinfo counts all objects of the CPUs' "
        f"slabs as active. All allocated objects together: {objects(last):,}, slabinfo {all_active:,} ({total:+.2%})."
    )


def measure_in_guest(rounds: int) -> str:
    """Boot a guest, and let drgn and the census count the same slabs; returns the table."""
    build = guest_build.provide(_SUITE)
    disk = debug_disk.provide(_SUITE, build.release)
    with tempfile.TemporaryDirectory(prefix="memdiag-bench-") as folder:
        work = Path(folder)
        (work / MODULES).mkdir()
        call = ("drgn", guest_drgn.__name__, guest_drgn.compare.__name__, (_GUEST_NAMES, rounds))
        (work / CALLS).write_text(json.dumps([call]))
        reports, _, _ = boot(build.kernel, "support.guest_calls", work, extra=(CALLS, MODULES), disks=[disk])
    if "error" in reports["drgn"]:
        raise RuntimeError(reports["drgn"]["error"])
    found = reports["drgn"]["answer"]
    ours, drgn = found["ours"], found["drgn"]
    large = [name for name, (places, _) in ours[0]["caches"].items() if places >= guest_drgn.MANY]
    around = list(zip(ours, drgn, drgn[1:], strict=False))  # drgn runs first, and ours between two of its runs
    differences = [
        agreement(mine["caches"], before["caches"], after["caches"], column=1, large=large)
        for mine, before, after in around
    ]
    count, cache, share = max(differences, key=lambda one: abs(one[2]))
    mine, before, after = around[-1]
    return f"""\
**Beside drgn** {drgn[0]["version"]}, in an emulated guest with Linux {build.release} and {_GUEST_NAMES:,} planted
directory entries, {rounds} rounds in turn:

{guest_rows(ours, drgn)}

drgn counts from the kernel's own counters and the lists of partly used slabs; the census finds every slab, so its
count finds what its lists then need. Results: {mine["listed"]:,} directory entries were listed by memdiag, and by drgn
{before["listed"]:,} before that and {after["listed"]:,} after it; of the {count} caches with {guest_drgn.MANY:,}
objects and more, allocated objects are outside of drgn's two figures by {share:+.1%} at most ({cache}).
"""


def main() -> int:
    """Measure and print; with --write, replace the section `Cost of the census` of a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-caches", action="store_true", help="leave the machine's unused inodes and entries")
    parser.add_argument("--without-guest", action="store_true", help="do not compare with drgn")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("the census needs root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is planted is removed
    if not options.keep_caches:
        Path("/proc/sys/vm/drop_caches").write_text("2")  # else the node has as many objects as happen to be left
    text = f"{_EXPLANATION}\n{machine()}; {options.rounds} rounds.\n\n{measure_here(options.rounds)}"
    if not options.without_guest:
        text += f"\n{measure_in_guest(_GUEST_ROUNDS)}"
    print(text)
    if options.write:
        write_section(options.write, "Cost of the census", text)
    return 0


_EXPLANATION = """\
`make bench-census` plants files in a tmpfs and names that do not exist, and takes the census of kernel objects as the
runner does, every part of it, each time in a new process; `slabtop -o` runs in turn with it. Median of the rounds,
smallest and largest in parentheses; ratios are those of each round. slabtop prints what the kernel counts, and cannot
say what any object is; the census reads each slab and the objects in it. Goals: 2 s of CPU and 120 MiB at 24 GiB with
3 million objects.
"""


if __name__ == "__main__":
    sys.exit(main())
