"""Network namespaces in the report: zombies, and others only if they have much memory."""

from memdiag_api.census.namespaces import NetworkNamespace, NetworkNamespaces
from memdiag_api.units import format_bytes
from memdiag_node.render.text import table, wrapped

_LARGE_BYTES = 16 << 20
_SHOWN = 8


def namespaces_lines(record: NetworkNamespaces) -> list[str]:
    """The lines of the report; empty if there is neither a zombie nor a namespace of 16 MiB or more."""
    worth = [one for one in record.listed if one.is_zombie or one.size_bytes >= _LARGE_BYTES]
    if not worth:
        return []
    shown = worth[:_SHOWN]
    lines = [
        f"NETWORK NAMESPACES   {record.total} on this node, {record.zombies} that no process, fd or mount refers to "
        f"({format_bytes(record.zombie_bytes)})"
    ]
    if record.sampled_share < 1:
        lines.append(f"  from a sample of {record.sampled_share:.0%} of memory, which cannot show such namespaces")
    rows = table((("MEMORY", "SOCKETS", "PACKETS", "INODE", "DEVICES"), *map(_row, shown)), right=(0, 1, 2, 3))
    lines.append(rows[0])
    for row, one in zip(rows[1:], shown, strict=True):
        lines += [row, *wrapped(f"kept by {one.kept_by}", " " * 12)]
    if len(worth) > len(shown):
        lines.append(f"  ... and {len(worth) - len(shown)} more")
    return lines


def _row(one: NetworkNamespace) -> tuple[str, ...]:
    names = ", ".join(one.device_names)
    more = f" (+{one.devices - len(one.device_names)})" if one.devices > len(one.device_names) else ""
    return (
        format_bytes(one.size_bytes),
        str(one.sockets),
        str(one.packets),
        str(one.inode),
        f"{names}{more}" if names else "-",
    )
