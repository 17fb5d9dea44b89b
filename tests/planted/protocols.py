"""Unread data of protocols that are modules: SCTP, and kernel TLS. Their modules must have been loaded."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from planted.child import Truth, held
from planted.netlink import bring_up, enter_new_network
from planted.sockets.common import MIB, SO_RCVBUFFORCE, SO_SNDBUFFORCE, tcp_pair, wait_for

SCTP_MODULES = ("sctp",)
KTLS_MODULES = ("tls", "ctr", "ghash-generic", "gcm")  # a cipher is found by name, not by the symbols that it exports

_SCTP_NODELAY = 3  # include/uapi/linux/sctp.h
_BUFFER_BYTES = 512 * MIB
_TCP_ULP, _SOL_TLS, _TLS_TX, _TLS_RX = 31, 282, 1, 2  # include/uapi/linux: tcp.h, tls.h
_TLS_1_2, _AES_GCM_128 = 0x0303, 51
_RECORD_BYTES = 16_384  # the most that one record can have


@dataclass(frozen=True, slots=True)
class UnreadMessages:
    """Data that one socket has received and its process has not read."""

    pid: int
    fd: int
    inode: int
    network_namespace: int
    messages: int
    unread_bytes: int


@contextlib.contextmanager
def sctp_backlog(messages: int = 2_000, message_bytes: int = 1_000) -> Iterator[UnreadMessages]:
    """Messages of one SCTP association."""
    with held(_sctp_backlog, messages, message_bytes) as child:
        fd, unread_bytes = child.truth["fd"], messages * message_bytes
        yield UnreadMessages(child.pid, fd, child.inode(fd), child.network_namespace, messages, unread_bytes)


@contextlib.contextmanager
def ktls_backlog(records: int = 200) -> Iterator[UnreadMessages]:
    """Records that were decrypted for a reader who only peeked: they are in TLS's list, not in TCP's queue."""
    with held(_ktls_backlog, records) as child:
        fd, unread_bytes = child.truth["fd"], records * _RECORD_BYTES
        yield UnreadMessages(child.pid, fd, child.inode(fd), child.network_namespace, records, unread_bytes)


def sctp_queues() -> list[tuple[int, int, int]]:
    """Bytes to send, bytes received (both with overhead) and inode of each association of this network."""
    rows = [line.split() for line in Path("/proc/thread-self/net/sctp/assocs").read_text().splitlines()[1:]]
    return [(int(row[7]), int(row[8]), int(row[10])) for row in rows]


def _sctp_backlog(kept: ExitStack, messages: int, message_bytes: int) -> Truth:
    enter_new_network()
    bring_up("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        sender = kept.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP))
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _BUFFER_BYTES)
        sender.setsockopt(socket.IPPROTO_SCTP, _SCTP_NODELAY, 1)
        sender.connect(listener.getsockname())
        receiver = kept.enter_context(listener.accept()[0])
    for _ in range(messages):
        sender.send(b"s" * message_bytes)
    inode = os.fstat(sender.fileno()).st_ino
    wait_for(lambda: [to_send for to_send, _, of in sctp_queues() if of == inode] == [0], "delivery", seconds=60)
    return {"fd": receiver.fileno()}


def _ktls_backlog(kept: ExitStack, records: int) -> Truth:
    enter_new_network()
    bring_up("lo")
    sender, receiver = tcp_pair()
    key = struct.pack("HH8s16s4s8s", _TLS_1_2, _AES_GCM_128, bytes(8), b"k" * 16, bytes(4), bytes(8))
    for end, direction in ((sender, _TLS_TX), (receiver, _TLS_RX)):
        end.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        end.setsockopt(_SOL_TLS, direction, key)
    for _ in range(records):
        sender.sendall(b"r" * _RECORD_BYTES)
    size_bytes = records * _RECORD_BYTES
    wait_for(lambda: len(receiver.recv(size_bytes, socket.MSG_PEEK)) == size_bytes, "the last record", seconds=60)
    return {"fd": receiver.fileno()}
