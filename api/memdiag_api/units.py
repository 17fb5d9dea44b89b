"""Durations as Kubernetes users write them, and byte counts in readable form."""

import re

_DURATION = re.compile(r"(?:(?P<hours>\d{1,4})h)?(?:(?P<minutes>\d{1,5})m)?(?:(?P<seconds>\d{1,6})s)?")
_MAX_DIGITS = 3
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB")


def parse_duration_seconds(text: str) -> int:
    """Return the seconds of a duration such as `60s`, `10m` or `1h30m` (Go's notation, without fractions).

    Raises ValueError with the text and the expected format.
    """
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"invalid duration {text!r}: write it as 90s, 10m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.group("hours", "minutes", "seconds"))
    return hours * 3600 + minutes * 60 + seconds


def format_bytes(size_bytes: float) -> str:
    """Format `size_bytes` in binary units with at most three digits, after rounding: 5.86 GiB, 0.98 MiB, 0 B.

    Values that no 64-bit counter can reach are `over 999 ZiB`: a rate in a hostile document may be any finite number.
    """
    value = float(size_bytes)
    for unit in _BINARY_UNITS:
        for decimals in (0,) if unit == "B" else (2, 1, 0):
            number = f"{value:z.{decimals}f}"
            if sum(map(str.isdigit, number)) <= _MAX_DIGITS:
                return f"{number} {unit}"
        value /= 1024
    return f"{'over ' if value > 0 else 'under -'}999 {_BINARY_UNITS[-1]}"


def format_duration(seconds: float) -> str:
    """Format a duration in its largest unit: 45 s, 12 min, 3 h, 9 days."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
