"""Findings: packets that wait outside of sockets, and packets that are in no queue at all (docs/findings.md)."""

from collections.abc import Collection, Iterator, Sequence

from memdiag_api import limits
from memdiag_api.census.packets import PacketPlace, WaitingPackets
from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes, format_duration
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.freed import exclusive_bytes
from memdiag_node.findings.groups import kept_together, main_class
from memdiag_node.findings.naming import fd_text, process_name, process_owner
from memdiag_node.findings.situation import Situation

_KINDS = (HolderKind.TUN_QUEUE, HolderKind.PACKET_QUEUE)
_SECTION = "census.packets"
_SIZED_BY_DRIVER = frozenset({PacketPlace.DRIVER_RING, PacketPlace.REFERRED})
"""Rings that a driver fills in advance, of a size that is set."""


def packets_outside(situation: Situation, left: Collection[int]) -> Iterator[Draft]:
    """Yield a finding for each queue outside of sockets that keeps the notable size, and for all lost packets.

    `left`: the indexes of the holders that no finding is about yet.
    """
    holdings = situation.measured.holdings
    queues = [index for index in sorted(left) if holdings[index].holder.kind in _KINDS]
    lost = [index for index in queues if holdings[index].holder.packet_place is PacketPlace.LOST]
    if sum(_claims(situation, lost).values()) >= situation.suspect_bytes:
        yield _lost(situation, lost)
    for index in queues:
        if index not in lost and sum(_claims(situation, [index]).values()) >= situation.notable_bytes:
            yield _outside(situation, index)


def _claims(situation: Situation, members: Sequence[int]) -> dict[str, int]:
    return kept_together([situation.measured.holdings[index] for index in members], situation.page_bytes)


def _lost(situation: Situation, members: Sequence[int]) -> Draft:
    holders = [situation.measured.holdings[index].holder for index in members]
    claims = _claims(situation, members)
    size_bytes = sum(claims.values())
    packets = sum(one.unread_packets for one in holders)
    groups = [one for one in _census_groups(situation) if one.place is PacketPlace.LOST]
    return Draft(
        kind=FindingKind.LOST_PACKETS,
        memory_class=main_class(claims),
        size_bytes=size_bytes,
        claims_bytes=claims,
        owner=_owner_of_lost(groups),
        leak=LeakAnswer.YES,
        is_notable=True,
        confidence=Confidence.HIGH,
        sentence=f"{packets:,} packets with {format_bytes(size_bytes)} are lost: they are in no queue, and nothing "
        "frees them.",
        reasons=[
            *_unchanged(groups),
            f"the threshold for lost packets is {format_bytes(situation.suspect_bytes)}",
            *(_of_group(one) for one in groups[: limits.MAX_REASONS // 2]),
        ],
        advice="Check which driver or module handled packets of this device: it lost its references to them. Removing "
        "the module does not free them; only a restart of the node does.",
        holders=members,
        sections=[_SECTION],
    )


def _outside(situation: Situation, index: int) -> Draft:
    holder = situation.measured.holdings[index].holder
    claims = _claims(situation, [index])
    size_bytes = sum(claims.values())
    leak, why = _leak(holder)
    return Draft(
        kind=FindingKind.PACKETS_OUTSIDE_SOCKETS,
        memory_class=main_class(claims),
        size_bytes=size_bytes,
        claims_bytes=claims,
        owner=_owner(holder),
        leak=leak,
        is_notable=True,
        freed_by=_freed_by(situation, index),
        confidence=Confidence.MEDIUM if leak is LeakAnswer.UNKNOWN else Confidence.HIGH,
        sentence=f"{_description(holder)}: {format_bytes(size_bytes)}{_whose(holder)}.",
        reasons=[why, f"the threshold for packets outside of sockets is {format_bytes(situation.notable_bytes)}"],
        advice=_ADVICE.get(holder.packet_place or PacketPlace.TUN, _OTHER_ADVICE),
        holders=[index],
        sections=[_SECTION] if holder.kind is HolderKind.PACKET_QUEUE else [],
    )


def _leak(holder: Holder) -> tuple[LeakAnswer, str]:
    if holder.packet_place in _SIZED_BY_DRIVER:
        return LeakAnswer.NO, "a driver fills its rings in advance, with as many packets as their size allows"
    return LeakAnswer.UNKNOWN, "they were seen once: no check can determine whether this queue moves"


def _description(holder: Holder) -> str:
    text = holder.description or "packets wait outside of sockets"
    return text[:1].upper() + text[1:]


def _whose(holder: Holder) -> str:
    if not holder.owners:
        return ""
    others = f" and {holder.owners_total - 1} more processes" if holder.owners_total > 1 else ""
    fds = f" {fd_text(holder)}" if holder.owners[0].fds else ""
    return f", for {process_name(holder.owners[0])}{fds}{others}"


def _owner(holder: Holder) -> MemoryOwner:
    owner = process_owner([holder])
    return owner if holder.owners else owner.model_copy(update={"kind": OwnerKind.DEVICE})


def _owner_of_lost(groups: Sequence[WaitingPackets]) -> MemoryOwner:
    device = next((one.device for one in groups if one.device), "")
    return MemoryOwner(kind=OwnerKind.DEVICE if device else OwnerKind.KERNEL, name=device)


def _census_groups(situation: Situation) -> Sequence[WaitingPackets]:
    census = situation.measured.census
    return census.packets.groups if census and census.packets else ()


def _unchanged(groups: Sequence[WaitingPackets]) -> Iterator[str]:
    seconds = [one.unchanged_seconds for one in groups if one.unchanged_seconds]
    if seconds:
        yield f"the same packets were in no queue for at least {format_duration(min(seconds))}"


def _of_group(group: WaitingPackets) -> str:
    device = f" of {group.device}" if group.device else ""
    kind = f" ({group.device_kind})" if group.device_kind else ""
    freed = f", freed by {group.destructor}" if group.destructor else ""
    return f"{group.packets} packets{device}{kind} with {format_bytes(group.pinned_bytes + group.head_bytes)}{freed}"


def _freed_by(situation: Situation, index: int) -> FreedBy | None:
    holder = situation.measured.holdings[index].holder
    action = {
        PacketPlace.QDISC: "Set the device down, or delete its qdisc (tc qdisc del).",
        PacketPlace.NEIGHBOUR_QUEUE: "Flush the neighbours of the device (ip neigh flush).",
        PacketPlace.NETFILTER_QUEUE: "End or fix the program that gives no verdicts: when it ends, the kernel drops "
        "them.",
    }.get(holder.packet_place or PacketPlace.TUN)
    if holder.kind is HolderKind.TUN_QUEUE and holder.owners:
        action = f"Restart or fix {process_name(holder.owners[0])}: reading or closing {fd_text(holder)} frees it."
    if action is None:
        return None
    freed_bytes = exclusive_bytes([index], situation.measured.holdings, page_bytes=situation.page_bytes)
    return FreedBy(action=action[: limits.MAX_SENTENCE], size_bytes=freed_bytes)


_ADVICE = {
    PacketPlace.TUN: "Check why the program does not read its tun or tap device.",
    PacketPlace.QDISC: "Check why the device does not send: its link, its rate limit, and the length of its queue "
    "(tc -s qdisc).",
    PacketPlace.NEIGHBOUR_QUEUE: "Check why the neighbour's address is not resolved (ip -s neigh).",
    PacketPlace.REASSEMBLY: "Check which sender's fragments get lost, and net.ipv4.ipfrag_high_thresh.",
    PacketPlace.NETFILTER_QUEUE: "Check why the program does not give its verdicts, and limit the queue's length.",
    PacketPlace.DRIVER_RING: "Reduce the size of the device's rings (ethtool -G) if that is too much.",
    PacketPlace.REFERRED: "Check which device or module keeps them: census.packets names the objects.",
}
"""What to check, by the place of the packets."""
_OTHER_ADVICE = "Check which module keeps them: census.packets has their device and destructor."
