"""Network namespaces that no process uses: the rule, with a row for each kind of evidence."""

from dataclasses import replace

import pytest

from memdiag_api.census.namespaces import NetworkNamespace, NetworkNamespaces
from memdiag_api.census.packets import PacketPlace
from memdiag_api.evidence import Census, Holder, HolderKind
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_node.findings.rules import find
from memdiag_node.findings.zombie_namespace import zombie_namespaces
from memdiag_node.holding import PACKET_STRUCT_BYTES, Holding
from support.holdings import MIB, held, situation_of


def census(
    zombies: int, size_bytes: int, *, kept_by: str = "1 socket that no process has (1 TCP in FIN-WAIT-1)"
) -> Census:
    listed = [
        NetworkNamespace(
            inode=4026532000 + number,
            is_zombie=True,
            kept_by=kept_by,
            size_bytes=size_bytes // zombies,
            processes=0,
            files=0,
            mounts=0,
            sockets=1,
            open_sockets=0,
            packets=0,
            devices=1,
            device_names=["lo"],
        )
        for number in range(min(zombies, 32))
    ]
    found = NetworkNamespaces(total=zombies + 1, zombies=zombies, zombie_bytes=size_bytes, listed=listed)
    return Census(compound=[], namespaces=found)


@pytest.mark.parametrize(
    ("zombies", "size_bytes", "is_found"),
    [(8, MIB, True), (7, MIB, False), (1, 64 * MIB, True), (1, 30 * MIB, False), (0, 0, False), (300, 0, True)],
)
def test_many_zombies_or_large_ones_are_a_finding(zombies: int, size_bytes: int, is_found: bool) -> None:
    found = list(zombie_namespaces(situation_of(census=census(zombies, size_bytes)), []))
    assert bool(found) == is_found
    for draft in found:
        assert draft.leak is LeakAnswer.UNKNOWN
        assert sum(draft.claimed_bytes.values()) == 0
        assert "TCP in FIN-WAIT-1" in draft.sentence
        assert draft.owner is not None
        assert "net:[4026532000]" in draft.owner.name


def test_those_that_the_kernel_removes_now_are_not_counted() -> None:
    leaving = census(12, MIB, kept_by="nothing: it is being removed, 1 reference to its memory left")
    assert list(zombie_namespaces(situation_of(census=leaving), [])) == []


def test_without_a_census_there_is_none() -> None:
    assert list(zombie_namespaces(situation_of(), [])) == []


def queue(place: PacketPlace, namespace: int) -> Holding:
    holder = Holder(kind=HolderKind.PACKET_QUEUE, packet_place=place, pinned_bytes=70 * MIB, unread_packets=100)
    return replace(held(holder, first_page=namespace), network_namespace=namespace)


def test_it_is_about_the_packets_in_its_namespaces() -> None:
    """They are the reason why a namespace is kept, not a second finding of the same size."""
    queues = [queue(PacketPlace.QDISC, inode) for inode in (4026531840, 4026532000)]
    lost = queue(PacketPlace.LOST, 4026532000 + (1 << 20))
    situation = situation_of(*queues, lost, census=census(1, 70 * MIB))
    drafts = find(situation)
    kinds = {draft.kind: draft for draft in drafts if draft.holders}
    assert set(kinds) == {FindingKind.ZOMBIE_NAMESPACE, FindingKind.PACKETS_OUTSIDE_SOCKETS, FindingKind.LOST_PACKETS}
    zombie = kinds[FindingKind.ZOMBIE_NAMESPACE]
    assert zombie.holders == [1]
    assert zombie.size_bytes == sum(zombie.claimed_bytes.values()) == 70 * MIB + 100 * PACKET_STRUCT_BYTES
    assert kinds[FindingKind.PACKETS_OUTSIDE_SOCKETS].holders == [0]
    assert kinds[FindingKind.LOST_PACKETS].holders == [2]


def test_lost_packets_in_its_namespaces_are_a_leak_of_their_own() -> None:
    situation = situation_of(queue(PacketPlace.LOST, 4026532000), census=census(1, 70 * MIB))
    (draft,) = zombie_namespaces(situation, [0])
    assert list(draft.holders) == []
