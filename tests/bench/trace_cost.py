"""The cost of tracing: loads without a tracer, with memdiag's trace, with bcc's memleak, with a naive tracer.

    python tests/bench/trace_cost.py [--rounds 5] [--write docs/benchmarks.md]

Every round runs every load with every tracer, in a new order, on one machine in one run; the table has ratios of CPU
time to the same round's run without a tracer. If a load varies more between runs than a tracer costs, the share of its
CPU time that memdiag's programs took, by their own clock, is more accurate than the ratio.

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

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOADS = {"faults": 20, "files": 20, "pipes": 1500, "loopback": 30, "processes": 10}
LOAD_NAMES = {
    "faults": "anonymous page-fault storm",
    "files": "file read storm",
    "pipes": "pipe churn",
    "loopback": "loopback TCP receive",
    "processes": "fork and exec storm",
}
GOALS = {"faults": 1.15, "files": 1.15, "pipes": 1.3, "loopback": 1.15, "processes": 1.3}
NONE, OURS, MEMLEAK, NAIVE = "no tracer", "memdiag", "memleak", "naive"


@dataclass(slots=True)
class Rounds:
    """CPU seconds by tracer and load, one value for each round; and the figures that memdiag's trace printed."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    notes: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """By load."""

    def program_shares(self, load: str) -> list[float]:
        """The share of the load's CPU time that memdiag's programs took."""
        pairs = zip(self.notes[load], self.seconds[OURS, load], strict=True)
        return [note["program_seconds"] / seconds for note, seconds in pairs]


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
    """Run a tracer for as long as the context lasts."""
    if name == NONE:
        yield
        return
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/node_runner:{ROOT}/api", "PYTHONUNBUFFERED": "1"}
    commands = {
        OURS: [sys.executable, str(HERE / "ours.py")],
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


def measure(rounds: int, tracers: Sequence[str], directory: Path) -> Rounds:
    """Run all rounds."""
    result = Rounds()
    program = directory / "loads"
    subprocess.run(["cc", "-O2", "-o", str(program), str(HERE / "loads.c")], check=True)
    order = list(tracers)
    for number in range(rounds):
        random.shuffle(order)
        for name in order:
            for load, amount in LOADS.items():
                with tracer(name, result.notes.setdefault(load, [])):
                    run = subprocess.run(
                        [str(program), load, str(amount)], cwd=directory, check=True, capture_output=True, text=True
                    )
                    result.seconds.setdefault((name, load), []).append(float(run.stdout.split()[0]))
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr)
    return result


def report(result: Rounds, tracers: Sequence[str]) -> str:
    """The table, as Markdown: median ratio, and the smallest and largest."""
    traced = [name for name in tracers if name != NONE]
    lines = [
        "| load | goal | " + " | ".join(traced) + " | memdiag's programs |",
        "|---|---|" + "---|" * (len(traced) + 1),
    ]
    for load, title in LOAD_NAMES.items():
        cells = []
        for name in traced:
            ratios = [
                with_tracer / without
                for with_tracer, without in zip(result.seconds[name, load], result.seconds[NONE, load], strict=True)
            ]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        cells.append(f"{statistics.median(result.program_shares(load)):.1%}")
        lines.append(f"| {title} | {GOALS[load]:.2f} | " + " | ".join(cells) + " |")
    notes = [note for of_load in result.notes.values() for note in of_load]
    worst = {key: max(note[key] for note in notes) for key in notes[0]}
    shares = [note["sampled_share"] for note in notes]
    lines += [
        "",
        f"memdiag's process: {format_bytes(worst['rss_bytes'])} resident while it traces, "
        f"{format_bytes(worst['peak_rss_bytes'])} at most (the compiler at its start); "
        f"its maps: {format_bytes(worst['table_bytes'])}. Recorded share of what the movable filter lets through: "
        f"{min(shares):.1%} to {max(shares):.1%}. Blocks lost: {worst['lost']:.0f}; runs missed: "
        f"{worst['missed_runs']:.0f}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and print; with --write, replace the section `Cost of the trace` of a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", action="append", choices=[OURS, MEMLEAK, NAIVE])
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("tracing needs root", file=sys.stderr)
        return 2
    peers = options.only or [OURS, MEMLEAK, NAIVE]
    if headers() is None and {MEMLEAK, NAIVE} & set(peers):
        print("memleak needs kernel headers: apt-get install bpfcc-tools linux-headers-amd64", file=sys.stderr)
        return 2
    tracers = [NONE, *peers]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        table = report(measure(options.rounds, tracers, Path(directory)), tracers)
    text = f"{_EXPLANATION}\n{machine()}; {options.rounds} rounds.\n\n{table}\n"
    print(text)
    if options.write:
        write_section(options.write, "Cost of the trace", text)
    return 0


_EXPLANATION = """\
`make bench-trace` runs each load without a tracer and under three of them, and compares the CPU time that the load
takes, interrupts on its behalf included: median of the rounds, smallest and largest in parentheses. `memleak` is
bcc's, as Debian ships it, tracing kernel allocations; `naive` is a tracepoint program with a hash and a stack for every
allocation. The last column is the share of the load's CPU time that memdiag's programs took, by their own clock: what
the ratio shows beyond it is the entry into the programs, caches, and the scatter of the load itself.
"""


if __name__ == "__main__":
    sys.exit(main())
