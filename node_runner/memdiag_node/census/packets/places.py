"""Where each packet of the node is: the links between packets, joined with what is known of the queues."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.network_objects import Networks, index_of
from memdiag_node.census.packets.alive import own_data, still_allocated
from memdiag_node.census.packets.chains import Link, Links, from_starts, link
from memdiag_node.census.packets.place import Place, Pointers
from memdiag_node.census.packets.protocols import protocol_pointers
from memdiag_node.census.packets.queues import (
    Qdiscs,
    classify_heads,
    netfilter_pointers,
    qdisc_pointers,
    read_qdiscs,
    reassembly_pointers,
    socket_pointers,
)
from memdiag_node.census.packets.table import PacketTable
from memdiag_node.slab.census import SlabCensus

_READINGS = 2
_MAX_NEW_PACKETS = 1 << 12
_MAX_NESTED = 8
_MAX_RUN = 1 << 12
_SLACK_PACKETS = 64


QUEUE_DTYPE = np.dtype(
    [("place", "u1"), ("owner", "<u8"), ("device", "<u8"), ("cache", "<i4"), ("offset_bytes", "<i8")]
)
"""A queue with packets. `owner`: the socket for SOCKET and PROTOCOL_PLACES, else the network namespace; 0 if not known,
as for `device`. `cache`, `offset_bytes`: the cache of the object that has the head of the list, -1 for none, and where
in the object."""


class PlacedPackets:
    """The place of each packet of a table, with what it belongs to. Columns have one element for each packet."""

    def __init__(self, census: SlabCensus, at: Mapping[str, int], networks: Networks, table: PacketTable) -> None:
        """Read what is needed to place all packets. `at` has what the `fields` functions of this package return."""
        self.table = table
        self._census, self._at, self._networks = census, at, networks
        count = len(table.address)
        self.is_member = np.zeros(count, np.bool_)
        """Whether it is on another packet's list of fragments, and part of that packet's charge."""
        self.is_alive = np.ones(count, np.bool_)
        """False for what is allocated, but is a packet no longer."""
        self._links = self._link()
        self._queues = np.zeros(1, QUEUE_DTYPE)  # number 0: none
        self._queue = np.zeros(count, np.int32)  # of each list, tree or chain, at the index of its last packet
        self._is_start = np.zeros(count, np.bool_)  # whether a queue leads to this packet of a chain
        qdiscs = read_qdiscs(census, at, networks)
        self._place_lists(qdiscs)
        for pointers in (
            *socket_pointers(census, at, networks),
            *protocol_pointers(census, at, networks, table.address),
            *reassembly_pointers(census, at, networks),
            *qdisc_pointers(census, at, qdiscs),
        ):
            self._follow(pointers)
        self._follow_runs()
        self._follow_fragment_lists()
        self._spread()
        self._join_copies()
        self._choose_twins()
        self._drop_dead()
        self._place_others(qdiscs)

    def _link(self) -> Links:
        """Follow all links. Those of packets that moved meanwhile are read again."""
        table, census, at = self.table, self._census, self._at
        words = table.first_word, table.second_word, table.third_word
        links = link(table.address, *words)
        for _ in range(_READINGS - 1):
            torn = np.flatnonzero(links.kind == Link.TORN)
            if not len(torn):
                break
            again = [census.read(table.address[torn], at[f"PACKET_{name}"]) for name in ("NEXT", "PREV", "DEV")]
            if all(np.array_equal(new, word[torn]) for new, word in zip(again, words, strict=True)):
                break
            for word, new in zip(words, again, strict=True):
                word[torn] = new
            links = link(table.address, *words)
        return links

    def _place_lists(self, qdiscs: Qdiscs) -> None:
        """Find the heads of all lists, and what they are in."""
        ends = np.flatnonzero(self._links.after)
        heads = self._heads_after(ends)
        ends, heads = ends[heads != 0], heads[heads != 0]
        found = classify_heads(self._census, self._at, self._networks, qdiscs, heads)
        self._queue[ends] = self._add_queues(
            found.place, found.owner, found.device, cache=found.cache, offset_bytes=found.offset_bytes
        )

    def _add_queues(
        self,
        place: npt.NDArray[np.uint8] | Place,
        owner: npt.NDArray[np.uint64],
        device: npt.NDArray[np.uint64],
        *,
        cache: npt.NDArray[np.int32] | int = -1,
        offset_bytes: npt.NDArray[np.int64] | int = 0,
    ) -> npt.NDArray[np.int32]:
        """The numbers of new queues."""
        added = np.zeros(len(owner), QUEUE_DTYPE)
        added["place"], added["owner"], added["device"] = place, owner, device
        added["cache"], added["offset_bytes"] = cache, offset_bytes
        first = len(self._queues)
        self._queues = np.concatenate([self._queues, added])
        return np.arange(first, len(self._queues), dtype=np.int32)

    def queues_of(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """The queue (QUEUE_DTYPE) of each chosen packet; zeros for none."""
        queues: npt.NDArray[np.void] = self._queues[self._queue_of[chosen]]
        return queues

    def devices_of(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """The device that the queue of each chosen packet belongs to, or else the packet; not checked."""
        own = np.where(self._links.kind[chosen] == Link.TREE, 0, self.table.third_word[chosen])
        device = self.queues_of(chosen)["device"]
        return np.where(device != 0, device, own)

    def _heads_after(self, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """The head of the list that ends with each of these packets, past those missing in the table; 0 if torn."""
        census, table = self._census, self.table
        packet_caches = np.unique(table.cache)
        before, heads = table.address[ends], self._links.after[ends]
        going = np.ones(len(ends), np.bool_)
        for _ in range(_MAX_NEW_PACKETS):
            numbers = np.flatnonzero(going)
            if not len(numbers):
                break
            back = census.read(heads[numbers], self._at["PACKET_PREV"])
            heads[numbers[back != before[numbers]]] = 0
            _, slabs = census.find(heads[numbers])
            is_new = (slabs >= 0) & np.isin(census.slabs.table["cache"][slabs], packet_caches)
            going[numbers[~is_new]] = False
            numbers = numbers[is_new]
            before[numbers] = heads[numbers]
            heads[numbers] = census.read(heads[numbers], self._at["PACKET_NEXT"])
            known = index_of(heads[numbers], table.address)
            is_listed = (known >= 0) & (self._links.kind[known] == Link.LIST)
            numbers, last = numbers[is_listed], self._links.last[known[is_listed]]
            before[numbers], heads[numbers] = table.address[last], self._links.after[last]
        heads[going] = 0
        return heads

    def _follow(self, pointers: Pointers) -> None:
        """Place what these pointers lead to."""
        numbers = index_of(pointers.packets, self.table.address)
        found = np.flatnonzero(numbers >= 0)
        found = found[self._links.kind[numbers[found]] != Link.TORN]
        if pointers.place == Place.QDISC:  # it may still have the address of what it sent last: of another packet now
            kind, device = self._links.kind[numbers[found]], self.table.third_word[numbers[found]]
            found = found[(kind != Link.CHAIN) | (device == pointers.devices[found])]
        last = self._links.last[numbers[found]]
        place = self._place(last)
        is_free = (place == Place.UNKNOWN) | (place == Place.OBJECT_LIST)
        last, found = last[is_free], found[is_free]
        self._is_start[numbers[found]] = True
        self._queue[last] = self._add_queues(pointers.place, pointers.owners[found], pointers.devices[found])

    def _place(self, lasts: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """Where lists, trees and chains are, by the index of the last packet of each."""
        place: npt.NDArray[np.uint8] = self._queues["place"][self._queue[lasts]]
        return place

    def _follow_runs(self) -> None:
        """Fragments that follow another one directly are not in the tree of IP reassembly, but behind that one."""
        if "HAS_REASSEMBLY" not in self._at:
            return
        if not (self._queues["place"] == Place.REASSEMBLY).any():
            return
        front = np.flatnonzero((self._place(self._links.last) == Place.REASSEMBLY) & (self._links.kind != Link.TORN))
        offset = self._at["PACKET_CONTROL"] + self._at["FRAGMENTS_NEXT"]
        for _ in range(_MAX_RUN):
            following = self._census.read(self.table.address[front], offset)
            numbers = index_of(following, self.table.address)
            known = numbers >= 0
            front, numbers = front[known], numbers[known]
            fresh = self._place(self._links.last[numbers]) == Place.UNKNOWN
            front, numbers = front[fresh], numbers[fresh]
            if not len(front):
                break
            self._queue[self._links.last[numbers]] = self._queue[self._links.last[front]]
            self._is_start[numbers] = True
            front = numbers

    def _follow_fragment_lists(self) -> None:
        """Place the packets on lists of fragments where the packet is that has the list."""
        parents = np.flatnonzero(self.table.fragment_list)
        members = index_of(self.table.fragment_list[parents], self.table.address)
        parents, members = parents[members >= 0], members[members >= 0]
        is_chain = self._links.kind[members] == Link.CHAIN
        parents, members = parents[is_chain], members[is_chain]
        for _ in range(_MAX_NESTED):
            kind, place = self._links.kind[parents], self._place(self._links.last[parents])
            ready = (kind != Link.TORN) & (place != Place.UNKNOWN)
            ready &= self._place(self._links.last[members]) == Place.UNKNOWN
            if not ready.any():
                break
            lasts = self._links.last[members[ready]]
            self._queue[lasts] = self._queue[self._links.last[parents[ready]]]
            self._is_start[members[ready]] = True
            self.is_member |= np.isin(self._links.last, lasts)

    def _spread(self) -> None:
        """From each list, tree and chain to its packets."""
        is_placed = self._links.kind != Link.TORN
        # Freed packets that a CPU keeps may still lead to one that was used again, and is in a queue now.
        is_placed &= (self._links.kind != Link.CHAIN) | from_starts(self._links, self._is_start)
        self.is_member &= is_placed
        self._queue_of = np.where(is_placed, self._queue[self._links.last], 0)
        self.place = self._queues["place"][self._queue_of]
        """Place."""

    def _join_copies(self) -> None:
        """SCTP keeps each packet as long as its socket has a copy with the same data: both count as one."""
        own = np.flatnonzero(self.place == Place.SCTP)
        if not len(own):
            return
        originals = np.flatnonzero(self.place == Place.SOCKET)
        originals = originals[np.argsort(self.table.head[originals], kind="stable")]
        copies = index_of(self.table.head[own], self.table.head[originals])
        in_socket = own[copies >= 0]
        self._queue_of[in_socket] = self._queue_of[originals[copies[copies >= 0]]]
        self.place[in_socket] = Place.SOCKET
        self.is_member[in_socket] = True
        rest = own[copies < 0]
        _, first = np.unique(self.table.head[rest], return_index=True)
        self.is_member[np.delete(rest, first)] = True

    def _choose_twins(self) -> None:
        """Of two packets in one object of which one is alive, keep the one in a queue, or else the first."""
        pairs = np.flatnonzero(self.table.twin > np.arange(len(self.table.twin)))  # the first has the lower address
        others = self.table.twin[pairs]
        second_is_alive = (self.place[pairs] == Place.UNKNOWN) & (self.place[others] != Place.UNKNOWN)
        self.is_alive[np.where(second_is_alive, pairs, others)] = False

    def _drop_dead(self) -> None:
        """Without a queue, a packet counts if it is still allocated and if its data is its own.

        Freed packets that a CPU keeps for its next ones are allocated for the slab; what they point to is not theirs.
        """
        unplaced = np.flatnonzero((self.place == Place.UNKNOWN) & self.is_alive)
        if not len(unplaced):
            return
        census, table = self._census, self.table
        alive = still_allocated(census, table.address[unplaced])
        in_slab = census.find(table.head[unplaced])[1] >= 0
        alive &= still_allocated(census, table.head[unplaced]) | ~in_slab
        references, is_own = own_data(census, self._at, table, unplaced, in_slab)
        alive &= is_own
        placed_heads = np.sort(table.head[(self.place != Place.UNKNOWN) & self.is_alive])
        used = np.searchsorted(placed_heads, table.head[unplaced], side="right") - np.searchsorted(
            placed_heads, table.head[unplaced]
        )
        alive &= references > used
        self.is_alive[unplaced[~alive]] = False

    def _place_others(self, qdiscs: Qdiscs) -> None:
        """Place what is in no list of a known kind: by entries that point to it, and by its device."""
        unplaced = np.flatnonzero((self.place == Place.UNKNOWN) & self.is_alive)
        if not len(unplaced):
            return
        # A packet in a netfilter queue comes from a device or from a socket.
        has_origin = self._networks.device_numbers(self.devices_of(unplaced)) >= 0
        has_origin |= self._census.read(self.table.address[unplaced], self._at["PACKET_SK"]) != 0
        wanted = self.table.address[unplaced[has_origin]]
        for pointers in netfilter_pointers(self._census, self._at, self._networks, wanted):
            numbers = index_of(pointers.packets, self.table.address)
            self.place[numbers] = pointers.place
            self._queue_of[numbers] = self._add_queues(pointers.place, pointers.owners, pointers.devices)
        unplaced = unplaced[self.place[unplaced] == Place.UNKNOWN]
        devices = self._networks.device_numbers(self.devices_of(unplaced))
        has_device = devices >= 0
        chain_length = np.bincount(self._links.last[self.is_alive], minlength=len(self.place))
        last, kind = self._links.last[unplaced], self._links.kind[unplaced]
        is_single = (kind == Link.CHAIN) & (chain_length[last] == 1)
        is_tun = np.array([*(kind == "tun" for kind in self._networks.device_kinds), False])[devices]
        is_hardware = np.append(self._networks.is_hardware, False)[devices]
        found = np.where(is_single, Place.UNLINKED, Place.OTHER_CHAIN).astype(np.uint8)
        found[is_single & has_device & is_hardware] = Place.DRIVER
        found[has_device & self._is_in_qdisc(qdiscs, devices)] = Place.QDISC
        found[is_single & has_device & is_tun] = Place.TUN
        self.place[unplaced] = found

    def _is_in_qdisc(self, qdiscs: Qdiscs, devices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the qdiscs of each device (its number, -1 for none) have so many packets more than were found."""
        count = len(self._networks.devices)
        lengths = np.zeros(count + 1)
        numbers = self._networks.device_numbers(qdiscs.device)
        np.add.at(lengths, numbers, qdiscs.length.astype(np.float64))
        found = self._networks.device_numbers(self.devices_of(np.flatnonzero(self.place == Place.QDISC)))
        rest = lengths[:count] - np.bincount(found[found >= 0], minlength=count)
        claimed = np.bincount(devices[devices >= 0], minlength=count)
        return np.append((rest > 0) & (claimed <= rest + _SLACK_PACKETS), False)[devices]
