"""Packets that wait in a netfilter queue for a verdict that its program never gives.

The rule is made over netlink, and with the target of x_tables: kernels have it more often than nftables' own, and there
need not be any `nft` or `iptables`. Modules, where they are not built in: nf_tables, nft_compat, xt_NFQUEUE,
nfnetlink_queue.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from planted.child import Truth, held
from planted.netlink import NEW, attribute, bring_up, enter_new_network, message, nested, text
from planted.sockets.common import MIB, SO_RCVBUFFORCE, SO_SNDBUFFORCE
from planted.sockets.network import IPV4_BYTES, UDP_BYTES

MODULES = ("nf_tables", "nft_compat", "xt_NFQUEUE", "nfnetlink_queue")

_NETLINK_NETFILTER = 12
_GIB = 1 << 30
_QUEUE = 7
_TABLE, _CHAIN = "planted", "output"

# include/uapi/linux/netfilter: nfnetlink.h, nf_tables.h, nf_tables_compat.h, nfnetlink_queue.h
_BATCH_BEGIN, _BATCH_END, _TABLES, _QUEUES = 0x10, 0x11, 10, 3
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = _TABLES << 8, _TABLES << 8 | 3, _TABLES << 8 | 6
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE = 1, 1, 3, 4, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _LOCAL_OUT = 1, 2, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _LIST_ELEMENT = 1, 2, 4, 1
_EXPRESSION_NAME, _EXPRESSION_DATA, _TARGET_NAME, _TARGET_REVISION, _TARGET_INFORMATION = 1, 2, 1, 2, 3
_CONFIGURE, _COMMAND, _PARAMETERS, _MAX_LENGTH = _QUEUES << 8 | 2, 1, 2, 3
_BIND, _COPY_META = 1, 1
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4


@dataclass(frozen=True, slots=True)
class QueuedPackets:
    """Packets in a netfilter queue, and the process that is to judge them."""

    pid: int
    fd: int
    """Of the netlink socket that the queue is bound to; its own receive queue is empty."""
    inode: int
    queue: int
    network_namespace: int
    packets: int
    packet_bytes: int
    """Of all packets, from the IP header on."""


@contextlib.contextmanager
def nfqueue(packets: int = 2_000, payload_bytes: int = 60_000) -> Iterator[QueuedPackets]:
    """Datagrams on their way out, in a network namespace of their own."""
    with held(_nfqueue, packets, payload_bytes) as child:
        fd = child.truth["fd"]
        packet_bytes = packets * (IPV4_BYTES + UDP_BYTES + payload_bytes)
        yield QueuedPackets(child.pid, fd, child.inode(fd), _QUEUE, child.network_namespace, packets, packet_bytes)


def _nfqueue(kept: ExitStack, packets: int, payload_bytes: int) -> Truth:
    enter_new_network()
    bring_up("lo")
    listener = kept.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER))
    listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
    command = attribute(_COMMAND, struct.pack(">BxH", _BIND, socket.AF_INET))
    listener.send(message(_CONFIGURE, _NLM_F_REQUEST | _NLM_F_ACK, _header(0, _QUEUE) + command))
    _acknowledged(listener, 1)
    parameters = attribute(_PARAMETERS, struct.pack(">IB", 0, _COPY_META))
    parameters += attribute(_MAX_LENGTH, struct.pack(">I", packets))
    listener.send(message(_CONFIGURE, _NLM_F_REQUEST | _NLM_F_ACK, _header(0, _QUEUE) + parameters))
    _acknowledged(listener, 1)
    _queue_everything_sent()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _GIB)
        for _ in range(packets):
            sender.sendto(b"q" * payload_bytes, ("127.0.0.1", 9))
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.recv(MIB)
    return {"fd": listener.fileno()}


def _queue_everything_sent() -> None:
    """The equivalent of `iptables -A OUTPUT -j NFQUEUE --queue-num N`."""
    hook = attribute(_HOOK_NUMBER, struct.pack(">I", _LOCAL_OUT)) + attribute(_HOOK_PRIORITY, struct.pack(">i", 0))
    information = struct.pack("H6x", _QUEUE)  # struct xt_NFQ_info
    target = text(_TARGET_NAME, "NFQUEUE") + attribute(_TARGET_REVISION, struct.pack(">I", 0))
    target += attribute(_TARGET_INFORMATION, information)
    expression = nested(_LIST_ELEMENT, text(_EXPRESSION_NAME, "target"), nested(_EXPRESSION_DATA, target))
    table = text(_TABLE_NAME, _TABLE)
    chain = text(_CHAIN_TABLE, _TABLE) + text(_CHAIN_NAME, _CHAIN) + nested(_CHAIN_HOOK, hook)
    chain += text(_CHAIN_TYPE, "filter")
    rule = text(_RULE_TABLE, _TABLE) + text(_RULE_CHAIN, _CHAIN) + nested(_RULE_EXPRESSIONS, expression)
    header = _header(socket.AF_INET, 0)
    batch = message(_BATCH_BEGIN, _NLM_F_REQUEST, _header(0, _TABLES))
    for kind, body in ((_NEW_TABLE, table), (_NEW_CHAIN, chain), (_NEW_RULE, rule)):
        batch += message(kind, NEW, header + body)
    batch += message(_BATCH_END, _NLM_F_REQUEST, _header(0, _TABLES))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as connection:
        connection.send(batch)
        _acknowledged(connection, 3)


def _header(family: int, resource: int) -> bytes:
    return struct.pack(">BBH", family, 0, resource)  # struct nfgenmsg


def _acknowledged(connection: socket.socket, messages: int) -> None:
    """Read that many acknowledgements. Raises OSError with the first error among them."""
    for _ in range(messages):
        (error,) = struct.unpack_from("16xi", connection.recv(65536))
        if error:
            raise OSError(-error, f"netfilter: {os.strerror(-error)}")
