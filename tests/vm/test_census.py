"""The census of kernel objects on each of Debian's kernels: what one run finds of every load, planted at once."""

from dataclasses import dataclass
from typing import Any

import pytest

from memdiag_api.census.packets import PacketPlace, WaitingPackets
from memdiag_api.evidence import Census, Evidence, Holder, HolderKind, NeedState
from memdiag_api.record import Record
from support.guest import WAIT_SECONDS
from support.guest_lab import Answers

CLOSE = 0.02

pytestmark = pytest.mark.timeout(WAIT_SECONDS)  # the first test of each kernel boots it


@dataclass(frozen=True)
class Found:
    """What a run found in a guest with every load."""

    evidence: Evidence
    planted: dict[str, dict[str, Any]]
    before: list[dict[str, Any]]
    """slabinfo before the objects of kmalloc were planted."""
    after: list[dict[str, Any]]
    """slabinfo after the run."""
    said: str

    @property
    def census(self) -> Census:
        assert self.evidence.census is not None, self.said
        return self.evidence.census

    def packets(self, place: PacketPlace, load: str = "") -> WaitingPackets:
        """The only group of packets in this place, in the network namespace of the load if one is named."""
        assert self.census.packets is not None, self.said
        of = self.planted[load]["network_namespace"] if load else None
        groups = [one for one in self.census.packets.groups if one.place is place]
        (group,) = [one for one in groups if of in (None, one.network_namespace)]
        return group

    def holders(self, load: str, kind: HolderKind) -> list[Holder]:
        """The holders of this kind that the load's process has."""
        pid = self.planted[load]["pid"]
        return [one for one in self.evidence.holders if one.kind is kind and pid in {owner.pid for owner in one.owners}]

    def socket(self, load: str) -> Holder:
        """The socket with the load's unread data."""
        inode = self.planted[load]["inode"]
        (holder,) = [one for one in self.evidence.holders if one.socket is not None and one.socket.inode == inode]
        return holder


@pytest.fixture
def found(guest: Answers) -> Found:
    answer = guest["census"]
    run = answer["run"]
    said = "\n".join(line for _, line in run["stderr"])
    assert run["status"] == 0, said
    return Found(Evidence.model_validate(run["evidence"]), answer["planted"], answer["before"], answer["after"], said)


def test_no_part_of_the_census_fails(found: Found) -> None:
    assert [need for need in found.evidence.needs if need.state is not NeedState.MET] == []
    parts = ("slab", "clues", "files", "dentries", "namespaces", "packets")
    assert {part: isinstance(getattr(found.census, part), Record) for part in parts} == dict.fromkeys(parts, True)


def test_slabs_add_up_to_the_kernels_counters(found: Found) -> None:
    slab = found.census.slab
    assert slab is not None
    assert slab.sampled_share == 1
    slab_bytes = slab.reclaimable_bytes + slab.unreclaimable_bytes
    assert slab_bytes == pytest.approx(sum(cache["size_bytes"] for cache in found.after), rel=0.01)
    if slab.large_kmalloc_bytes is not None:
        assert abs(slab.difference_bytes) <= 0.01 * (slab_bytes + slab.large_kmalloc_bytes)
    else:  # then large kmalloc is in the difference: above all the first fragments, which are one block each
        fragments = found.packets(PacketPlace.REASSEMBLY, "fragments")
        assert 0 <= slab.difference_bytes - fragments.pinned_bytes <= 0.05 * slab_bytes


@pytest.mark.parametrize(("load", "counted"), [("leak", "objects"), ("messages", "messages")])
def test_objects_of_a_size_are_counted_in_their_cache(found: Found, load: str, counted: str) -> None:
    planted, slab = found.planted[load], found.census.slab
    assert slab is not None
    of_size = [cache for cache in slab.caches if cache.object_bytes == planted["object_bytes"]]
    before = [cache for cache in found.before if cache["name"] in {one.name for one in of_size}]
    objects = sum(one.objects for one in of_size) - sum(one["objects"] for one in before)
    size_bytes = sum(one.size_bytes for one in of_size) - sum(one["size_bytes"] for one in before)
    assert objects == pytest.approx(planted[counted], rel=CLOSE)
    assert size_bytes == pytest.approx(planted[counted] * planted["object_bytes"], rel=CLOSE)
    assert any("kmalloc" in one.name for one in of_size)


def test_leaked_objects_name_their_module(found: Found) -> None:
    planted, clues = found.planted["leak"], found.census.clues
    assert clues is not None
    assert clues.sees_symbols
    (clue,) = [clue for clue in clues.clues if clue.module == planted["module"]]
    assert planted["function"] in clue.points_to
    assert clue.share > 0.9


def test_packets_in_no_queue_are_lost(found: Found) -> None:
    planted, group = found.planted["lost"], found.packets(PacketPlace.LOST)  # there are no others
    assert group.packets == planted["packets"]
    assert group.charge_bytes == planted["charge_bytes"]
    assert group.pinned_bytes == pytest.approx(planted["pinned_bytes"], rel=CLOSE)


@pytest.mark.parametrize(
    ("load", "place"),
    [
        ("nfqueue", PacketPlace.NETFILTER_QUEUE),
        ("fragments", PacketPlace.REASSEMBLY),
        ("zombie", PacketPlace.QDISC),
        ("neighbour", PacketPlace.NEIGHBOUR_QUEUE),
        ("tun", PacketPlace.TUN),
    ],
)
def test_packets_are_counted_where_they_wait(found: Found, load: str, place: PacketPlace) -> None:
    planted, group = found.planted[load], found.packets(place, load)
    assert group.packets == planted["packets"]
    # What arrived in one piece, and is one block, is rounded up to 64 KiB.
    expected_bytes = planted["packets"] << 16 if load == "fragments" else planted["packet_bytes"]
    assert group.pinned_bytes == pytest.approx(expected_bytes, rel=CLOSE)
    assert group.device == planted.get("device", "lo")


def test_a_namespace_without_processes_is_a_zombie(found: Found) -> None:
    planted, namespaces = found.planted["zombie"], found.census.namespaces
    assert namespaces is not None
    (listed,) = [one for one in namespaces.listed if one.inode == planted["network_namespace"]]
    assert listed.is_zombie
    assert listed.packets == planted["packets"]
    assert listed.size_bytes > planted["packet_bytes"]
    assert [one.inode for one in namespaces.listed if one.is_zombie] == [planted["network_namespace"]]


def test_the_packets_of_a_tun_device_belong_to_its_process(found: Found) -> None:
    planted = found.planted["tun"]
    (holder,) = found.holders("tun", HolderKind.TUN_QUEUE)
    assert holder.owners[0].fds == [planted["fd"]]
    assert holder.unread_packets == planted["packets"]
    assert holder.pinned_bytes == pytest.approx(planted["packet_bytes"], rel=CLOSE)


def test_heads_of_datagrams_in_slab_belong_to_their_socket(found: Found) -> None:
    planted, holder = found.planted["slab_heads"], found.socket("slab_heads")
    assert holder.owners[0].fds == [planted["fd"]]
    assert (holder.unread_packets, holder.unread_bytes) == (planted["datagrams"], planted["unread_bytes"])
    assert holder.head_bytes > planted["unread_bytes"]


def test_messages_of_sctp_belong_to_their_socket(found: Found) -> None:
    planted, holder = found.planted["sctp"], found.socket("sctp")
    assert holder.owners[0].fds == [planted["fd"]]
    assert (holder.unread_packets, holder.unread_bytes) == (planted["messages"], planted["unread_bytes"])


def test_packets_of_sctp_are_counted_once(found: Found) -> None:
    # SCTP keeps the packet of which the socket has a copy.
    planted, census = found.planted["sctp"], found.census.packets
    assert census is not None
    (group,) = [one for one in census.groups if one.socket_kind.startswith("SCTP")]
    assert group.place is PacketPlace.SOCKET_QUEUES
    assert group.packets == planted["messages"]
    assert [one for one in census.groups if one.network_namespace == planted["network_namespace"]] == []


@pytest.mark.parametrize(("load", "place"), [("ktls", PacketPlace.KTLS), ("sockmap", PacketPlace.SOCKMAP)])
def test_what_a_protocol_has_in_lists_of_its_own_belongs_to_the_socket(
    found: Found, load: str, place: PacketPlace
) -> None:
    planted, group = found.planted[load], found.packets(place, load)
    (holder,) = [one for one in found.holders(load, HolderKind.SOCKET) if one.socket is None]
    assert [(owner.pid, owner.fds) for owner in holder.owners] == [(planted["pid"], [planted["fd"]])]
    assert holder.unread_bytes == pytest.approx(planted["unread_bytes"], rel=CLOSE)
    assert (holder.unread_packets, holder.charge_bytes) == (group.packets, group.charge_bytes)
    assert (holder.pinned_bytes, holder.head_bytes) == (group.pinned_bytes, group.head_bytes)
    assert holder.stuck_seconds is not None
    assert holder.stuck_seconds >= 1


def test_io_uring_rings_belong_to_their_process(found: Found) -> None:
    planted = found.planted["io_uring"]
    (holder,) = found.holders("io_uring", HolderKind.IO_URING)
    assert holder.owners[0].fds == list(planted["fds"])
    # Old kernels round each ring up to a power of two.
    assert 0.98 * planted["ring_bytes"] <= holder.pinned_bytes < 2 * planted["ring_bytes"]


def test_a_trace_buffer_has_its_instance(found: Found) -> None:
    planted = found.planted["trace_buffer"]
    named = [one for one in found.evidence.holders if planted["instance"] in one.description]
    largest = max(named, key=lambda one: one.pinned_bytes)
    assert largest.kind is HolderKind.FTRACE_BUFFER
    assert largest.pinned_bytes == pytest.approx(planted["buffer_bytes"], rel=CLOSE)


def test_bpf_maps_belong_to_their_process(found: Found) -> None:
    planted, maps = found.planted["maps"], found.holders("maps", HolderKind.BPF_MAP)
    assert sorted(fd for one in maps for fd in one.owners[0].fds) == list(planted["fds"])
    assert sum(one.pinned_bytes for one in maps) == pytest.approx(planted["value_bytes"], rel=CLOSE)


@pytest.mark.parametrize(("load", "is_deleted"), [("memfd", False), ("deleted_file", True)])
def test_a_file_has_its_name_and_its_user(found: Found, load: str, is_deleted: bool) -> None:
    planted, files = found.planted[load], found.census.files
    assert files is not None
    of_user = [one for one in files.files if planted["pid"] in {user.pid for user in one.users}]
    (file,) = [one for one in of_user if one.inode == planted["inode"]]
    assert file.cached_bytes == pytest.approx(planted["size_bytes"], rel=CLOSE)
    assert [user.fds for user in file.users] == [[planted["fd"]]]
    assert planted["path"].removeprefix("/") in file.path
    assert file.is_deleted or not is_deleted
