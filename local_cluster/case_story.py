"""What `make case` says: its sentences, the usual tools' answers, and the figures beside those of the story."""

from collections.abc import Mapping

from local_cluster.case_outcome import Cause, Moment, Outcome
from memdiag_api.units import format_bytes

_WIDTH = 118
_LINES_OF_A_TOOL = 17


def say(text: str) -> None:
    """Print it at once: the story takes minutes."""
    print(text, flush=True)


def healthy() -> str:
    """How it begins."""
    return sentence("The node is healthy: nginx takes uploads, and reads them as they come.")


def reads_no_more(cause: Cause, worker_pid: int) -> str:
    """What has happened to the worker."""
    if cause == "stopped":
        return sentence(f"Its worker, process {worker_pid}, is stopped (SIGSTOP). It reads nothing more.")
    return sentence(
        f"Somebody asks for /report, whose handler blocks. The worker, process {worker_pid}, reads nothing more."
    )


def memory_is_gone(before: Moment, planted: Moment) -> str:
    """What an administrator notices."""
    return sentence(
        f"Free memory fell by {format_bytes(before.free - planted.free)}, and TCP is charged "
        f"{format_bytes(planted.tcp)}. What the usual tools show:"
    )


def tools_show(answers: Mapping[str, str]) -> str:
    """The answers of the usual tools, by command line."""
    lines: list[str] = []
    for command, answer in answers.items():
        said = [line.rstrip()[:_WIDTH] for line in answer.splitlines()]
        lines += [f"# {command}", *said[:_LINES_OF_A_TOOL], ""]
    return "\n".join(f"    {line}".rstrip() for line in lines)


def memory_is_back(full: Moment, after: Moment) -> str:
    """The worker's death proves that it was the worker."""
    freed_bytes = after.free - full.free
    return sentence(f"The worker is killed, and {format_bytes(freed_bytes)} of free memory come back at once.")


def beside_the_story(outcome: Outcome) -> str:
    """A table: what the story had, and what was reached here."""
    evidence, unread, pinned = outcome.evidence, outcome.unread, outcome.pinned
    blocks, seconds = evidence["trace"]["outstandingBlocks"], evidence["window"]["tracedSeconds"]
    rows = (
        ("", "the story", "here"),
        ("allocpage", "6 GB", format_bytes(evidence["breakdown"]["allocPageBytes"])),
        ("unread in the worker's sockets", "3 MB", format_bytes(unread)),
        ("which pin", "gigabytes", format_bytes(pinned)),
        ("bytes pinned by each unread one", "about 2000", f"{pinned / unread:.0f}"),
        ("`tcp mem` at that moment", "125 MB", format_bytes(outcome.full.tcp)),
        ("blocks allocated, not freed", "4,919 in 10 min", f"{blocks:,} in {seconds:.0f} s"),
        ("of them found in the sockets", "", f"{outcome.join_share:.0%}"),
        ("node Ready after power on", "", f"{outcome.ready_seconds:.0f} s"),
        ("from kubectl apply to the answer", "hours", f"{outcome.diagnosis_seconds:.0f} s, on an emulated CPU"),
        ("found by", "an expert, by hand", "one kubectl apply"),
    )
    return "\n" + "\n".join(f"  {name:<34} {story:<20} {here}" for name, story, here in rows) + "\n"


def sentence(text: str) -> str:
    """Set apart from the output of commands."""
    return f"\n  {text}\n"
