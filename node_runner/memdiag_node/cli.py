"""The command line `memdiag-node`: standalone on any Linux host, or as the only process of the runner pod."""

import argparse
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from memdiag_api.capabilities import in_words
from memdiag_api.evidence import Check, NeedState, RunnerError, with_implied
from memdiag_api.history import HISTORY_VARIABLE, RunSummary
from memdiag_api.units import parse_duration_seconds
from memdiag_node.capture import UnsupportedError
from memdiag_node.conclusion.document import keep
from memdiag_node.findings.thresholds import DAY_SECONDS, KIB, MIB, Thresholds
from memdiag_node.history import HistoryError, history_of_variable, read_history
from memdiag_node.preflight.checks import preflight
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.publish import Output, publish, publish_failure
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop

EXIT_OK = 0
EXIT_UNSUPPORTED = 3
"""2 is the exit status of argparse for an invalid command line."""

MAX_DURATION_SECONDS = 30 * 60
MAX_TOP_N = 50
MAX_CPU_BUDGET_PERCENT = 100
MAX_GRACE_SECONDS = 86_400
MAX_MEBIBYTES = 1 << 20
MAX_THRESHOLD = 1_000_000_000
# Kubernetes: pod.spec.containers[].terminationMessagePath, by default.
TERMINATION_LOG = Path("/dev/termination-log")
# man 5 proc_pid_oom_score_adj: the highest value.
OOM_SCORE_ADJ, FIRST_TO_BE_KILLED = Path("/proc/self/oom_score_adj"), 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and publish. Return the exit status: 0 if there is a result, 1 on failure, 3 if the host lacks a need."""
    problem = _volunteer_for_the_oom_killer()
    parser = _parser()
    options = parser.parse_args(arguments)
    checks = tuple(with_implied(options.check or Check))
    termination_log = _termination_log(options)
    roots = HostRoots(proc=options.proc, sys=options.sys)
    if options.preflight:
        return _print_preflight(checks, roots)
    try:
        history, note = _history(options)
    except (HistoryError, OSError) as error:
        parser.error(f"--history: {error}")
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
        history=history,
        notes=[note] if note else [],
        report_arguments=options.report_arguments,
        report_paths=options.report_paths,
        thresholds=_thresholds(options),
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
        first_line, _, _ = str(error).partition("\n")  # a verifier log has hundreds
        failure = f"{type(error).__name__}: {first_line}"
        publish_failure(options.run_id, RunnerError.INTERNAL, failure, termination_log)
        raise
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memdiag-node",
        description="Report where the memory of this machine went: a breakdown, the kernel call stacks that allocated "
        "pages and did not free them, and the sockets and processes that pin them. Must run as root; "
        f"of root's capabilities it needs only {in_words()}. Changes nothing on the machine and leaves nothing behind.",
        epilog="Ctrl-C ends the trace early and reports what was traced so far.",
    )
    _add_measuring(parser.add_argument_group("what to measure"))
    _add_output(parser.add_argument_group("output"))
    _add_thresholds(parser.add_argument_group("thresholds of the verdict"))
    _add_host(parser.add_argument_group("host"))
    return parser


def _add_measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--duration",
        type=_duration,
        default=30,
        metavar="TIME",
        help="duration of the trace, such as 5s, 90s or 10m (default: 30s)",
    )
    group.add_argument(
        "--check",
        action="append",
        type=_check,
        metavar="CHECK",
        help=f"run only this check, may be repeated: {', '.join(Check)} (default: all)",
    )
    group.add_argument(
        "--cpu-budget-percent",
        type=_percent,
        default=5,
        metavar="PERCENT",
        help="percentage of each CPU's time for recording allocations; above it only a sample is recorded, which is "
        "reported (default: 5)",
    )
    group.add_argument(
        "--grace",
        type=_grace,
        default=30,
        metavar="SECONDS",
        help="time to finish after SIGTERM or Ctrl-C; what is skipped for lack of time is reported (default: 30)",
    )
    group.add_argument(
        "--history",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="compare with an earlier run of this boot: its JSON document, or a JSON list of summaries; may be "
        f"repeated (default: the list in ${HISTORY_VARIABLE}, if any)",
    )
    group.add_argument("--preflight", action="store_true", help="only check the prerequisites and print their state")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output",
        type=Output,
        default=Output.TEXT,
        choices=list(Output),
        help="text: a report; json: the complete document; folded: stacks for flame graph tools; framed: for the "
        "operator (default: text)",
    )
    group.add_argument(
        "--top-n",
        type=_top_n,
        default=10,
        metavar="N",
        help="maximum number of stacks and of holders to list (default: 10)",
    )
    group.add_argument(
        "--report-arguments",
        action="store_true",
        help="report processes with their arguments, which may contain passwords and tokens (default: the executable "
        "only)",
    )
    group.add_argument(
        "--report-paths",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="report large files with the start and the end of their paths (default: yes)",
    )
    group.add_argument(
        "--node-name",
        default=socket.gethostname(),
        metavar="NAME",
        help="name of the node in the report (default: the host name)",
    )
    group.add_argument(
        "--run-id", default="by-hand", metavar="ID", help="ID of the run in the report (default: by-hand)"
    )
    group.add_argument("--quiet", action="store_true", help="do not print progress to standard error")


def _add_thresholds(group: argparse._ArgumentGroup) -> None:
    defaults = Thresholds()
    options: tuple[tuple[str, Callable[[str], float], float, str, str], ...] = (
        (
            "--suspect-mib",
            _mebibytes,
            defaults.suspect_floor_bytes // MIB,
            "MIB",
            "ignore pinned or growing memory below this size",
        ),
        ("--suspect-share", _share, defaults.suspect_share, "SHARE", _or_share("below this share")),
        (
            "--notable-mib",
            _mebibytes,
            defaults.notable_floor_bytes // MIB,
            "MIB",
            "list kernel memory with a known holder from this size on",
        ),
        ("--notable-share", _share, defaults.notable_share, "SHARE", _or_share("this share")),
        (
            "--large-mib",
            _mebibytes,
            defaults.large_floor_bytes // MIB,
            "MIB",
            "unexplained memory of one class of at least this size rules out NoLeak",
        ),
        ("--large-share", _share, defaults.large_share, "SHARE", _or_share("of this share")),
        (
            "--unexplained-ceiling-mib",
            _mebibytes,
            defaults.unexplained_ceiling_bytes // MIB,
            "MIB",
            "unexplained memory of this size rules out NoLeak on the largest machines, too",
        ),
        (
            "--stuck-seconds",
            _positive,
            defaults.stuck_floor_seconds,
            "SECONDS",
            "a socket with unread data is stuck if nothing is read for this time",
        ),
        (
            "--leak-age-seconds",
            _positive,
            defaults.leak_age_seconds,
            "SECONDS",
            "unread data of a stuck socket is a leak if it has waited for this time, or grows",
        ),
        (
            "--slow-drain-seconds",
            _positive,
            defaults.slow_drain_seconds,
            "SECONDS",
            "a reader is slow if its backlog takes this time to drain at the present rate",
        ),
        (
            "--growth-mib-per-day",
            _mebibytes,
            defaults.growth_per_day_bytes // MIB,
            "MIB",
            "growth of at least this much a day matters on every machine",
        ),
        (
            "--exhaustion-days",
            _positive,
            defaults.exhaustion_seconds / DAY_SECONDS,
            "DAYS",
            "growth matters if it exhausts the machine's free and reclaimable memory within this time",
        ),
        (
            "--object-growth-kib-per-minute",
            _kibibytes,
            defaults.object_growth_per_minute_bytes // KIB,
            "KIB",
            "slab objects of one call stack may be a leak if they grow by at least this much a minute",
        ),
    )
    for name, parse, default, metavar, text in options:
        group.add_argument(name, type=parse, default=default, metavar=metavar, help=f"{text} (default: %(default)s)")


def _or_share(part: str) -> str:
    return f"or {part} of the machine's memory, if that is more"


def _thresholds(options: argparse.Namespace) -> Thresholds:
    return Thresholds(
        suspect_floor_bytes=options.suspect_mib * MIB,
        suspect_share=options.suspect_share,
        notable_floor_bytes=options.notable_mib * MIB,
        notable_share=options.notable_share,
        large_floor_bytes=options.large_mib * MIB,
        large_share=options.large_share,
        unexplained_ceiling_bytes=options.unexplained_ceiling_mib * MIB,
        stuck_floor_seconds=options.stuck_seconds,
        leak_age_seconds=options.leak_age_seconds,
        slow_drain_seconds=options.slow_drain_seconds,
        growth_per_day_bytes=options.growth_mib_per_day * MIB,
        exhaustion_seconds=options.exhaustion_days * DAY_SECONDS,
        object_growth_per_minute_bytes=options.object_growth_kib_per_minute * KIB,
    )


def _add_host(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--proc", type=Path, default=Path("/proc"), metavar="DIR", help="/proc of the host (default: /proc)"
    )
    group.add_argument("--sys", type=Path, default=Path("/sys"), metavar="DIR", help="/sys of the host (default: /sys)")


def _history(options: argparse.Namespace) -> tuple[list[RunSummary], str]:
    """Return the summaries of earlier runs, and a note if those of the environment cannot be used."""
    if options.history:
        return [run for path in options.history for run in read_history(path)], ""
    return history_of_variable(os.environ.get(HISTORY_VARIABLE, ""))


def _duration(text: str) -> int:
    try:
        seconds = parse_duration_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= seconds <= MAX_DURATION_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is out of range: 1s to 30m")
    return seconds


def _check(text: str) -> Check:
    try:
        return Check(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"unknown check {text!r}: choose from {', '.join(Check)}") from None


def _percent(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CPU_BUDGET_PERCENT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_CPU_BUDGET_PERCENT}")
    return int(text)


def _grace(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_GRACE_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to {MAX_GRACE_SECONDS}")
    return int(text)


def _top_n(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_TOP_N:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_TOP_N}")
    return int(text)


def _mebibytes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_MEBIBYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of MiB from 1 to {MAX_MEBIBYTES}")
    return int(text)


def _kibibytes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_MEBIBYTES << 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of KiB from 1 to {MAX_MEBIBYTES << 10}")
    return int(text)


def _share(text: str) -> float:
    value = _number(text)
    if value is None or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1, such as 0.02 for 2 %")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value is None or not 0 < value <= MAX_THRESHOLD:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, and at most {MAX_THRESHOLD}")
    return value


def _number(text: str) -> float | None:
    """Return the finite number in `text`, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _volunteer_for_the_oom_killer() -> str:
    """Become the first process that the kernel kills when memory runs out. Return the error, if any.

    A diagnosed node is often short of memory, and a pod with requests equal to limits starts with an oom_score_adj of
    -997. Without this, another tenant would be killed because of the memory that the runner uses.
    """
    try:
        OOM_SCORE_ADJ.write_text(str(FIRST_TO_BE_KILLED))
    except OSError as error:
        return f"{OOM_SCORE_ADJ}: {error.strerror}: when memory runs out, another process may be killed first"
    return ""


def _stop_on_signals(grace_seconds: float) -> Stop:
    """Return the Stop that SIGINT and SIGTERM set. A second signal ends the process at once."""
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
    """Return the path of the pod's termination message. Only a runner pod has both the format and the file."""
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
