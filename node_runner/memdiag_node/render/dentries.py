"""The directory cache in the report."""

from memdiag_api.census.dentries import DentryCensus, DentryShare
from memdiag_api.units import format_bytes
from memdiag_node.render.text import percent, table

_SMALL_BYTES = 1 << 20
_SHOWN = 5


def dentries_lines(record: DentryCensus) -> list[str]:
    """Render the directory cache; nothing if it is small."""
    if record.size_bytes < _SMALL_BYTES:
        return []
    sampled = f", from {record.sampled_share:.1%} of them" if record.sampled_share < 1 else ""
    lines = [
        f"DIRECTORY CACHE   {record.entries} names in {format_bytes(record.size_bytes)}{sampled}",
        f"  {record.negative} of them do not exist ({format_bytes(record.negative_bytes)}), {record.unused} are "
        f"unused, long names take {format_bytes(record.long_names_bytes)}",
    ]
    rows = [("NAMES", "SHARE", "NEGATIVE", "WHERE")]
    rows += [_row(one, f"on {_system(one)}", record.entries) for one in record.file_systems[:_SHOWN]]
    rows += [
        _row(one, one.path or f"a directory on {_system(one)}", record.entries) for one in record.directories[:_SHOWN]
    ]
    return lines + (table(rows, right=(0, 1, 2)) if len(rows) > 1 else [])


def _row(one: DentryShare, where: str, entries: int) -> tuple[str, str, str, str]:
    return str(one.entries), percent(one.entries, entries), percent(one.negative, one.entries), where


def _system(one: DentryShare) -> str:
    device = f" {one.device}" if one.device not in ("", one.file_system) else ""
    return f"{one.file_system or 'an unknown file system'}{device}"
