"""Packets that wait outside of socket queues, as the census found them, and whose they are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from memdiag_node.census.findings import ObjectFindings
from memdiag_node.census.packets.group import PacketGroup
from memdiag_node.census.packets.holdings import GroupOwners, packet_holdings
from memdiag_node.census.packets.place import PROTOCOL_PLACES, Place
from memdiag_node.census.packets.verdict_queues import VerdictQueues
from memdiag_node.holders.context import HolderContext
from memdiag_node.holding import Holding
from memdiag_node.kernel.btf import Btf
from memdiag_node.processes import OwnerOf, owners_of
from memdiag_node.sockets.scan import SocketScan

_SENT = (Place.QDISC, Place.NEIGHBOUR)
_EMPTY = "no process is in this network namespace"
_NO_FD = "no process has an fd of its socket"
_NO_SENDER = "in the host's network namespace, and no open socket sent most of them"
_NO_LISTENER = "in the host's network namespace, and the listener of the queue was not found"


def fields(_btf: Btf) -> dict[str, int]:
    """None: the census has read the packets."""
    return {}


def find(context: HolderContext) -> list[Holding]:
    """Every group of packets that no socket and no holder before has, if there was a census."""
    if context.objects is None:
        return []
    return packet_queues(context.scan, context.found, context.objects, context.owner_of)


def packet_queues(
    scan: SocketScan, others: Sequence[Holding], found: ObjectFindings, owner_of: OwnerOf
) -> list[Holding]:
    """Return the packets outside of socket queues as holders, without those that `scan` and `others` have."""
    if found.packets is None:
        return []
    taken = np.concatenate([scan.blocks["page"], *(one.blocks["page"] for one in others)])
    return packet_holdings(found.packets, taken, PacketOwners(scan, found, owner_of).of)


class PacketOwners:
    """Finds the owners of groups of packets.

    Of packets that belong to a socket these are its processes; of those in netfilter's queues the programs that listen
    on the queues; of others the processes of their network namespace. The host's namespace has all kinds of processes:
    there it is who sent them, if most are from one socket that is still open.
    """

    def __init__(self, scan: SocketScan, found: ObjectFindings, owner_of: OwnerOf) -> None:
        self._scan = scan
        self._verdicts = found.verdict_queues
        self._owner_of = owner_of
        self._namespaces: Mapping[int, np.void] = (
            {int(row["inode"]): row for row in found.namespaces.table} if found.namespaces else {}
        )

    def of(self, group: PacketGroup) -> GroupOwners:
        """The owners of one group."""
        if group.place in PROTOCOL_PLACES and group.socket:
            return replace(self._holders_of([group.socket]), unowned_reason=_NO_FD)
        namespace = self._namespaces.get(group.network_namespace)
        queues: tuple[int, ...] = ()
        if group.place == Place.NETFILTER and namespace is not None and self._verdicts:
            sockets, queues = listeners_of(self._verdicts, self._scan, namespace)
            owners = self._holders_of(sockets)
            if owners.total:
                return replace(owners, queues=queues)
        if namespace is None:
            return GroupOwners()
        if namespace["is_initial"]:
            owners = self._holders_of([group.socket] if group.socket and group.place in _SENT else [])
            reason = {Place.NETFILTER: _NO_LISTENER, **dict.fromkeys(_SENT, _NO_SENDER)}.get(group.place, "kernel")
            return replace(owners, queues=queues, unowned_reason=reason)
        first = self._owner_of(int(namespace["first_pid"])) if namespace["processes"] else None
        return GroupOwners([first] if first else [], int(namespace["processes"]), queues, _EMPTY)

    def _holders_of(self, sockets: Sequence[int]) -> GroupOwners:
        """The processes with fds of these sockets."""
        pairs = [pair for socket in sockets for pair in self._scan.owners_of(socket)]
        return GroupOwners(*owners_of(pairs, self._owner_of))


def listeners_of(verdicts: VerdictQueues, scan: SocketScan, namespace: np.void) -> tuple[list[int], tuple[int, ...]]:
    """Return the sockets that listen on the queues with packets of a network namespace, and the numbers of the queues.

    Without the queues, because nobody in the namespace could be asked: the netlink sockets of netfilter there, if only
    one process has any. `namespace` is a row of NAMESPACE_DTYPE.
    """
    listeners = verdicts.listeners[verdicts.listeners["network"] == namespace["network"]]
    queues = verdicts.queues.get(int(namespace["inode"]))
    if queues is not None:
        used = [queue for queue in queues if queue.waiting_packets]
        chosen = np.isin(listeners["port"], np.array([queue.port for queue in used], "<u4"))
        return listeners["socket"][chosen].tolist(), tuple(queue.number for queue in used)
    sockets: list[int] = listeners["socket"].tolist()
    processes = {pid for socket in sockets for pid, _ in scan.owners_of(socket)}
    is_certain = len(processes) == 1 and verdicts.is_whole and scan.lists_every_fd
    return (sockets if is_certain else []), ()
