"""The texts of `make case`: sentences, the output of the usual tools, and a comparison with the original incident."""

from collections.abc import Mapping

from local_cluster.case_outcome import Cause, Moment, Outcome
from memdiag_api.units import format_bytes

_WIDTH = 118
_LINES_OF_A_TOOL = 17


def say(text: str) -> None:
    """Print and flush: the case takes minutes."""
    print(text, flush=True)


def healthy() -> str:
    """The initial state."""
    return sentence("The node is healthy: nginx accepts uploads and reads them as they arrive.")


def reads_no_more(cause: Cause, worker_pid: int) -> str:
    """What has happened to the worker."""
    if cause == "stopped":
        return sentence(f"Its worker, process {worker_pid}, is stopped (SIGSTOP). It no longer reads.")
    return sentence(
        f"A client requests /report, whose handler blocks. The worker, process {worker_pid}, no longer reads."
    )


def memory_is_gone(before: Moment, planted: Moment) -> str:
    """What an administrator notices."""
    return sentence(
        f"Free memory fell by {format_bytes(before.free - planted.free)}, and TCP is charged "
        f"{format_bytes(planted.tcp)}. What the usual tools show:"
    )


def tools_show(answers: Mapping[str, str]) -> str:
    """The output of the usual tools, by command line."""
    lines: list[str] = []
    for command, answer in answers.items():
        said = [line.rstrip()[:_WIDTH] for line in answer.splitlines()]
        lines += [f"# {command}", *said[:_LINES_OF_A_TOOL], ""]
    return "\n".join(f"    {line}".rstrip() for line in lines)


def memory_is_back(full: Moment, after: Moment) -> str:
    """That the memory is freed with the worker shows that the worker held it."""
    freed_bytes = after.free - full.free
    return sentence(f"The worker is killed, and {format_bytes(freed_bytes)} are freed at once.")


def beside_the_story(outcome: Outcome) -> str:
    """A table that compares the original incident with this run."""
    evidence, unread, pinned = outcome.evidence, outcome.unread, outcome.pinned
    blocks, seconds = evidence["trace"]["outstandingBlocks"], evidence["window"]["tracedSeconds"]
    rows = (
        ("", "original incident", "here"),
        ("allocpage", "6 GB", format_bytes(evidence["breakdown"]["allocPageBytes"])),
        ("unread in the worker's sockets", "3 MB", format_bytes(unread)),
        ("pinned by these", "gigabytes", format_bytes(pinned)),
        ("bytes pinned per unread byte", "about 2000", f"{pinned / unread:.0f}"),
        ("`tcp mem` at that moment", "125 MB", format_bytes(outcome.full.tcp)),
        ("blocks allocated, not freed", "4,919 in 10 min", f"{blocks:,} in {seconds:.0f} s"),
        ("of these, found in the sockets", "", f"{outcome.join_share:.0%}"),
        ("node Ready after power-on", "", f"{outcome.ready_seconds:.0f} s"),
        ("from kubectl apply to the result", "hours", f"{outcome.diagnosis_seconds:.0f} s, on an emulated CPU"),
        ("found by", "an expert, manually", "one kubectl apply"),
    )
    return "\n" + "\n".join(f"  {name:<34} {story:<20} {here}" for name, story, here in rows) + "\n"


def sentence(text: str) -> str:
    """Indented, to distinguish it from the output of commands."""
    return f"\n  {text}\n"
