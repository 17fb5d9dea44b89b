"""Durations and sizes in readable form."""

import re

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
def test_other_text_is_not_a_duration(text: str) -> None:
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
        (999.6, "0.98 KiB"),
        (9.994 * 2**20, "9.99 MiB"),
        (9.996 * 2**20, "10.0 MiB"),
        (99.96 * 2**20, "100 MiB"),
        (999.4 * 2**20, "999 MiB"),
        (999.6 * 2**20, "0.98 GiB"),
        (-999.6 * 2**20, "-0.98 GiB"),
        (2**63 - 1, "8.00 EiB"),
        (-0.4, "0 B"),
        (1e300, "over 999 ZiB"),
        (-1e300, "under -999 ZiB"),
        (-(5 << 20), "-5.00 MiB"),
    ],
)
def test_sizes_have_three_digits(size_bytes: float, text: str) -> None:
    assert format_bytes(size_bytes) == text


# Errors are likely near a change of unit or of decimals: test values near them, and anywhere.
_NEAR_A_CHANGE = st.builds(
    lambda digits, unit, off: digits * 1024.0**unit * (1 + off),
    st.sampled_from((0.98, 1, 9.995, 99.95, 999.5, 1000, 1024)),
    st.integers(min_value=0, max_value=7),
    st.floats(min_value=-0.002, max_value=0.002),
)


@given(st.integers(min_value=0, max_value=2**63) | _NEAR_A_CHANGE | st.floats(min_value=0, allow_infinity=False))
def test_a_size_is_always_short_and_true(size_bytes: float) -> None:
    """At most three digits, the smallest unit that allows it, and within the rounding of the last digit."""
    text = format_bytes(size_bytes)
    shown = re.fullmatch(r"(\d\.\d\d|\d\d\.\d|\d{3}|\d{1,3}(?= B)) ([KMGTPEZ]i)?B|over 999 ZiB", text)
    assert shown, text
    if text.startswith("over"):
        assert size_bytes >= 999.5 * 1024**7
        return
    number = float(shown[1])
    unit_bytes = 1024.0 ** (" KMGTPEZ".index(shown[2][0]) if shown[2] else 0)
    decimals = len(shown[1].partition(".")[2])
    assert abs(number - size_bytes / unit_bytes) <= 0.5001 * 10.0**-decimals
    assert unit_bytes == 1 or size_bytes / (unit_bytes / 1024) >= 999.5
    assert format_bytes(-size_bytes) in {f"-{text}", text.replace("over ", "under -"), "0 B"}
