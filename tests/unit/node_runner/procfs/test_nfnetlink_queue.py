"""Queues for verdicts, as the kernel lists them."""

import pytest

from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.nfnetlink_queue import VerdictQueue, parse_nfnetlink_queue

# Recorded on Linux 6.18 with 20 packets in queue 7.
RECORDED = b"    7   3919    20 1     0     0     0       20  1\n"


def test_a_recorded_queue() -> None:
    assert parse_nfnetlink_queue(RECORDED) == [VerdictQueue(number=7, port=3919, waiting_packets=20)]


def test_no_queue() -> None:
    assert parse_nfnetlink_queue(b"") == []


def test_numbers_wider_than_their_columns() -> None:
    """A second socket of a process has a port ID from 2^31 on (netlink(7)); the last number is a constant."""
    line = b"65535 4294963199 100000 2 65531 1234567 1234567 123456789  1\n"
    assert parse_nfnetlink_queue(RECORDED + line)[1] == VerdictQueue(65535, 4294963199, 100000)


@pytest.mark.parametrize("line", [b"7 3919", b"7 -1 20 1 0 0 0 20 1", b"queue 3919 20 1 0 0 0 20 1", b"\n"])
def test_another_format_is_an_error_that_names_the_line(line: bytes) -> None:
    with pytest.raises(ProcFormatError, match=r"^queues:2: "):
        parse_nfnetlink_queue(RECORDED + line + b"\n", source="queues")
