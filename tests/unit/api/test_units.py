"""Durations and sizes as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.units import format_bytes, parse_duration_seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("90s", 90), ("10m", 600), ("1m30s", 90), ("1h", 3600), ("1h30m5s", 5405)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "1.5s", "5 s", "5s1m", "5S", "five", "5s\n"])
def test_other_text_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="write it as 90s, 10m or 1h30m"):
        parse_duration_seconds(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (3 << 20, "3.00 MiB"),
        (302 << 20, "302 MiB"),
        (6_291_456_000, "5.86 GiB"),
        (-(5 << 20), "-5.00 MiB"),
    ],
)
def test_sizes_have_three_digits(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(min_value=0, max_value=2**63))
def test_a_size_is_always_short(size_bytes: int) -> None:
    assert len(format_bytes(size_bytes)) <= len("1000 KiB") + 1
