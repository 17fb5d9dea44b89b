"""The command line: `memdiag-node`, by hand on any Linux host or as the runner pod's only process."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from memdiag_api.capabilities import in_words
from memdiag_api.evidence import Check, NeedState, RunnerError
from memdiag_api.units import parse_duration_seconds
from memdiag_node.capture import UnsupportedError
from memdiag_node.conclusion.document import keep
from memdiag_node.conclusion.verdict import MIB, Thresholds
from memdiag_node.preflight.checks import preflight
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.publish import Output, publish, publish_failure
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop

EXIT_OK = 0
EXIT_UNSUPPORTED = 3
"""2 is argparse's, for a command line that is not understood."""

MAX_DURATION_SECONDS = 30 * 60
LINE_END = "\n"
MAX_TOP_N = 50
MAX_CPU_BUDGET_PERCENT = 100
MAX_GRACE_SECONDS = 86_400
# Kubernetes: pod.spec.containers[].terminationMessagePath, by default.
TERMINATION_LOG = Path("/dev/termination-log")
# man 5 proc_pid_oom_score_adj: the highest.
OOM_SCORE_ADJ, FIRST_TO_BE_KILLED = Path("/proc/self/oom_score_adj"), 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, publish, and say by the exit status if there is a result: 0 yes, 1 failed, 3 the host lacks a need."""
    problem = _volunteer_for_the_oom_killer()
    options = _parser().parse_args(arguments)
    checks = tuple(dict.fromkeys(options.check or Check))
    termination_log = _termination_log(options)
    roots = HostRoots(proc=options.proc, sys=options.sys)
    if options.preflight:
        return _print_preflight(checks, roots)
    stop = _stop_on_signals(options.grace)
    progress = _progress(quiet=options.quiet)
    if problem:
        progress(problem)
    settings = Settings(
        run_id=options.run_id,
        node_name=options.node_name,
        checks=checks,
        duration_seconds=options.duration,
        cpu_budget_share=options.cpu_budget_percent / 100,
        report_arguments=options.report_arguments,
        thresholds=Thresholds(
            suspect_floor_bytes=options.suspect_mib * MIB,
            suspect_share=options.suspect_share,
            large_floor_bytes=options.large_mib * MIB,
            large_share=options.large_share,
        ),
    )
    try:
        evidence = measure(settings, roots=roots, stop=stop, progress=progress)
        if options.output is Output.TEXT:
            evidence = keep(evidence, stacks=options.top_n, holders=options.top_n)
        publish(evidence, options.output, sys.stdout.buffer, termination_log)
    except UnsupportedError as error:
        print(f"memdiag-node: {error}", file=sys.stderr)
        publish_failure(options.run_id, RunnerError.KERNEL_UNSUPPORTED, str(error), termination_log)
        return EXIT_UNSUPPORTED
    except Exception as error:
        failure = f"{type(error).__name__}: {str(error).partition(LINE_END)[0]}"  # a verifier's log has hundreds
        publish_failure(options.run_id, RunnerError.INTERNAL, failure, termination_log)
        raise
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memdiag-node",
        description="Says where this machine's memory went: a breakdown, the kernel call stacks that took pages and "
        "did not free them, and the sockets and processes that pin them. Needs root, and "
        f"of root's capabilities only {in_words()}. Changes nothing and leaves nothing behind.",
        epilog="Ctrl-C ends the trace early and reports what was traced until then.",
    )
    parser.add_argument(
        "--duration", type=_duration, default=30, metavar="TIME", help="how long to trace: 5s, 90s, 10m (default: 30s)"
    )
    parser.add_argument(
        "--check",
        action="append",
        type=_check,
        metavar="CHECK",
        help=f"only this check; may be repeated: {', '.join(Check)} (default: all)",
    )
    parser.add_argument(
        "--output",
        type=Output,
        default=Output.TEXT,
        choices=list(Output),
        help="text: a report; json: the whole document; folded: stacks for flame graph tools; framed: for the operator",
    )
    parser.add_argument(
        "--top-n", type=_top_n, default=10, metavar="N", help="list so many stacks and holders (default: 10)"
    )
    parser.add_argument(
        "--cpu-budget-percent",
        type=_percent,
        default=5,
        metavar="PERCENT",
        help="of each CPU's time, for recording allocations; above it the trace thins out and says so (default: 5)",
    )
    parser.add_argument(
        "--grace",
        type=_grace,
        default=30,
        metavar="SECONDS",
        help="be done so soon after SIGTERM or Ctrl-C; what that leaves no time for is reported (default: 30)",
    )
    parser.add_argument(
        "--report-arguments",
        action="store_true",
        help="report processes with their arguments, which may be passwords and tokens (default: the executable only)",
    )
    parser.add_argument("--preflight", action="store_true", help="only say what is needed and whether it is there")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    parser.add_argument(
        "--node-name", default=socket.gethostname(), metavar="NAME", help="the node's name in the report"
    )
    parser.add_argument("--run-id", default="by-hand", metavar="ID", help="the run's name in the report")
    defaults = Thresholds()
    parser.add_argument(
        "--suspect-mib",
        type=int,
        default=defaults.suspect_floor_bytes // MIB,
        metavar="MIB",
        help="pinned or growing memory below this is no leak (default: %(default)s)",
    )
    parser.add_argument(
        "--suspect-share",
        type=float,
        default=defaults.suspect_share,
        metavar="SHARE",
        help="nor is less than this share of the machine's memory (default: %(default)s)",
    )
    parser.add_argument(
        "--large-mib",
        type=int,
        default=defaults.large_floor_bytes // MIB,
        metavar="MIB",
        help="as much of a class of memory without an explanation rules out NoLeak (default: %(default)s)",
    )
    parser.add_argument(
        "--large-share",
        type=float,
        default=defaults.large_share,
        metavar="SHARE",
        help="or this share of the machine's memory, if that is more (default: %(default)s)",
    )
    parser.add_argument("--proc", type=Path, default=Path("/proc"), metavar="DIR", help="the host's /proc")
    parser.add_argument("--sys", type=Path, default=Path("/sys"), metavar="DIR", help="the host's /sys")
    return parser


class _Parsed(argparse.ArgumentTypeError):
    """What argparse shows behind `argument --NAME:`."""


def _duration(text: str) -> int:
    try:
        seconds = parse_duration_seconds(text)
    except ValueError as error:
        raise _Parsed(str(error)) from None
    if not 1 <= seconds <= MAX_DURATION_SECONDS:
        raise _Parsed(f"{text} is out of range: 1s to 30m")
    return seconds


def _check(text: str) -> Check:
    try:
        return Check(text)
    except ValueError:
        raise _Parsed(f"there is no check {text!r}: choose from {', '.join(Check)}") from None


def _percent(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CPU_BUDGET_PERCENT:
        raise _Parsed(f"{text!r} is not a number from 1 to {MAX_CPU_BUDGET_PERCENT}")
    return int(text)


def _grace(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_GRACE_SECONDS:
        raise _Parsed(f"{text!r} is not a number of seconds from 1 to {MAX_GRACE_SECONDS}")
    return int(text)


def _top_n(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_TOP_N:
        raise _Parsed(f"{text!r} is not a number from 1 to {MAX_TOP_N}")
    return int(text)


def _volunteer_for_the_oom_killer() -> str:
    """Be the first that the kernel kills when memory runs out; gives what kept that from being set, if anything.

    A node that is diagnosed is often at its last memory, and a pod with requests equal to limits comes with an
    oom_score_adj of -997: without this another tenant would be killed for what the runner takes.
    """
    try:
        OOM_SCORE_ADJ.write_text(str(FIRST_TO_BE_KILLED))
    except OSError as error:
        return f"{OOM_SCORE_ADJ}: {error.strerror}: when memory runs out, another process may be killed first"
    return ""


def _stop_on_signals(grace_seconds: float) -> Stop:
    """What SIGINT and SIGTERM set; a second one ends the process at once."""
    stop = Stop(grace_seconds)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


def _termination_log(options: argparse.Namespace) -> Path | None:
    """Where the pod's termination message goes: only a runner pod has both the format and the file."""
    return TERMINATION_LOG if options.output is Output.FRAMED and TERMINATION_LOG.exists() else None


def _progress(*, quiet: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        if not quiet:
            print(f"memdiag-node: {text}", file=sys.stderr, flush=True)

    return say


def _print_preflight(checks: Sequence[Check], roots: HostRoots) -> int:
    needs = preflight(checks, roots)
    for need in needs:
        print(f"{need.state.value:<9} {need.name}" + (f": {need.detail}" if need.detail else ""))
        if need.remedy and need.state is not NeedState.MET:
            print(f"{'':<9} {need.remedy}")
    return EXIT_UNSUPPORTED if any(need.state is NeedState.MISSING for need in needs) else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
