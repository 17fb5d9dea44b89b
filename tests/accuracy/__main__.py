"""How often memdiag is right: plants every case, diagnoses it with the real runner, and compares.

    python tests/accuracy [--only CASE]... [--repeat 10] [--healthy 100] [--duration 12s] [--output FILE]
                           [--keep FOLDER] [--list]

One case after another; each is within 1.3 GiB. Must run as root, like the runner. Exits with 1 if less than 95 % are
right, if LeakDetected is False where a leak was planted, or True in a healthy run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from accuracy.counters import class_sizes, settled_class_sizes
from accuracy.judge import Judgement, judge, outcome
from accuracy.table import Row, as_markdown
from planted.cases import CASES
from planted.cases.case import Case, PlantedTruth, UnavailableError
from support.benchmarks import machine, write_section

GOAL_SHARE = 0.95
_RUNNER = [sys.executable, "-m", "memdiag_node.cli", "--quiet", "--output", "json"]
_PATIENCE_SECONDS = 300
_SETTLE_SECONDS = 1.0
_SECTION = "The last run"


def main() -> int:
    """Return the exit status."""
    options = _parser().parse_args()
    if options.list:
        for case in CASES.values():
            print(f"{case.name:<24} {'healthy: ' if case.is_healthy else ''}{case.summary}")
        return 0
    if os.geteuid():
        sys.exit("accuracy: it plants cases and measures them as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the runner, and removes what is planted
    rows = []
    for case in _chosen(options.only, options.healthy, options.repeat):
        row = _try(case, options.duration, options.keep, is_diagnosed=not options.plant_only)
        rows.append(row)
        print(_progress(row), flush=True)
    judgements = [row.judgement for row in rows if row.judgement]
    result = outcome(judgements)
    text = as_markdown(rows, result, machine(), options.duration)
    print(f"\n{text}")
    if options.output:
        options.output.write_text(text)
    if options.write:
        write_section(options.write, _SECTION, text)
    if options.plant_only:
        return 0
    failed = any(row.problem and not row.problem.startswith("not possible here") for row in rows)
    return 0 if result.is_good(GOAL_SHARE) and not failed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accuracy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="CASE", choices=list(CASES), help="this case, repeatable")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="with --only: so many runs of each case")
    parser.add_argument(
        "--healthy",
        type=int,
        metavar="N",
        help="number of healthy runs; the healthy loads take turns (default: once each)",
    )
    parser.add_argument("--duration", default="12s", help="window of each diagnosis (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there as well")
    parser.add_argument("--write", type=Path, metavar="PAGE", help=f'or as the section "{_SECTION}" of this page')
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep each document there")
    parser.add_argument("--plant-only", action="store_true", help="only plant, and show the kernel's counters")
    parser.add_argument("--list", action="store_true", help="list the cases")
    return parser


def _chosen(only: Sequence[str] | None, healthy_runs: int | None, repeat: int) -> Iterator[Case]:
    if only:
        yield from (CASES[name] for name in only for _ in range(repeat))
        return
    yield from (case for case in CASES.values() if not case.is_healthy)
    healthy = [case for case in CASES.values() if case.is_healthy]
    yield from islice(cycle(healthy), len(healthy) if healthy_runs is None else healthy_runs)


def _try(case: Case, duration: str, keep: Path | None, *, is_diagnosed: bool) -> Row:
    before = settled_class_sizes()
    truth: PlantedTruth | None = None
    grown_bytes: int | None = None
    judgement: Judgement | None = None
    problem = ""
    try:
        with case.plant() as truth:
            time.sleep(_SETTLE_SECONDS)
            after = class_sizes()
            classes = [name for name in truth.memory_classes + truth.other_classes if name]
            if truth.size_bytes and classes:
                grown_bytes = sum(after[name] - before[name] for name in classes)
            if is_diagnosed:
                document = _diagnose(duration)
                judgement = judge(document, truth)
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{case.name}.json").write_text(json.dumps(document, indent=1))
            else:
                problem = "planted only"
    except UnavailableError as error:
        problem = f"not possible here: {error}"
    except (OSError, RuntimeError, subprocess.SubprocessError, ValueError) as error:
        problem = f"failed: {error}"
    return Row(case.name, truth, grown_bytes, judgement, problem)


def _diagnose(duration: str) -> dict[str, Any]:
    """The document of a diagnosis of this machine. Raises SubprocessError and ValueError."""
    run = subprocess.run(
        [*_RUNNER, "--duration", duration], check=False, capture_output=True, text=True, timeout=_PATIENCE_SECONDS
    )
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:] or [""]
        raise RuntimeError(f"the runner ended with {run.returncode}: {last[0]}")
    document: dict[str, Any] = json.loads(run.stdout)
    return document


def _progress(row: Row) -> str:
    judged = row.judgement
    if judged is None:
        return f"{row.case}: {row.problem}"
    said = "right" if judged.is_right else f"WRONG: {'; '.join(judged.faults)}"
    return f"{row.case}: {said} | LeakDetected {judged.leak_detected or '-'} | {judged.first_finding or 'no finding'}"


if __name__ == "__main__":
    sys.exit(main())
