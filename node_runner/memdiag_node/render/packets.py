"""The packets of the node as text."""

from memdiag_api.census.packets import PacketCensus, PacketPlace, WaitingPackets
from memdiag_api.units import format_bytes
from memdiag_node.render.text import table, wrapped

_SMALL_BYTES = 256 * 1024
_SHOWN = 12
_PLACES = {
    PacketPlace.SOCKET_QUEUES: "queues of sockets",
    PacketPlace.QDISC: "qdisc",
    PacketPlace.TUN: "tun or tap, not read by its process",
    PacketPlace.NEIGHBOUR_QUEUE: "waiting for a neighbour's address",
    PacketPlace.REASSEMBLY: "IP fragments, the rest is missing",
    PacketPlace.NETFILTER_QUEUE: "netfilter queue, without a verdict",
    PacketPlace.SOCKMAP: "socket map, not read by the process",
    PacketPlace.KTLS: "kernel TLS of a socket",
    PacketPlace.SCTP: "SCTP association",
    PacketPlace.KERNEL_LIST: "list of the kernel",
    PacketPlace.OBJECT_LIST: "list in a kernel object",
    PacketPlace.DRIVER_RING: "driver's rings",
    PacketPlace.OTHER_CHAIN: "linked, in no known queue",
    PacketPlace.REFERRED: "kept by a kernel object",
    PacketPlace.UNLINKED: "in no queue",
    PacketPlace.LOST: "LOST: in no queue",
}


def packets_lines(census: PacketCensus) -> list[str]:
    """Return the lines about packets, at most 100 columns wide; none if only sockets and small groups have any."""
    shown = [one for one in census.groups if one.charge_bytes >= _SMALL_BYTES]
    if not any(one.place is not PacketPlace.SOCKET_QUEUES for one in shown):
        return []
    title = f"PACKETS   {census.packets} packets, {format_bytes(census.charge_bytes)} charged, by where they wait"
    header = ("CHARGED", "PINNED", "PACKETS", "WHERE", "DEVICE")
    rows = table([header, *map(_row, shown[:_SHOWN])], right=(0, 1, 2))
    lines = [title, rows[0]]
    for row, group in zip(rows[1:], shown, strict=False):
        lines += [row, *wrapped(_details(group), " " * 12)]
    if len(shown) > _SHOWN:
        lines.append(f"  {len(shown) - _SHOWN} more groups are in the document.")
    if census.sampled_share < 1:
        text = f"{census.sampled_share:.0%} of memory was read: so much of the packets is counted"
        lines += wrapped(text, "  sampled: ")
    return lines


def _row(group: WaitingPackets) -> tuple[str, ...]:
    is_socket = group.place is PacketPlace.SOCKET_QUEUES
    return (
        format_bytes(group.charge_bytes),
        "-" if is_socket else format_bytes(group.pinned_bytes),
        str(group.packets),
        _PLACES[group.place],
        _device(group),
    )


def _device(group: WaitingPackets) -> str:
    namespace = f"netns {group.network_namespace}" if group.network_namespace else ""
    return f"{group.device} {namespace}".strip() or "-"


def _details(group: WaitingPackets) -> str:
    parts = [
        group.socket_kind and f"charged to {group.socket_kind}",
        group.destructor and f"freed by {group.destructor}",
        f"from {group.referred_by}" if group.referred_by else "",
        f"{group.oldest_seconds:.0f} s old" if group.oldest_seconds is not None else "",
        f"the same for {group.unchanged_seconds:.0f} s" if group.unchanged_seconds is not None else "",
    ]
    return ", ".join(part for part in parts if part)
