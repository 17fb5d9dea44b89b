"""Durations as Kubernetes users write them, and byte counts as people read them."""

import re

_DURATION = re.compile(r"(?:(?P<hours>\d{1,4})h)?(?:(?P<minutes>\d{1,5})m)?(?:(?P<seconds>\d{1,6})s)?")
# 1000 KiB reads better as 0.98 MiB: four digits never stand before the point.
_UNIT_LIMIT = 1000
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def parse_duration_seconds(text: str) -> int:
    """Whole seconds of a duration such as `60s`, `10m` or `1h30m` (Go's notation, without fractions).

    Raises ValueError saying what was given and what is expected.
    """
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"duration {text!r} is not understood: write it as 90s, 10m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.group("hours", "minutes", "seconds"))
    return hours * 3600 + minutes * 60 + seconds


def format_bytes(size_bytes: float) -> str:
    """`size_bytes` in the largest binary unit that leaves at least 1, in three significant digits: 5.86 GiB, 0 B."""
    value = float(size_bytes)
    for unit in _BINARY_UNITS:
        if abs(value) < _UNIT_LIMIT or unit == _BINARY_UNITS[-1]:
            break
        value /= 1024
    digits = 0 if unit == "B" else max(0, 2 - _integer_digits(value) + 1)
    return f"{value:.{digits}f} {unit}"


def _integer_digits(value: float) -> int:
    return len(str(int(abs(value))))
