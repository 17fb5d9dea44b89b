"""Packets outside of sockets and lost packets: the rules, with a row for each kind of evidence."""

import pytest

from memdiag_api.census.packets import PacketCensus, PacketPlace, WaitingPackets
from memdiag_api.evidence import Census, Holder, HolderKind
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.packets_outside import packets_outside
from memdiag_node.holding import PACKET_STRUCT_BYTES
from support.holdings import MIB, held, owner, situation_of


def queue(place: PacketPlace, *, pinned_bytes: int = 300 * MIB, owned: bool = False) -> Holder:
    return Holder(
        kind=HolderKind.PACKET_QUEUE,
        packet_place=place,
        description=f"9 packets wait in {place}",
        owners=[owner()] if owned else [],
        owners_total=3 if owned else 0,
        unowned_reason="" if owned else "kernel",
        unread_packets=9,
        pinned_bytes=pinned_bytes,
    )


TUN = Holder(
    kind=HolderKind.TUN_QUEUE,
    description="tun tun0, interface 3: 4000 packets wait to be read",
    owners=[owner(8, fd=3)],
    owners_total=1,
    unread_packets=4_000,
    pinned_bytes=250 * MIB,
)
LOST_CENSUS = Census(
    compound=[],
    packets=PacketCensus(
        packets=9,
        charge_bytes=0,
        groups=[
            WaitingPackets(
                place=PacketPlace.LOST,
                packets=9,
                charge_bytes=0,
                pinned_bytes=20 * MIB,
                device="eth0",
                device_kind="veth",
                unchanged_seconds=60,
            )
        ],
    ),
)


def found(*holders: Holder, census: Census | None = None) -> list[Draft]:
    holdings = [held(one, first_page=number << 20) for number, one in enumerate(holders)]
    return list(packets_outside(situation_of(*holdings, census=census), range(len(holdings))))


@pytest.mark.parametrize(
    ("holder", "leak"),
    [
        (TUN, LeakAnswer.UNKNOWN),
        (queue(PacketPlace.QDISC), LeakAnswer.UNKNOWN),
        (queue(PacketPlace.NETFILTER_QUEUE, owned=True), LeakAnswer.UNKNOWN),
        (queue(PacketPlace.REASSEMBLY), LeakAnswer.UNKNOWN),
        (queue(PacketPlace.OBJECT_LIST), LeakAnswer.UNKNOWN),
        (queue(PacketPlace.DRIVER_RING), LeakAnswer.NO),
        (queue(PacketPlace.QDISC, pinned_bytes=60 * MIB), None),
        (Holder(kind=HolderKind.PIPE, pinned_bytes=300 * MIB), None),
    ],
)
def test_a_large_queue_is_a_finding(holder: Holder, leak: LeakAnswer | None) -> None:
    assert [draft.leak for draft in found(holder)] == ([] if leak is None else [leak])


def test_the_owner_is_the_program_that_reads_the_queue() -> None:
    (draft,) = found(TUN)
    assert draft.sentence == "Tun tun0, interface 3: 4000 packets wait to be read: 251 MiB, for python3[8] fd 3."
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.pid) == (OwnerKind.PROCESS, 8)
    assert draft.freed_by is not None
    assert draft.freed_by.size_bytes == 250 * MIB + 4_000 * 256


def test_several_programs_in_its_network_namespace() -> None:
    (draft,) = found(queue(PacketPlace.NETFILTER_QUEUE, owned=True))
    assert draft.sentence.endswith("300 MiB, for python3[77] fd 5 and 2 more processes.")


def test_lost_packets_are_a_leak() -> None:
    drafts = found(*(queue(PacketPlace.LOST, pinned_bytes=10 * MIB) for _ in range(2)), census=LOST_CENSUS)
    (draft,) = drafts
    assert (draft.kind, draft.leak, draft.size_bytes) == (
        FindingKind.LOST_PACKETS,
        LeakAnswer.YES,
        20 * MIB + 18 * PACKET_STRUCT_BYTES,
    )
    assert draft.sentence.startswith("18 packets with 20.0 MiB are lost")
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.name) == (OwnerKind.DEVICE, "eth0")
    assert any("for at least 60 s" in reason for reason in draft.reasons)


def test_a_few_lost_packets_are_none() -> None:
    assert found(queue(PacketPlace.LOST, pinned_bytes=10 * MIB), census=LOST_CENSUS) == []
