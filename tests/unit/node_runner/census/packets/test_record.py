"""The record of the node's packets, and its text."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_api import limits
from memdiag_api.census.packets import PacketCensus, PacketPlace
from memdiag_node.census.packets.group import PacketGroup, summed
from memdiag_node.census.packets.groups import MAX_GROUPS
from memdiag_node.census.packets.packets import PacketsReading, UnlinkedPackets
from memdiag_node.census.packets.place import Place
from memdiag_node.census.packets.record import is_lost, packets_record
from memdiag_node.holding import PINNED_DTYPE
from memdiag_node.render.packets import packets_lines
from memdiag_node.render.text import WIDTH

_PAGE_BYTES = 4096
_FUNCTION = 0xFFFF_FFFF_8123_4560


def blocks(*orders: int) -> npt.NDArray[np.void]:
    found = np.zeros(len(orders), PINNED_DTYPE)
    found["page"] = np.arange(1, len(orders) + 1) * 64
    found["order"] = orders
    return found


def group(place: Place, **fields: Any) -> PacketGroup:
    return replace(PacketGroup(place, 5_000, 320 << 20, 1 << 20, blocks(3, 0)), **fields)


def reading(*groups: PacketGroup, searched_share: float = 1, sampled_share: float = 1) -> PacketsReading:
    return PacketsReading(
        groups=list(groups),
        packets=sum(one.packets for one in groups),
        charge_bytes=sum(one.charge_bytes for one in groups),
        unlinked=UnlinkedPackets(np.empty(0, "<u8"), np.empty(0, "<u8"), 0),
        unchanged_seconds=12,
        blocks_left_out=0,
        sampled_share=sampled_share,
        searched_share=searched_share,
        seconds=0.1,
    )


def record(*groups: PacketGroup, searched_share: float = 1) -> PacketCensus:
    return packets_record(
        reading(*groups, searched_share=searched_share), {_FUNCTION: "sock_wfree"}.__getitem__, page_bytes=_PAGE_BYTES
    )


def test_every_place_has_a_name_in_the_document_and_in_the_text() -> None:
    for place in Place:
        census = record(group(place))
        lines = packets_lines(census)
        assert bool(lines) == (place != Place.SOCKET)


def test_sockets_of_one_protocol_and_namespace_are_one_group() -> None:
    here = {"network_namespace": 4026531840, "socket_kind": "TCP"}
    sockets = [group(Place.KTLS, socket=number, **here) for number in (1, 2)]
    census = record(*sockets, group(Place.SCTP, socket=3, **here), group(Place.QDISC), group(Place.QDISC))
    assert [(one.place, one.packets) for one in census.groups] == [
        (PacketPlace.KTLS, 10_000), (PacketPlace.SCTP, 5_000), (PacketPlace.QDISC, 5_000), (PacketPlace.QDISC, 5_000),
    ]  # fmt: skip
    assert census.groups[0].pinned_bytes == 9 * _PAGE_BYTES  # both have the same blocks


def test_a_group_is_described_with_names_and_sizes_only() -> None:
    census = record(
        group(
            Place.QDISC, device="eth0", interface_index=3, network_namespace=4026531840, destructor=_FUNCTION,
            socket=0xFFFF_8880_1234_5678, socket_kind="UDP",
        )
    )  # fmt: skip
    (shown,) = census.groups
    assert (shown.place, shown.destructor, shown.pinned_blocks) == (PacketPlace.QDISC, "sock_wfree", 2)
    assert shown.pinned_bytes == 9 * _PAGE_BYTES
    text = census.model_dump_json() + "".join(packets_lines(census))
    assert str(0xFFFF_8880_1234_5678) not in text
    assert str(_FUNCTION) not in text
    assert "eth0" in text


@pytest.mark.parametrize(
    ("packets", "is_unchanged", "searched_share", "sampled_share", "expected"),
    [
        (5_000, True, 0.1, 1, True),
        (5_000, False, 1, 1, False),  # other packets than in the first reading
        (200, True, 0.1, 1, False),  # may be the ring of a device, whose array was not searched
        (200, True, 1, 1, True),
        (5_000, True, 1, 0.5, False),  # the queue may be in the part of memory that was not read
    ],
)
def test_packets_are_only_lost_if_nothing_else_is_possible(
    packets: int, is_unchanged: bool, searched_share: float, sampled_share: float, expected: bool
) -> None:
    one = group(Place.UNLINKED, packets=packets, is_unchanged=is_unchanged)
    assert is_lost(one, reading(one, searched_share=searched_share, sampled_share=sampled_share)) is expected
    assert not is_lost(replace(one, place=Place.REFERRED), reading(one, searched_share=1))


def test_unchanged_packets_have_the_time_between_both_readings() -> None:
    census = record(group(Place.UNLINKED, is_unchanged=True), group(Place.UNLINKED))
    assert [one.unchanged_seconds for one in census.groups] == [12, None]
    assert [one.place for one in census.groups] == [PacketPlace.LOST, PacketPlace.UNLINKED]
    assert any("LOST" in line for line in packets_lines(census))


def test_groups_beyond_the_limit_are_summed_by_place_without_counting_a_block_twice() -> None:
    many = [group(place) for place in Place for _ in range(4)]
    sums = summed(many)
    assert len(sums) == len(Place)
    assert sum(one.packets for one in sums) == sum(one.packets for one in many)
    assert {len(one.blocks) for one in sums} == {2}
    assert MAX_GROUPS + len(Place) <= limits.MAX_PACKET_GROUPS


def test_lines_fit_the_page_and_small_groups_are_left_out() -> None:
    wide = group(Place.NETFILTER, device="d" * 15, network_namespace=4026531840, referred_by="kmalloc-cg-8k+1234")
    lines = packets_lines(record(wide, group(Place.TUN, charge_bytes=1000)))
    assert max(map(len, lines)) <= WIDTH
    assert sum("tun" in line for line in lines) == 0
