"""/proc/PID/net/netfilter/nfnetlink_queue: the queues for verdicts of one network namespace.

Kernel: net/netfilter/nfnetlink_queue.c, seq_show. The file exists once the module of the queues is loaded.
"""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(rb" *(\d{1,5}) +(\d{1,10}) +(\d{1,10})(?: +-?\d{1,10}){4,}")
MAX_FILE_BYTES = 4 << 20
"""A line of about 60 bytes for each of 65,536 numbers."""


@dataclass(frozen=True, slots=True)
class VerdictQueue:
    """One queue."""

    number: int
    port: int
    """The port ID of the netlink socket whose program gives the verdicts (netlink(7))."""
    waiting_packets: int


def parse_nfnetlink_queue(text: bytes, *, source: str = "nfnetlink_queue") -> list[VerdictQueue]:
    """Parse all lines, in their order. Raises ProcFormatError for a line without the first seven numbers."""
    queues = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise ProcFormatError(source, number, line, "a queue's number, port ID, packets and four more numbers")
        queues.append(VerdictQueue(*map(int, match.groups())))
    return queues
