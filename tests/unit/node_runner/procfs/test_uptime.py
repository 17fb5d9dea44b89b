"""The time since boot."""

import pytest

from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.uptime import parse_uptime_seconds


def test_the_first_number_is_the_time_since_boot() -> None:
    assert parse_uptime_seconds(b"3011.54 5120.09\n") == 3011.54


@pytest.mark.parametrize(
    "text", [b"", b"3011.54\n", b"-1.00 2.00\n", b"1 2\n", b"1.00 2.00\n3.00 4.00\n", b"nan nan\n"]
)
def test_anything_else_is_an_error(text: bytes) -> None:
    with pytest.raises(ProcFormatError, match="uptime"):
        parse_uptime_seconds(text)
