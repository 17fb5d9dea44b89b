"""Packets outside of socket queues, as holders."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_api.census.packets import PacketPlace
from memdiag_api.evidence import Holder, HolderKind, Owner
from memdiag_node.census.packets.group import PacketGroup
from memdiag_node.census.packets.holdings import GroupOwners, packet_holdings
from memdiag_node.census.packets.packets import PacketsReading, UnlinkedPackets
from memdiag_node.census.packets.place import Place
from memdiag_node.census.packets.record import is_lost
from memdiag_node.holding import PINNED_DTYPE

PAGE = 4096
NOTHING = np.empty(0, "<u8")
OWNED = GroupOwners([Owner(pid=7, comm="listener")], 3)


def blocks(*pages: int) -> npt.NDArray[np.void]:
    return np.array([(page, 3, False) for page in pages], PINNED_DTYPE)


def group(place: Place = Place.QDISC, pages: tuple[int, ...] = (64, 128)) -> PacketGroup:
    return PacketGroup(
        place, packets=5, charge_bytes=90_000, head_bytes=700, blocks=blocks(*pages), user_bytes=0,
        device="eth0", interface_index=2, network_namespace=4026531840,
    )  # fmt: skip


def reading(*groups: PacketGroup) -> PacketsReading:
    return PacketsReading(
        groups=list(groups), packets=5, charge_bytes=90_000, unlinked=UnlinkedPackets(NOTHING, NOTHING, 0),
        unchanged_seconds=10, blocks_left_out=0, sampled_share=1, searched_share=1, seconds=0,
    )  # fmt: skip


def holders(*groups: PacketGroup, taken: tuple[int, ...] = (), owners: GroupOwners = OWNED) -> list[Holder]:
    found = packet_holdings(reading(*groups), np.array(taken, "<u8"), lambda _: owners)
    return [one.holder for one in found]


def test_a_group_is_a_holder_of_its_blocks_with_its_owners() -> None:
    (held,) = packet_holdings(reading(group()), NOTHING, lambda _: OWNED)
    assert held.blocks["page"].tolist() == [64, 128]
    assert held.holder == Holder(
        kind=HolderKind.PACKET_QUEUE,
        description="5 packets wait in the qdisc of eth0, interface 2 in network namespace 4026531840",
        owners=OWNED.processes,
        owners_total=3,
        unread_packets=5,
        charge_bytes=90_000,
        pinned_bytes=16 * PAGE,
        pinned_blocks=2,
        head_bytes=700,
        packet_place=PacketPlace.QDISC,
    )


def test_blocks_of_other_holders_are_left_out_and_so_is_a_group_without_others() -> None:
    large = group(pages=tuple(range(64, 64 * 5, 64)))
    (holder,) = holders(large, taken=(64, 999))
    assert (holder.pinned_blocks, holder.pinned_bytes) == (3, 24 * PAGE)
    assert holders(large, taken=(64, 128, 192, 256)) == []


def test_packets_without_blocks_are_a_holder_by_their_heads() -> None:
    (holder,) = holders(replace(group(pages=()), head_bytes=1 << 20))
    assert (holder.pinned_bytes, holder.head_bytes) == (0, 1 << 20)


def test_small_groups_and_queues_of_sockets_are_left_out() -> None:
    assert holders(replace(group(pages=(64,)), head_bytes=PAGE)) == []
    assert holders(group(Place.SOCKET)) == []


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ((), "for a verdict in a netfilter queue of eth0"),
        ((5,), "for a verdict in netfilter queue 5 of eth0"),
        ((5, 6), "for a verdict in netfilter queues 5, 6 of eth0"),
        ((1, 2, 3, 4, 5), "for a verdict in netfilter queues 1, 2, 3, 4 and more of eth0"),
    ],
)
def test_netfilter_queues_are_named(queues: tuple[int, ...], words: str) -> None:
    (holder,) = holders(group(Place.NETFILTER), owners=replace(OWNED, queues=queues))
    assert words in holder.description


def test_packets_in_no_queue_are_lost_only_if_they_were_there_before() -> None:
    lost = replace(group(Place.UNLINKED), is_unchanged=True, device="", network_namespace=0)
    assert is_lost(lost, reading(lost))
    (holder,) = holders(lost)
    assert holder.description == "5 lost packets: in no queue"
    assert holders(replace(lost, is_unchanged=False)) == []  # on their way from one queue to another


def test_the_reason_is_given_only_if_there_is_no_owner() -> None:
    (holder,) = holders(group(), owners=GroupOwners(unowned_reason="because"))
    assert (holder.owners_total, holder.unowned_reason) == (0, "because")
    (holder,) = holders(group(), owners=replace(OWNED, unowned_reason="because"))
    assert holder.unowned_reason == ""


@pytest.mark.parametrize(("place", "socket", "is_stuck"), [
    (Place.KTLS, 8, True), (Place.SOCKMAP, 8, True), (Place.SCTP, 8, False), (Place.KTLS, 0, False),
])  # fmt: skip
def test_packets_of_a_protocol_are_held_by_a_socket(place: Place, socket: int, is_stuck: bool) -> None:
    one = replace(group(place), device="", socket=socket, socket_kind="TCP", data_bytes=9_000, is_unchanged=True)
    (holder,) = holders(one)
    assert (holder.kind, holder.memory_class, holder.unread_bytes) == (HolderKind.SOCKET, "AllocPage", 9_000)
    assert holder.stuck_seconds == (10 if is_stuck else None)
    (changed,) = holders(replace(one, is_unchanged=False))
    assert changed.stuck_seconds is None


def test_blocks_of_a_socket_that_was_walked_count_there() -> None:
    one = replace(group(Place.SCTP, pages=(64, 128)), socket=8, head_bytes=1 << 16)
    (held,) = packet_holdings(reading(one), np.array([64, 128], "<u8"), lambda _: OWNED)
    assert (len(held.blocks), held.holder.pinned_bytes, held.holder.head_bytes) == (0, 0, 1 << 16)
