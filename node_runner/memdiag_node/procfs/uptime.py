"""/proc/uptime (kernel: fs/proc/uptime.c, uptime_proc_show)."""

import re

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(rb"(\d{1,12}\.\d\d) \d{1,15}\.\d\d\n?")


def parse_uptime_seconds(text: bytes, *, source: str = "uptime") -> float:
    """Return the time since boot in seconds: the first number. Raises ProcFormatError if it is malformed."""
    match = _LINE.fullmatch(text)
    if match is None:
        raise ProcFormatError(source, 1, text, "two numbers of seconds")
    return float(match[1])
