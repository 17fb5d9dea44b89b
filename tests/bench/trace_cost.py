"""The cost of tracing: loads without a tracer, with memdiag's trace, bcc's memleak, a naive tracer, bare tracepoints.

    python tests/bench/trace_cost.py [--rounds 5] [--max-rounds 25] [--write docs/benchmarks.md]

A round runs a load several times under a tracer, and as often without it, half of that before and half after. Its
result is the ratio of the medians of the CPU times. For memdiag and the bare tracepoints, there are rounds until the
90 % interval of the median of these ratios is narrower than 5 % to either side. The loads stay on their CPUs.

memleak and the naive tracer need tracefs and kernel headers: they get both in a separate mount namespace, and leave
nothing on the machine.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from memdiag_api.units import format_bytes
from support.benchmarks import machine, with_tracefs, write_section
from support.medians import Median, median_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True, slots=True)
class Load:
    """A load of loads.c."""

    title: str
    amount: int
    goal: float
    """The most that its CPU time may be with memdiag's trace, in relation to the time without."""


LOADS = {
    "faults": Load("anonymous page-fault storm", 24, 1.15),
    "files": Load("file read storm", 60, 1.15),
    "pipes": Load("pipe churn", 4000, 1.3),
    "loopback": Load("loopback TCP receive", 15, 1.15),
    "datagrams": Load("unix datagrams, 100 bytes", 50, 1.2),
    "creation": Load("file creation and removal", 120, 1.1),
    "processes": Load("fork and exec storm", 16, 1.3),
}
OURS, MEMLEAK, NAIVE, FLOOR = "memdiag", "memleak", "naive", "tracepoints"
TRACERS = (OURS, MEMLEAK, NAIVE, FLOOR)
PRECISE = (OURS, FLOOR)
"""These have more rounds where results vary; the others cost several times as much."""
_RUNS = 4
"""In a round, with the tracer; and without it."""
_NARROW = 0.05


@dataclass(slots=True)
class Cell:
    """The rounds of one load with one tracer."""

    ratios: list[float] = field(default_factory=list)
    """CPU time with the tracer divided by CPU time without, of each round."""
    program_shares: list[float] = field(default_factory=list)
    """The share of the load's CPU time that memdiag's programs took, by their own clock."""
    notes: list[dict[str, float]] = field(default_factory=list)
    """What memdiag's trace printed."""

    @property
    def median(self) -> Median:
        """The median ratio."""
        return median_of(self.ratios)


def headers() -> Path | None:
    """A Debian kernel header tree, of any version."""
    found = sorted(Path("/usr/src").glob("linux-headers-*-amd64"))
    return found[-1] if found else None


def private(command: Sequence[str]) -> list[str]:
    """The command in a separate mount namespace, with tracefs and with header links where bcc expects them."""
    tree = headers()
    common = str(tree).replace("-amd64", "-common")
    links = [
        "mount -t tmpfs tmpfs /lib/modules",
        "mkdir -p /lib/modules/$(uname -r)",
        f"ln -s {tree} /lib/modules/$(uname -r)/build",
        f"ln -s {common} /lib/modules/$(uname -r)/source",
    ]
    return with_tracefs(command, setup=links)


@contextmanager
def tracer(name: str, notes: list[dict[str, float]]) -> Iterator[None]:
    """Run a tracer for as long as the context lasts; memdiag's adds a note at its end."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/node_runner:{ROOT}/api", "PYTHONUNBUFFERED": "1"}
    commands = {
        OURS: [sys.executable, str(HERE / "ours.py")],
        FLOOR: [sys.executable, str(HERE / "floor.py")],
        NAIVE: private(["/usr/bin/python3", str(HERE / "naive.py")]),
        MEMLEAK: private(["/usr/sbin/memleak-bpfcc", "-o", "500", "3600"]),
    }
    with subprocess.Popen(
        commands[name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as child:
        try:
            assert child.stdout is not None
            first = child.stdout.readline()
            if not first:
                raise RuntimeError(f"{name} did not start: {' '.join(commands[name])}")
            yield
            if name == OURS:
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
                notes.append(json.loads(child.stdout.readline()))
        finally:
            child.kill()


def measure_round(program: Path, name: str, load: str, cell: Cell) -> None:
    """Run a load with a tracer, and without it before and after."""
    command = [str(program), load, str(LOADS[load].amount)]

    def seconds(runs: int) -> list[float]:
        outputs = (subprocess.check_output(command, cwd=program.parent, text=True) for _ in range(runs))
        return [float(output.split()[0]) for output in outputs]

    without = seconds(_RUNS // 2)
    with tracer(name, cell.notes):
        traced = seconds(_RUNS)
    without += seconds(_RUNS // 2)
    cell.ratios.append(statistics.median(traced) / statistics.median(without))
    if name == OURS:
        cell.program_shares.append(cell.notes[-1]["program_seconds"] / sum(traced))


def measure(
    tracers: Sequence[str], loads: Sequence[str], directory: Path, *, rounds: int, max_rounds: int
) -> dict[tuple[str, str], Cell]:
    """By load and tracer: at least `rounds`, then more of those whose median is still uncertain."""
    program = directory / "loads"
    subprocess.run(["cc", "-O2", "-o", str(program), str(HERE / "loads.c")], check=True)
    cells = {(load, name): Cell() for load in loads for name in tracers}
    for number in range(max_rounds):
        due = [
            (load, name)
            for (load, name), cell in cells.items()
            if number < rounds or (name in PRECISE and cell.median.half_width >= _NARROW)
        ]
        if not due:
            break
        random.shuffle(due)
        for load, name in due:
            measure_round(program, name, load, cells[load, name])
        print(f"round {number + 1}: {len(due)} of {len(cells)}", file=sys.stderr)
    return cells


def report(cells: dict[tuple[str, str], Cell], tracers: Sequence[str], loads: Sequence[str]) -> str:
    """The table, as Markdown: median ratios with their intervals."""
    lines = [
        "| load | goal | " + " | ".join(tracers) + " | memdiag's programs | rounds |",
        "|---|---|" + "---|" * (len(tracers) + 2),
    ]
    for load in loads:
        row = [cells[load, name] for name in tracers]
        shares = cells[load, OURS].program_shares if OURS in tracers else []
        counts = [len(cell.ratios) for cell in row]
        lines.append(
            f"| {LOADS[load].title} | {LOADS[load].goal:.2f} | "
            + " | ".join(str(cell.median) for cell in row)
            + f" | {f'{statistics.median(shares):.1%}' if shares else ''} | {min(counts)} to {max(counts)} |"
        )
    notes = [note for cell in cells.values() for note in cell.notes]
    return "\n".join([*lines, *(["", _figures(notes)] if notes else [])])


def _figures(notes: Sequence[dict[str, float]]) -> str:
    """The figures of memdiag's traces of all loads."""
    worst = {key: max(note[key] for note in notes) for key in notes[0]}
    shares = [note["sampled_share"] for note in notes]
    return (
        f"memdiag's process: {format_bytes(worst['rss_bytes'])} resident while it traces, "
        f"{format_bytes(worst['peak_rss_bytes'])} at most (the compiler at its start); "
        f"its maps: {format_bytes(worst['table_bytes'])}. Recorded share of what the movable filter lets through: "
        f"{min(shares):.1%} to {max(shares):.1%}. Blocks lost: {worst['lost']:.0f}; runs missed: "
        f"{worst['missed_runs']:.0f}."
    )


def main() -> int:
    """Measure and print; with --write, replace the section `Cost of the trace` of a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5, help="at least")
    parser.add_argument("--max-rounds", type=int, default=25, help="at most, where results vary")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", action="append", choices=TRACERS, help="these tracers")
    parser.add_argument("--load", action="append", choices=list(LOADS), help="these loads")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("tracing needs root", file=sys.stderr)
        return 2
    tracers, loads = options.only or list(TRACERS), options.load or list(LOADS)
    if headers() is None and {MEMLEAK, NAIVE} & set(tracers):
        print("memleak needs kernel headers: apt-get install bpfcc-tools linux-headers-amd64", file=sys.stderr)
        return 2
    limits = {"rounds": options.rounds, "max_rounds": max(options.rounds, options.max_rounds)}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        table = report(measure(tracers, loads, Path(directory), **limits), tracers, loads)
    text = f"{_EXPLANATION}\n{machine()}.\n\n{table}\n"
    print(text)
    if options.write:
        write_section(options.write, "Cost of the trace", text)
    return 0


_EXPLANATION = """\
`make bench-trace` runs each load under four tracers and without any, in turn, and compares the CPU time that the load
takes, interrupts on its behalf included: the median of the rounds' ratios, with its 90 % interval (bootstrap) in
parentheses. `memdiag` and `tracepoints` have more rounds where that is wider than 5 % to either side. `memleak` is
bcc's, as Debian ships it, tracing kernel allocations; `naive` is a tracepoint program with a hash and a stack for every
page allocation; `tracepoints` is what the tracepoints of slab objects alone cost: programs that look at the address of
each object and record nothing. `memdiag's programs` is the share of the load's CPU time that these took, by their own
clock: what the ratio shows beyond it is the entry into the programs, and caches.
"""


if __name__ == "__main__":
    sys.exit(main())
